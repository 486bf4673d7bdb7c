"""How fast are fusion forward and training step, against the plain model, and how near the machine's floor?

On a CPU the peers are in fp32, the plain model's only precision. On a GPU the plain model also runs in bf16, one
`F.linear` a projection, eagerly and in the compiler's modes; every peer is timed as its users call it, launches
included, so a model that is replayed from a CUDA graph gains what it saves there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.timing import Ceiling, Peer
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
BYTES = {"bf16": 2, "fp32": 4}
MOMENTUM = 0.9 if GPU else 0.0
EPOCH = 88_000  # clips in the sequences of an epoch over three million frames: each video gives one of its phases
SGD_BYTES = 26  # fp32 weight and momentum read and written, fp32 gradient written and read, bf16 copy written
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


def gpu_floors(question: Any, shape: str, weights: int, ceiling: Ceiling) -> None:
    """What no implementation of this launch structure goes below: bf16 weights read once, ten kernels in a row."""
    size = weights * BYTES["bf16"]
    name = f"floor, {size / 1e6:.0f} MB of bf16 weights"
    question.row(shape, f"{name} from memory", ms=1e3 * size / ceiling.bytes_per_second)
    question.row(shape, f"{name} from L2", ms=1e3 * size / ceiling.cached_bytes_per_second)
    question.row(shape, "floor, ten dependent launches", ms=1e4 * ceiling.launch_seconds)


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
        f"prepared, {precision}": prepare_fusion(reference, runtime, batch) for precision, runtime in runtimes.items()
    }
    peers[PLAIN] = inferring(reference)
    peers["reference, compiled, fp32"] = inferring(
        torch.compile(ReferenceJMT.forward, dynamic=False).__get__(reference)
    )
    if GPU:
        plain = low(reference, device).bfloat16().eval()
        peers[PLAIN_LOW] = inferring(plain)
        peers |= {f"reference, {mode}, bf16": inferring(fast) for mode, fast in compiled(plain, batch).items()}
    check(peers["prepared, fp32"](*inputs[0]), peers[PLAIN](*inputs[0]))
    timings = race({name: rotate(peer, inputs) for name, peer in peers.items()})

    shape = titled("forward", heads, batch, length)
    folded = foldable(reference.config)
    weights = matrices(FoldedFusion(reference, torch.float32) if folded else reference)
    for precision in BYTES:
        # Every weight is read once and meets every clip once.
        floor = ceiling.floor(weights * BYTES[precision], 2 * weights * batch * length, precision)
        question.row(shape, f"floor, {precision}, {weights / 1e6:.1f} M weights", ms=floor)
    if GPU:
        gpu_floors(question, shape, matrices(reference), ceiling)
    question.race(shape, timings, AGAINST, flops=2.0 * matrices(reference) * batch * length)


def check(ours: Tensor, reference: Tensor) -> None:
    """Guards what is timed; the tests do the measuring."""
    error = (ours - reference).abs().max().item()
    assert error < 1e-3, f"prepared, fp32 is off by {error:.2g}: the peers compute different things"


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
        f"JMT, compiled, {precision}": step(JMT(model.config), runtime, fast_step)
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
    timings = race({name: rotate(peer, inputs) for name, peer in peers.items()})

    shape = titled("step", heads, batch, length)
    weights = matrices(model)
    for precision, size in BYTES.items():
        # Weights are read forward and backward, gradients written; SGD reads weight and gradient and writes the weight.
        moved = weights * (3 * size + 3 * BYTES["fp32"])
        floor = ceiling.floor(moved, 6 * weights * batch * length, precision)
        question.row(shape, f"floor, {precision}, {weights / 1e6:.1f} M weights", ms=floor)
    if GPU:
        gpu_floors(question, shape, weights, ceiling)
        moved = SGD_BYTES * sum(parameter.numel() for parameter in model.parameters())
        question.row(shape, f"floor, SGD, {SGD_BYTES} B a parameter", ms=1e3 * moved / ceiling.bytes_per_second)
    question.race(shape, timings, AGAINST, flops=6.0 * weights * batch * length)
    for row in question.rows[-len(timings) :]:
        row["epoch_s"] = row["ms"] / 1e3 * EPOCH / (batch * length)
