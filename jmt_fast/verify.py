"""Measures the fast fusion model against the reference on this machine, in every precision it will be used in.

Inputs and weights are quantised first, so that all precisions start from the same numbers. The truth is the reference
in float64. The fast model's error may not exceed a small multiple of the error of plain PyTorch, which is the
reference's arithmetic run in the same precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from jmt_fast.config import JMTConfig
from jmt_fast.models import JMT, ReferenceJMT, prepare_fusion
from jmt_fast.models.parameters import FusionParameters
from jmt_fast.runtime import DTYPES, Runtime
from jmt_fast.training.loss import ccc_loss

Progress = Callable[[int, int, str], None]

FACTOR = 4.0  # two correct implementations round differently: their errors differ by a factor of 1 to 2, seldom 3
KINK = 1e-6  # several roundings of an FP32 sum near 1
STEPS, LR, MOMENTUM = 50, 5e-4, 0.9


@dataclass(frozen=True)
class Case:
    """One configuration and the shape of its batch."""

    config: JMTConfig
    batch: int = 8
    length: int = 8
    masked: bool = False  # some clips absent, one sequence wholly
    train: bool = False  # compare the weights after SGD too: the slowest part


def _small(preset: str, **fields: object) -> JMTConfig:
    return JMTConfig.preset(preset, **{"dim": 64, "ff_dim": 64, "visual_dim": 64, **fields})


CASES = {
    "jmt": Case(_small("jmt"), train=True),
    "jmt, 512 wide": Case(JMTConfig.preset("jmt"), batch=4),
    "jmt, masked, 13 clips": Case(_small("jmt", visual_dim=48), length=13, masked=True, train=True),
    "literal, 7 clips": Case(_small("literal"), length=7, train=True),
    "abaw6, masked": Case(_small("abaw6"), masked=True, train=True),
    "abaw6, self_attention": Case(_small("abaw6", output="self_attention"), length=1, batch=60),
    "self_attention, masked": Case(_small("jmt", output="self_attention", layers=2), masked=True),
    "4 heads, 13 clips": Case(_small("jmt", heads=4, orientation="query"), length=13, masked=True),
}


@dataclass(frozen=True)
class Row:
    """One comparison. `error` and `bound` are relative to the size of the true value; ok if error <= bound."""

    case: str
    what: str
    precision: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # false for NaN


@dataclass(frozen=True)
class Batch:
    """(B, L, ...) tensors."""

    audio: Tensor
    visual: Tensor
    target: Tensor
    valid: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        audio, visual, target = (tensor.to(device, dtype) for tensor in (self.audio, self.visual, self.target))
        return Batch(audio, visual, target, self.valid.to(device))


class Plain(ReferenceJMT):
    """The reference's arithmetic in whatever precision autocast asks for."""

    def forward(self, audio: Tensor, visual: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.regress(self.fuse(*self.widened(audio, visual, valid)).float(), valid).float()


@dataclass(frozen=True)
class Measured:
    output: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]  # after STEPS steps; empty where the case does not train


def verify(
    runtime: Runtime,
    progress: Progress = lambda done, total, note: None,
    seed: int = 0,
    model: type[FusionParameters] = JMT,
) -> list[Row]:
    """Compare outputs, loss, every gradient and the weights after 50 SGD steps, for every case, in FP32, BF16 and the
    runtime's precision; and the outputs of the prepared copy that predictions are made with.

    Args:
        runtime: where to run; its device and precision count.
        progress: called as progress(done, total, note).
        seed: of weights and inputs.
        model: the class under test; takes a JMTConfig and a reference's state dict.

    Returns:
        One row a comparison; of the gradients the worst, by name. The implementation is verified if all are `ok`.
    """
    precisions = dict.fromkeys(("fp32", "bf16", runtime.precision))
    rows, done, total = [], 0, len(CASES) * len(precisions)
    for name, case in CASES.items():
        start, batch = _smooth(case, seed)
        truth = _run(ReferenceJMT(case.config).double(), start, batch, "fp64", case, torch.device("cpu"))
        for precision in precisions:
            progress(done, total, f"{name}, {precision}")
            plain = _run(Plain(case.config), start, batch, precision, case, runtime.device)
            fast = _run(model(case.config), start, batch, precision, case, runtime.device)
            copied = _prepared(model(case.config), start, batch, precision, runtime)
            for what, error, bound in _compared(truth, plain, fast, copied, start, batch, precision):
                rows.append(Row(name, what, precision, error, bound))
            done += 1
    progress(done, total, "done")
    return rows


class NearestToZero(TorchDispatchMode):
    """Records how near to 0, where its derivative jumps, the inputs of a ReLU come."""

    distance = float("inf")

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten.relu.default:
            self.distance = min(self.distance, float(args[0].abs().min()))
        return func(*args, **(kwargs or {}))


def _smooth(case: Case, seed: int) -> tuple[dict[str, Tensor], Batch]:
    """Weights and a batch at which no ReLU is within FP32 rounding of its kink, so that gradients can be compared."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        start, batch = _drawn(case, generator)
        model = ReferenceJMT(case.config)
        model.load_state_dict(start)
        with torch.no_grad(), NearestToZero() as nearest:
            model(batch.audio, batch.visual, batch.valid)
        if nearest.distance > KINK:
            return start, batch


def _drawn(case: Case, generator: torch.Generator) -> tuple[dict[str, Tensor], Batch]:
    """Weights and a batch, all exact in bfloat16.

    Biases are drawn too, for at their initial 0 they would hide mistakes, but small: they are the same for all clips,
    and where the outputs hardly vary the CCC's gradient is all rounding.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    start = {}
    for name, value in ReferenceJMT(case.config).state_dict().items():
        scale = value.shape[-1] ** -0.5 if value.ndim > 1 else 0.02
        centre = 1.0 if name.endswith(("norm1.weight", "norm2.weight")) else 0.0
        start[name] = (centre + scale * normal(*value.shape)).bfloat16().float()
    shape = (case.batch, case.length)
    valid = torch.ones(shape, dtype=torch.bool)
    if case.masked:
        valid = torch.rand(shape, generator=generator) < 0.7
        valid[0, 0], valid[-1] = True, False
    audio, visual = normal(*shape, case.config.dim), normal(*shape, case.config.visual_dim)
    target = torch.tanh(normal(*shape, 2))
    return start, Batch(audio.bfloat16().float(), visual.bfloat16().float(), target.bfloat16().float(), valid)


def _run(
    model: nn.Module, start: dict[str, Tensor], batch: Batch, precision: str, case: Case, device: torch.device
) -> Measured:
    model.load_state_dict(start)
    model.to(device)
    exact = precision == "fp64"
    data = batch.to(device, torch.float64 if exact else torch.float32)
    low = not exact and precision != "fp32"
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def step() -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        with torch.autocast(device.type, DTYPES[precision] if low else None, enabled=low):
            output = model(data.audio, data.visual, data.valid)
        loss = ccc_loss(output, data.target, data.valid)
        loss.backward()
        return output.detach(), loss.detach()

    output, loss = step()
    gradients = {name: _exact(parameter.grad) for name, parameter in model.named_parameters()}
    weights = {}
    if case.train:
        for _ in range(STEPS):
            optimizer.step()
            step()
        weights = {name: _exact(parameter) for name, parameter in model.named_parameters()}
    return Measured(_exact(output), _exact(loss), gradients, weights)


def _exact(value: Tensor | None) -> Tensor:
    if value is None:
        return torch.tensor(float("nan"), dtype=torch.float64)
    return value.detach().to("cpu", torch.float64, copy=True)


def _prepared(
    model: FusionParameters, start: dict[str, Tensor], batch: Batch, precision: str, runtime: Runtime
) -> Tensor:
    model.load_state_dict(start)
    copied = prepare_fusion(model, Runtime(runtime.device, precision, runtime.compile), len(batch.audio))
    return _exact(copied(batch.audio, batch.visual, batch.valid))


def _compared(
    truth: Measured,
    plain: Measured,
    fast: Measured,
    copied: Tensor,
    start: dict[str, Tensor],
    batch: Batch,
    precision: str,
) -> Iterator[tuple[str, float, float]]:
    """(what, error, bound) of each quantity."""
    unit = torch.finfo(DTYPES[precision]).eps
    size = float(truth.output.abs().max())
    allowed = FACTOR * float((plain.output - truth.output).abs().max()) / size + unit
    yield "output", float((fast.output - truth.output).abs().max()) / size, allowed
    yield "output of the prepared copy", float((copied - truth.output).abs().max()) / size, allowed

    # What errors of that size in the outputs can do to the loss, to first order.
    output = truth.output.clone().requires_grad_()
    (slope,) = torch.autograd.grad(ccc_loss(output, batch.target.double(), batch.valid), output)
    loss = float(truth.loss)
    yield "loss", abs(float(fast.loss) - loss) / loss, allowed * size * float(slope.abs().sum()) / loss + 1e-6

    yield _worst_gradient(truth.gradients, plain.gradients, fast.gradients, unit)
    if truth.weights:
        moved = _distance(truth.weights, {name: value.double() for name, value in start.items()})
        error = _distance(fast.weights, truth.weights) / moved
        # Somewhere in 50 steps a ReLU's input comes so near 0 that rounding switches it: one clip's worth of gradient.
        switched = 1 / float(batch.valid.sum())
        allowed = FACTOR * _distance(plain.weights, truth.weights) / moved + switched
        yield f"weights after {STEPS} steps", error, min(allowed, 1.0)


def _worst_gradient(
    truth: dict[str, Tensor], plain: dict[str, Tensor], fast: dict[str, Tensor], unit: float
) -> tuple[str, float, float]:
    """The gradient nearest to, or furthest over, its bound.

    In a parameter of few elements plain PyTorch can be right by chance, so none is held to less than what nine tenths
    of the parameters keep. That is loose in BF16 and tight in FP32, where a mistake would show as well.
    """

    def relative(found: dict[str, Tensor], name: str) -> float:
        return float((found[name] - truth[name]).norm() / truth[name].norm().clamp(min=1e-30))

    errors = {name: relative(plain, name) for name in truth}
    typical = float(torch.tensor(list(errors.values())).quantile(0.9))
    bounds = {name: FACTOR * max(errors[name], typical) + unit for name in truth}
    found = {name: relative(fast, name) for name in truth}
    over = [name for name in truth if not found[name] <= bounds[name]]
    worst = over[0] if over else max(truth, key=lambda name: found[name] / bounds[name])
    return f"gradients, worst {worst}", found[worst], bounds[worst]


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(torch.stack([(a[name] - b[name]).norm() for name in b]).norm())
