"""Measures the fast fusion model against the reference on this machine, in every precision it will be used in.

Inputs and weights are quantised first, so that all precisions start from the same numbers. The truth is the reference
in float64. The fast model's error may be at most twice that of plain PyTorch, which is the reference's arithmetic run
in the same precision, plus one rounding unit. Both errors are taken over several draws of weights and inputs: in one
draw either can be lucky, where a gradient has few elements (a head's last bias is a sum over clips that nearly cancels)
or one ReLU switches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jmt_fast.config import JMTConfig
from jmt_fast.models import JMT, ReferenceJMT, prepare_fusion
from jmt_fast.models.parameters import FusionModel
from jmt_fast.runtime import DTYPES, Runtime
from jmt_fast.training.loss import ccc_loss

Progress = Callable[[int, int, str], None]

FACTOR = 2.0
DRAWS = 4
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
    # Unscaled, it does not train at this rate: 50 steps blow FP32's rounding up to 2% of the way, in plain PyTorch too.
    "literal, 7 clips": Case(_small("literal"), length=7),
    "attention only, 7 clips": Case(_small("literal", scale="rsqrt", bias="-log_n"), length=7, train=True),
    "abaw6, masked": Case(_small("abaw6"), masked=True, train=True),
    "abaw6, self_attention": Case(_small("abaw6", output="self_attention"), length=1, batch=60),
    "self_attention, masked": Case(_small("jmt", output="self_attention", layers=2), masked=True),
    "2 heads, 16 clips": Case(_small("jmt", heads=2), length=16, masked=True),
    "4 heads, 13 clips": Case(_small("jmt", heads=4, orientation="query"), length=13, masked=True),
    "8 heads, softmax": Case(_small("abaw6", heads=8, cross_weights="pair"), masked=True),
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
    moved: dict[str, Tensor]  # by how much STEPS steps changed each weight; empty where the case does not train


def verify(
    runtime: Runtime,
    progress: Progress = lambda done, total, note: None,
    seed: int = 0,
    model: type[FusionModel] = JMT,
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
    rows: list[Row] = []
    done, total = 0, len(CASES) * len(precisions)
    for name, case in CASES.items():
        generator = torch.Generator().manual_seed(seed)
        draws = [_smooth(case, generator) for _ in range(DRAWS)]
        exact = ReferenceJMT(case.config).double()
        truth = [_run(exact, *draw, "fp64", case, torch.device("cpu")) for draw in draws]
        for precision in precisions:
            progress(done, total, f"{name}, {precision}")
            plain = [_run(Plain(case.config), *draw, precision, case, runtime.device) for draw in draws]
            fast = [_run(model(case.config), *draw, precision, case, runtime.device) for draw in draws]
            copied = [_prepared(model(case.config), *draw, precision, runtime) for draw in draws]
            compared = _compared(truth, plain, fast, copied, [batch for _, batch in draws], precision)
            rows.extend(Row(name, what, precision, error, bound) for what, error, bound in compared)
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


def _smooth(case: Case, generator: torch.Generator) -> tuple[dict[str, Tensor], Batch]:
    """Weights and a batch at which no ReLU is within FP32 rounding of its kink, so that gradients can be compared."""
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
    model: FusionModel, start: dict[str, Tensor], batch: Batch, precision: str, case: Case, device: torch.device
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
    gradients = {name: _exact(gradient) for name, gradient in model.named_gradients().items()}
    moved = {}
    if case.train:
        for _ in range(STEPS):
            optimizer.step()
            step()
        moved = {name: _exact(value) - start[name] for name, value in model.state_dict().items()}
    return Measured(_exact(output), _exact(loss), gradients, moved)


def _exact(value: Tensor | None) -> Tensor:
    if value is None:
        return torch.tensor(float("nan"), dtype=torch.float64)
    return value.detach().to("cpu", torch.float64, copy=True)


def _prepared(model: FusionModel, start: dict[str, Tensor], batch: Batch, precision: str, runtime: Runtime) -> Tensor:
    model.load_state_dict(start)
    copied = prepare_fusion(model, Runtime(runtime.device, precision, runtime.compile), len(batch.audio))
    return _exact(copied(batch.audio, batch.visual, batch.valid))


def _compared(
    truth: list[Measured],
    plain: list[Measured],
    fast: list[Measured],
    copied: list[Tensor],
    batches: list[Batch],
    precision: str,
) -> Iterator[tuple[str, float, float]]:
    """(what, error, bound) of each quantity, over all draws."""
    unit = torch.finfo(DTYPES[precision]).eps

    def worst(outputs: list[Tensor]) -> float:
        errors = [(found - true.output).abs().max() for found, true in zip(outputs, truth, strict=True)]
        return float(torch.stack(errors).max())  # NaN if any is

    size = max(float(true.output.abs().max()) for true in truth)
    allowed = FACTOR * worst([each.output for each in plain]) + unit * size
    yield "output", worst([each.output for each in fast]) / size, allowed / size
    yield "output of the prepared copy", worst(copied) / size, allowed / size

    errors, bounds = [], []
    for true, found, batch in zip(truth, fast, batches, strict=True):
        # What errors of that size in the outputs can do to the loss, to first order.
        output = true.output.clone().requires_grad_()
        (slope,) = torch.autograd.grad(ccc_loss(output, batch.target.double(), batch.valid), output)
        errors.append(abs(float(found.loss - true.loss)) / float(true.loss))
        bounds.append(allowed * float(slope.abs().sum()) / float(true.loss) + 1e-6)
    yield "loss", *max(zip(errors, bounds, strict=True), key=lambda pair: _over(*pair))

    exact, own, ours = ([each.gradients for each in runs] for runs in (truth, plain, fast))
    yield _worst_gradient(exact, own, ours, unit)
    if truth[0].moved:
        moved = [[_together(each.moved) for each in runs] for runs in (truth, plain, fast)]
        own_error, error = (_relative(found, moved[0]) for found in moved[1:])
        yield f"weights after {STEPS} steps", error, FACTOR * own_error + unit


def _together(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def _worst_gradient(
    truth: list[dict[str, Tensor]], plain: list[dict[str, Tensor]], fast: list[dict[str, Tensor]], unit: float
) -> tuple[str, float, float]:
    """The gradient nearest to, or furthest over, its bound.

    In a parameter of few elements plain PyTorch can be right by chance, so none is held to less than what nine tenths
    of the parameters keep. That is loose in BF16 and tight in FP32, where a mistake would show as well.
    """

    def relative(found: list[dict[str, Tensor]], name: str) -> float:
        return _relative([each[name] for each in found], [each[name] for each in truth])

    errors = {name: relative(plain, name) for name in truth[0]}
    typical = float(torch.tensor(list(errors.values())).quantile(0.9))
    bounds = {name: FACTOR * max(errors[name], typical) + unit for name in errors}
    found = {name: relative(fast, name) for name in errors}
    worst = max(errors, key=lambda name: _over(found[name], bounds[name]))
    return f"gradients, worst {worst}", found[worst], bounds[worst]


def _over(error: float, bound: float) -> float:
    """How many times the bound; infinite for NaN."""
    return float("inf") if math.isnan(error) else error / bound


def _relative(found: list[Tensor], truth: list[Tensor]) -> float:
    """Size of the error against that of the true value, each over all draws."""
    error = torch.stack([(one - other).norm() for one, other in zip(found, truth, strict=True)]).norm()
    return float(error / torch.stack([other.norm() for other in truth]).norm().clamp(min=1e-30))
