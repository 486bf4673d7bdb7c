"""The whole training step as one CUDA graph, and training from clips on the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jmt_fast.config import JMTConfig
from jmt_fast.models import JMT, ReferenceJMT
from jmt_fast.runtime import Runtime
from jmt_fast.training import ccc_loss
from jmt_fast.training.step import Step, WholeStep, fast_step, sgd

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: captures a graph there")
SMALL = {"dim": 64, "ff_dim": 64, "visual_dim": 64}


def drawn(count: int, batch: int, length: int = 8) -> list[tuple[Tensor, ...]]:
    draw = torch.Generator().manual_seed(batch)
    made = []
    for _ in range(count):
        audio, visual = torch.randn(2, batch, length, 64, generator=draw)
        present = torch.rand(batch, length, generator=draw) < 0.8
        made.append(tuple(each.cuda() for each in (audio, visual, present, torch.tanh(audio[..., :2]))))
    return made


def losses(model: JMT | ReferenceJMT, make: type[Step], runtime: Runtime, data: list[tuple[Tensor, ...]]) -> Tensor:
    def loss(audio: Tensor, visual: Tensor, present: Tensor, target: Tensor) -> Tensor:
        return ccc_loss(model(audio, visual, present).float(), target, present)

    step = make(loss, sgd(model.parameters(), lr=0.02, momentum=0.9), runtime, lambda update: 0.9**update, 1.0)
    values = [step(*batch) for batch in data]  # read at the end: a replay must not have written over an earlier one
    return torch.stack(values)


def test_captured_and_eager_follow_one_trajectory() -> None:
    """Steps of two shapes in turn: each has its own graph, from its fourth step on."""
    data = [batch for pair in zip(drawn(10, 4), drawn(10, 2), strict=True) for batch in pair]
    model, plain = JMT(JMTConfig(**SMALL)).cuda(), ReferenceJMT(JMTConfig(**SMALL)).cuda()
    plain.load_state_dict(model.state_dict())
    found = losses(model, WholeStep, Runtime.choose("cuda", "fp32", compile=True), data)
    expected = losses(plain, Step, Runtime.choose("cuda", "fp32", compile=False), data)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-2, atol=1e-4)


def test_a_replayed_step_waits_for_nothing() -> None:
    model = JMT(JMTConfig(**SMALL)).cuda()
    data = drawn(8, 4)
    step = fast_step(
        lambda *batch: ccc_loss(model(*batch[:3]).float(), batch[3], batch[2]), sgd(model.parameters(), lr=0.02),
        Runtime.choose("cuda", "bf16", compile=True),
    )  # fmt: skip
    assert isinstance(step, WholeStep)
    for batch in data[:5]:
        step(*batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = [step(*batch) for batch in data[5:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(values).isfinite().all()
