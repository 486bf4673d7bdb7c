"""How fast are fusion forward and training step, against the plain model, and how near the machine's floor?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jmt_fast.config import JMTConfig
from jmt_fast.models import JMT, ReferenceJMT, prepare_fusion
from jmt_fast.models.folded import FoldedFusion
from jmt_fast.runtime import Runtime
from jmt_fast.training.loss import ccc_loss
from jmt_fast.training.step import Step, sgd

SHAPES = [(batch, length) for length in (8, 16) for batch in (2, 32, 64, 512)]
ROTATED = 4  # batches in turn, so that inputs do not stay in a cache
PLAIN = "reference, eager, fp32"
BYTES = {"bf16": 2, "fp32": 4}


@pytest.fixture(scope="module")
def model(device: torch.device) -> ReferenceJMT:
    torch.manual_seed(0)
    return ReferenceJMT(JMTConfig()).to(device)


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


@pytest.mark.parametrize(("batch", "length"), SHAPES, ids=lambda value: str(value))
def test_forward(
    batch: int,
    length: int,
    model: ReferenceJMT,
    runtimes: dict[str, Runtime],
    device: torch.device,
    race: Callable[..., Any],
    rotate: Callable[..., Any],
    question: Any,
    ceiling: Any,
) -> None:
    inputs = [(audio, visual, valid) for audio, visual, _, valid in drawn(batch, length, device)]
    reference = model.eval()

    def inferring(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*tensors: Tensor) -> Tensor:
            with torch.inference_mode():
                return function(*tensors)

        return call

    peers = {
        f"prepared, {precision}": prepare_fusion(reference, runtime, batch) for precision, runtime in runtimes.items()
    }
    peers[PLAIN] = inferring(reference)
    peers["reference, compiled, fp32"] = inferring(
        torch.compile(ReferenceJMT.forward, dynamic=False).__get__(reference)
    )
    timings = race({name: rotate(peer, inputs) for name, peer in peers.items()})
    weights = matrices(FoldedFusion(reference, torch.float32))
    for precision in BYTES:
        # Every weight is read once and meets every clip once.
        floor = ceiling.floor(weights * BYTES[precision], 2 * weights * batch * length, precision)
        question.row(
            f"forward, batch {batch}, {length} clips", f"floor, {precision}, {weights / 1e6:.1f} M weights", ms=floor
        )
    question.race(f"forward, batch {batch}, {length} clips", timings, PLAIN)


@pytest.mark.parametrize(("batch", "length"), SHAPES, ids=lambda value: str(value))
def test_training_step(
    batch: int,
    length: int,
    model: ReferenceJMT,
    runtimes: dict[str, Runtime],
    device: torch.device,
    race: Callable[..., Any],
    rotate: Callable[..., Any],
    question: Any,
    ceiling: Any,
) -> None:
    """Forward, loss, backward and SGD."""
    inputs = drawn(batch, length, device)
    eager = Runtime.choose(str(device), "fp32", compile=False)

    def step(network: ReferenceJMT | JMT, runtime: Runtime, optimizer: torch.optim.Optimizer | None = None) -> Step:
        network.load_state_dict(model.state_dict())
        network.to(device).train()

        def loss(audio: Tensor, visual: Tensor, target: Tensor, valid: Tensor) -> Tensor:
            return ccc_loss(network(audio, visual, valid), target, valid)

        return Step(loss, optimizer or sgd(network.parameters(), 1e-6), runtime)

    plain = ReferenceJMT(model.config)
    peers = {f"JMT, compiled, {precision}": step(JMT(model.config), runtime) for precision, runtime in runtimes.items()}
    peers[PLAIN] = step(plain, eager, torch.optim.SGD(plain.parameters(), 1e-6))
    peers["reference, compiled, fp32"] = step(ReferenceJMT(model.config), runtimes["fp32"])
    timings = race({name: rotate(peer, inputs) for name, peer in peers.items()})
    weights = matrices(model)
    for precision, size in BYTES.items():
        # Weights are read forward and backward, gradients written; SGD reads weight and gradient and writes the weight.
        moved = weights * (3 * size + 3 * BYTES["fp32"])
        floor = ceiling.floor(moved, 6 * weights * batch * length, precision)
        question.row(
            f"step, batch {batch}, {length} clips", f"floor, {precision}, {weights / 1e6:.1f} M weights", ms=floor
        )
    question.race(f"step, batch {batch}, {length} clips", timings, PLAIN)
