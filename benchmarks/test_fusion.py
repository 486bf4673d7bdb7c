"""How fast are fusion forward and training step, against the plain model, and how near the machine's floor?

On a CPU the peers are in fp32, the plain model's only precision. On a GPU the plain model also runs in bf16, one
`F.linear` a projection, eagerly and in the compiler's modes; every peer is timed as its users call it, launches
included, so a model that is replayed from a CUDA graph gains what it saves there. `graph replay` is ours without the
copies into the graph and out of it. `launches` is what an eager call gives to the GPU, `times_floor` the time over the
floor in the peer's precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.timing import Ceiling, Peer, Timing, launches
from jmt_fast.config import JMTConfig
from jmt_fast.models import JMT, ReferenceJMT, prepare_fusion
from jmt_fast.models.folded import FoldedFusion, foldable
from jmt_fast.runtime import Runtime
from jmt_fast.training.loss import ccc_loss
from jmt_fast.training.step import Step, fast_step, sgd

GPU = torch.cuda.is_available()
# (heads, batch, length)
if GPU:
    FORWARD = [(1, batch, length) for length in (8, 16) for batch in (2, 16, 64, 4096)] + [(4, 16, 8), (4, 64, 8)]
    STEPS = [(1, 2, 8), (1, 16, 8), (1, 16, 16), (1, 64, 8), (4, 16, 8)]
else:
    FORWARD = STEPS = [(1, batch, length) for length in (8, 16) for batch in (2, 32, 64, 512)] + [(4, 64, 8)]
ROTATED = 4  # batches in turn, so that inputs do not stay in a cache
PLAIN = "reference, eager, fp32"
PLAIN_LOW = "reference, eager, bf16"
AGAINST = PLAIN_LOW if GPU else PLAIN
PREPARED, TRAINED, REPLAY = "prepared", "JMT, compiled", ", graph replay"
FIRST = "bf16" if GPU else "fp32"  # precision of ours that is always there
BYTES = {"bf16": 2, "fp32": 4}
TOLERANCE = {"bf16": 1e-2, "fp32": 1e-3}  # of outputs around 0.1
MOMENTUM = 0.9 if GPU else 0.0
EPOCH = 88_000  # clips in the sequences of an epoch over three million frames: each video gives one of its phases
SGD_BYTES = 26  # fp32 weight and momentum read and written, fp32 gradient written and read, bf16 copy written
LAUNCHES = 10  # that depend on each other: what no implementation does without
AUTOTUNED = 64  # batch from which the plain model is also tried in max-autotune, which takes minutes to compile


class PlainBf16(ReferenceJMT):
    """The plain model in bf16, activations and products; weights of another precision are cast where they are used."""

    def widened(self, audio: Tensor, visual: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        audio, visual, present = super().widened(audio, visual, valid)
        return audio.bfloat16(), visual.bfloat16(), present


@pytest.fixture(scope="module")
def models(device: torch.device) -> dict[int, ReferenceJMT]:
    """heads -> model."""
    torch.manual_seed(0)
    return {heads: ReferenceJMT(JMTConfig(heads=heads)).to(device) for heads in (1, 4)}


@pytest.fixture(scope="module")
def runtimes(device: torch.device) -> dict[str, Runtime]:
    return {precision: Runtime.choose(str(device), precision) for precision in BYTES}


def drawn(batch: int, length: int, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """audio, visual, target and mask, random: products of zeros draw less power and run faster than real ones."""
    tensors = []
    for _ in range(ROTATED):
        audio, visual = (torch.randn(batch, length, 512, device=device) for _ in range(2))
        target = torch.rand(batch, length, 2, device=device) * 2 - 1
        tensors.append((audio, visual, target, torch.rand(batch, length, device=device) < 0.9))
    return tensors


def matrices(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.ndim > 1)


def titled(what: str, heads: int, batch: int, length: int) -> str:
    return f"{what}, batch {batch}, {length} clips" + (f", {heads} heads" if heads > 1 else "")


def low(model: ReferenceJMT, device: torch.device) -> PlainBf16:
    copy = PlainBf16(model.config).to(device)
    copy.load_state_dict(model.state_dict())
    return copy


def compiled(function: Callable[..., Tensor], batch: int) -> dict[str, Callable[..., Tensor]]:
    """mode -> function, in the modes that are tried at this batch."""
    modes = ["reduce-overhead", *(["max-autotune"] if batch >= AUTOTUNED else [])]
    return {mode: torch.compile(function, dynamic=False, mode=mode) for mode in modes}


def replay(called: Any, inputs: tuple[Tensor, ...]) -> Peer | str:
    """The CUDA graph that a call of ours ends in, alone, with the inputs of its last call; or why it has none."""
    for _ in range(4):  # a `CudaGraph` captures at the last of them
        called(*inputs)
    graphs = list(getattr(called, "_graphs", {}).values())
    return graphs[0]._graph.replay if graphs else "this PyTorch cannot compile the whole step"


def floors(
    question: Any, shape: str, ceiling: Ceiling, model: ReferenceJMT, weights: int, moved: dict[str, int], flops: float
) -> dict[str, float]:
    """Rows for what no implementation goes below, and precision -> milliseconds: bytes moved, products, launches.

    `weights` are those that ours has to read; further rows are for all of the model's.
    """
    least = 1e3 * LAUNCHES * ceiling.launch_seconds if GPU else 0.0
    found = {name: max(ceiling.floor(moved[name], flops, name), least) for name in BYTES}
    for precision, floor in found.items():
        question.row(shape, f"floor, {precision}, {weights / 1e6:.1f} M weights", ms=floor)
    if GPU:
        size = matrices(model) * BYTES["bf16"]
        name = f"floor, {size / 1e6:.0f} MB of bf16 weights"
        question.row(shape, f"{name} from memory", ms=1e3 * size / ceiling.bytes_per_second)
        question.row(shape, f"{name} from L2", ms=1e3 * size / ceiling.cached_bytes_per_second)
        question.row(shape, f"floor, {LAUNCHES} dependent launches", ms=least)
    return found


def report(
    question: Any, shape: str, timings: dict[str, Timing], found: dict[str, float], flops: float, count: float
) -> list[dict[str, Any]]:
    """A row a peer with its distance from the floor, and `count` launches of the one that ratios are against."""
    question.race(shape, timings, AGAINST, flops=flops)
    rows = question.rows[-len(timings) :]
    for row in rows:
        precision = next(name for name in BYTES if name in row["peer"])
        row["times_floor"] = row["ms"] / found[precision]
        if GPU and row["peer"] == AGAINST:
            row["launches"] = count
    return rows


@pytest.mark.parametrize(("heads", "batch", "length"), FORWARD, ids=lambda value: str(value))
def test_forward(
    heads: int,
    batch: int,
    length: int,
    models: dict[int, ReferenceJMT],
    runtimes: dict[str, Runtime],
    device: torch.device,
    race: Callable[..., Any],
    rotate: Callable[..., Any],
    chosen: Callable[..., dict[str, Any]],
    question: Any,
    ceiling: Ceiling,
) -> None:
    torch.compiler.reset()
    inputs = [(audio, visual, valid) for audio, visual, _, valid in drawn(batch, length, device)]
    reference = models[heads].eval()

    def inferring(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*tensors: Tensor) -> Tensor:
            with torch.inference_mode():
                return function(*tensors)

        return call

    peers: dict[str, Callable[..., Tensor]] = {
        f"{PREPARED}, {precision}": prepare_fusion(reference, runtime, batch) for precision, runtime in runtimes.items()
    }
    peers[PLAIN] = inferring(reference)
    peers["reference, compiled, fp32"] = inferring(
        torch.compile(ReferenceJMT.forward, dynamic=False).__get__(reference)
    )
    if GPU:
        plain = low(reference, device).bfloat16().eval()
        peers[PLAIN_LOW] = inferring(plain)
        peers |= {f"reference, {mode}, bf16": inferring(fast) for mode, fast in compiled(plain, batch).items()}
    peers = chosen(peers, f"{PREPARED}, {FIRST}", AGAINST)
    for precision in BYTES:
        if f"{PREPARED}, {precision}" in peers:
            check(precision, peers[f"{PREPARED}, {precision}"](*inputs[0]), inferring(reference)(*inputs[0]))
    calls: dict[str, Peer | str] = {name: rotate(peer, inputs) for name, peer in peers.items()}
    if GPU:
        calls[f"{PREPARED}, {FIRST}{REPLAY}"] = replay(peers[f"{PREPARED}, {FIRST}"], inputs[0])
    timings = race(calls, optional=[name for name in calls if name != AGAINST and not name.startswith(PREPARED)])

    shape, clips = titled("forward", heads, batch, length), batch * length
    weights = matrices(FoldedFusion(reference, torch.float32) if foldable(reference.config) else reference)
    # Every weight is read once and meets every clip once.
    moved = {precision: weights * size for precision, size in BYTES.items()}
    found = floors(question, shape, ceiling, reference, weights, moved, 2 * weights * clips)
    count = launches(lambda: peers[AGAINST](*inputs[0])) if GPU else math.nan
    report(question, shape, timings, found, 2.0 * matrices(reference) * clips, count)


def check(precision: str, ours: Tensor, reference: Tensor) -> None:
    """Guards what is timed; the tests do the measuring."""
    error = (ours - reference).abs().max().item()
    assert error < TOLERANCE[precision], f"prepared, {precision}, is off by {error:.2g}: another function"


@pytest.mark.parametrize(("heads", "batch", "length"), STEPS, ids=lambda value: str(value))
def test_training_step(
    heads: int,
    batch: int,
    length: int,
    models: dict[int, ReferenceJMT],
    runtimes: dict[str, Runtime],
    device: torch.device,
    race: Callable[..., Any],
    rotate: Callable[..., Any],
    chosen: Callable[..., dict[str, Any]],
    question: Any,
    ceiling: Ceiling,
) -> None:
    """Forward, loss, backward and SGD."""
    torch.compiler.reset()
    inputs = drawn(batch, length, device)
    model = models[heads]
    eager = Runtime.choose(str(device), "fp32", compile=False)

    def losses(network: ReferenceJMT | JMT) -> Callable[..., Tensor]:
        network.load_state_dict(model.state_dict())
        network.to(device).train()

        def loss(audio: Tensor, visual: Tensor, target: Tensor, valid: Tensor) -> Tensor:
            return ccc_loss(network(audio, visual, valid).float(), target, valid)

        return loss

    def step(network: ReferenceJMT | JMT, runtime: Runtime, make: Callable[..., Step] = Step) -> Step:
        return make(losses(network), sgd(network.parameters(), 1e-6, MOMENTUM), runtime)

    def unfused(network: ReferenceJMT) -> Step:
        return Step(losses(network), torch.optim.SGD(network.parameters(), 1e-6, MOMENTUM), eager)

    peers: dict[str, Peer] = {
        f"{TRAINED}, {precision}": step(JMT(model.config), runtime, fast_step)
        for precision, runtime in runtimes.items()
    }
    peers[PLAIN] = unfused(ReferenceJMT(model.config))
    peers["reference, compiled, fp32"] = step(ReferenceJMT(model.config), runtimes["fp32"])
    if GPU:
        peers[PLAIN_LOW] = unfused(PlainBf16(model.config))
        peers["reference, compiled, fused SGD, bf16"] = step(PlainBf16(model.config), runtimes["fp32"])
        network = PlainBf16(model.config)
        for mode, fast in compiled(losses(network), batch).items():
            peers[f"reference, {mode}, fused SGD, bf16"] = Step(fast, sgd(network.parameters(), 1e-6, MOMENTUM), eager)
    peers = chosen(peers, f"{TRAINED}, {FIRST}", AGAINST)
    calls: dict[str, Peer | str] = {name: rotate(peer, inputs) for name, peer in peers.items()}
    if GPU:
        calls[f"{TRAINED}, {FIRST}{REPLAY}"] = replay(peers[f"{TRAINED}, {FIRST}"], inputs[0])
    timings = race(calls, optional=[name for name in calls if name != AGAINST and not name.startswith(TRAINED)])

    shape, weights, clips = titled("step", heads, batch, length), matrices(model), batch * length
    # Weights are read forward and backward, gradients written; SGD reads weight and gradient, writes the weight, and
    # reads and writes the momentum.
    stepped = BYTES["fp32"] * (5 if MOMENTUM else 3)
    moved = {precision: weights * (3 * size + stepped) for precision, size in BYTES.items()}
    found = floors(question, shape, ceiling, model, weights, moved, 6 * weights * clips)
    if GPU:
        size = SGD_BYTES * sum(parameter.numel() for parameter in model.parameters())
        question.row(shape, f"floor, SGD, {SGD_BYTES} B a parameter", ms=1e3 * size / ceiling.bytes_per_second)
    count = launches(lambda: peers[AGAINST](*inputs[0])) if GPU else math.nan
    for row in report(question, shape, timings, found, 6.0 * weights * clips, count):
        row["epoch_s"] = row["ms"] / 1e3 * EPOCH / clips
