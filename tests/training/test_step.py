"""The training step: compiled against eager against float64, reduced precision, the scaler, the schedule."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from jmt_fast.models import JMT
from jmt_fast.runtime import Runtime
from jmt_fast.training import ccc_loss
from jmt_fast.training.step import Step, WholeStep, fast_step, sgd

Batch = tuple[Tensor, ...]


def batches(count: int, seed: int, batch: int = 3, length: int = 8) -> list[Batch]:
    """Batches of one shape with different padding: some rows absent, some clips without a label."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        present = (
            torch.arange(length) < torch.tensor([length, length - number % 3, 0 if number % 4 == 3 else 5])[:, None]
        )
        labelled = present & (torch.rand(batch, length, generator=generator) < 0.8)
        audio, visual = (
            torch.randn(batch, length, 32, generator=generator),
            torch.randn(batch, length, 24, generator=generator),
        )
        target = torch.tanh(audio[..., :2] + visual[..., :2])
        made.append((audio * present[..., None], visual * present[..., None], present, target, labelled))
    return made


def trajectory(
    model: nn.Module, runtime: Runtime, data: list[Batch], make: Callable[..., Step] = Step, **options: object
) -> tuple[Tensor, Tensor]:
    """Losses of the steps, and the weights they lead to, in float64. `options` are the optimizer's or the step's."""

    def loss(audio: Tensor, visual: Tensor, present: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        return ccc_loss(model(audio, visual, present), target, labelled)

    own = {name: options.pop(name) for name in ("rate", "clip_norm") if name in options}
    step = make(loss, sgd(model.parameters(), **{"lr": 0.02, "momentum": 0.9, **options}), runtime, **own)
    losses = torch.stack([step(*batch).double() for batch in data])
    return losses, torch.cat([weight.detach().double().flatten() for weight in model.parameters()])


def doubled(data: list[Batch]) -> list[Batch]:
    return [tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in batch) for batch in data]


@pytest.mark.slow
def test_compiled_and_eager_follow_one_trajectory(make_model: Callable[..., JMT]) -> None:
    data = batches(12, seed=1)
    fp32 = Runtime.choose("cpu", "fp32", compile=False)
    true_losses, truth = trajectory(make_model().double(), fp32, doubled(data))
    eager_losses, eager = trajectory(make_model(), fp32, data)
    before = counters["stats"]["unique_graphs"]
    compiled_losses, compiled = trajectory(make_model(), Runtime.choose("cpu", "fp32", compile=True), data)
    assert counters["stats"]["unique_graphs"] - before == 1  # whatever is padded, nothing is compiled again
    assert (true_losses[0] - true_losses[-1]).abs() > 0.01  # it did train
    # Both round at every step; the compiled one may be wrong by a small multiple of what plain PyTorch is.
    for value, plain, exact in [(compiled, eager, truth), (compiled_losses, eager_losses, true_losses)]:
        error, own = (value - exact).abs().max(), (plain - exact).abs().max()
        assert error <= 4 * own + 1e-6


OPTIONS = {
    "plain, concat": {"momentum": 0.0},
    "all, cross_attention": {
        "weight_decay": 0.01, "nesterov": True, "clip_norm": 0.3, "rate": lambda update: 1 / (1 + update),
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", OPTIONS)
def test_the_whole_step_follows_the_same_trajectory(make_model: Callable[..., JMT], case: str) -> None:
    options, data = OPTIONS[case], batches(12, seed=1)

    def make() -> JMT:
        return make_model(fusion=case.split()[-1])

    fp32, compiling = (Runtime.choose("cpu", "fp32", compile=compile) for compile in (False, True))
    true_losses, truth = trajectory(make().double(), fp32, doubled(data), **options)
    eager_losses, eager = trajectory(make(), fp32, data, **options)
    before = counters["stats"]["unique_graphs"]
    whole_losses, whole = trajectory(make(), compiling, data, WholeStep, **options)
    assert counters["stats"]["unique_graphs"] - before == 1  # one region, from the loss to the update, at every rate
    start = torch.cat([weight.detach().double().flatten() for weight in make().parameters()])
    assert (truth - start).abs().max() > 1e-3  # it did train
    for value, plain, exact in [(whole, eager, truth), (whole_losses, eager_losses, true_losses)]:
        error, own = (value - exact).abs().max(), (plain - exact).abs().max()
        assert error <= 4 * own + 1e-6


def test_the_whole_step_and_the_other_read_each_others_state() -> None:
    def make(kind: Callable[..., Step], compile: bool) -> tuple[nn.Parameter, Step]:
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        runtime = Runtime.choose("cpu", "fp32", compile=compile)
        optimizer = sgd([weight], lr=0.1, momentum=0.9)
        return weight, kind(lambda x: (weight * x).square().sum(), optimizer, runtime, lambda update: 0.5**update)

    inputs = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    ends = []
    for kinds in [(Step, Step), (Step, WholeStep), (WholeStep, Step), (WholeStep, WholeStep)]:
        (first, begun), (second, other) = (make(kind, compile=kind is WholeStep) for kind in kinds)
        for x in inputs[:3]:
            begun(x)
        other.load_state_dict(deepcopy(begun.state_dict()))
        second.data.copy_(first)
        for x in inputs[3:]:
            other(x)
        ends.append(second.detach())
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0])


def test_the_whole_step_follows_a_rate_that_is_set() -> None:
    weight = nn.Parameter(torch.ones(2))
    runtime = Runtime.choose("cpu", "fp32", compile=True)
    step = WholeStep(lambda x: (weight * x).sum(), sgd([weight], lr=0.1), runtime)
    for factor, expected in [(1.0, 0.9), (0.0, 0.9), (0.5, 0.85)]:
        step.scale_rate(factor)
        step(torch.ones(2))
        torch.testing.assert_close(weight.detach(), torch.full((2,), expected))


def test_the_whole_step_is_taken_where_it_holds() -> None:
    weight = nn.Parameter(torch.ones(2))
    plain, adam = sgd([weight], lr=0.1), torch.optim.Adam([weight])
    for optimizer, precision, compile, kind in [
        (plain, "bf16", True, WholeStep), (plain, "fp32", False, Step), (plain, "fp16", True, Step),
        (adam, "bf16", True, Step),
    ]:  # fmt: skip
        assert type(fast_step(torch.sum, optimizer, Runtime.choose("cpu", precision, compile))) is kind
    assert type(fast_step(torch.sum, plain, Runtime.choose("cpu", "bf16", True), steps=100)) is Step


def test_bf16_stays_near_fp32(make_model: Callable[..., JMT]) -> None:
    data = batches(12, seed=2)
    losses, _ = trajectory(make_model(), Runtime.choose("cpu", "fp32", compile=False), data)
    model = make_model()
    rounded, weights = trajectory(model, Runtime.choose("cpu", "bf16", compile=False), data)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not torch.equal(losses, rounded)
    # A loss of order 2 from outputs that carry 8 bits, and twelve steps of drift.
    assert (losses - rounded).abs().max() <= 2 * 12 * 2**-8
    assert weights.isfinite().all()


@pytest.mark.parametrize("clip_norm", [None, 10.0])
def test_fp16_leaves_out_a_step_that_overflows(clip_norm: float | None) -> None:
    weight = nn.Parameter(torch.ones(3))
    runtime = Runtime.choose("cpu", "fp16", compile=False)
    step = Step(lambda factor: (weight * factor).sum(), sgd([weight], lr=0.1), runtime, clip_norm=clip_norm)
    scale = step.state_dict()["scaler"]["scale"]
    step(torch.full((3,), 3e38))  # finite, but not after scaling
    assert weight.tolist() == [1, 1, 1]
    assert step.state_dict()["scaler"]["scale"] == scale / 2
    step(torch.ones(3))
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.9))


def test_state_restores_momentum_and_schedule() -> None:
    def make() -> tuple[nn.Parameter, Step]:
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = sgd([weight], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
        runtime = Runtime.choose("cpu", "fp32", compile=False)
        return weight, Step(lambda x: (weight * x).square().sum(), optimizer, runtime, lambda update: 1 / (1 + update))

    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, generator=generator) for _ in range(6)]
    whole, step = make()
    for x in inputs[:3]:
        step(x)
    state, weights = deepcopy(step.state_dict()), whole.detach().clone()
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.1 / 4)
    resumed, other = make()
    resumed.data.copy_(weights)
    other.load_state_dict(state)
    for x in inputs[3:]:
        step(x)
        other(x)
    assert torch.equal(whole, resumed)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sgd_pairs_weights_and_gradients_whatever_their_layouts(layout: torch.memory_format) -> None:
    # PyTorch's fused form, asked for a channels-last weight with a gradient in plain order, takes them for aligned.
    weight, grad = torch.randn(4, 3, 3, 3), torch.randn(4, 3, 3, 3)
    parameter = nn.Parameter(weight.clone(memory_format=layout))
    parameter.grad = grad
    sgd([parameter], lr=0.5).step()
    torch.testing.assert_close(parameter.detach(), weight - 0.5 * grad)
