"""The CCC loss: the public function and its registration with PyTorch.

A `triton_op` with the CPU branch inside its body, like `sigmoid_attention`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from .reference import ccc_gradient, ccc_statistics

HAS_TRITON = find_spec("triton") is not None  # at module level: see `sigmoid_attention`
MAX_ROWS = 0
if HAS_TRITON:
    from ..launch import on_device
    from .kernel import MAX_ROWS, launch_gradient, launch_statistics

__all__ = ["ccc_loss", "ccc_statistics"]

MAX_KERNEL_DIM = 16
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def ccc_loss(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Sum over the dimensions of 1 - CCC, with population (1/n) statistics over all axes but the last.

        CCC = 2 cov(x, y) / (var x + var y + (mean x - mean y)^2)

    A constant series, or fewer than two valid elements, has CCC 0 and a finite gradient.

    Args:
        prediction: (..., D), float16, bfloat16, float32 or float64; any strides.
        target: the same shape and device; its own floating dtype.
        valid: bool (...), true where an element counts. The others may be NaN or infinite, and get gradient 0.

    Returns:
        A scalar in the prediction's dtype, at least float32: 0 at perfect agreement. NaN if a valid element is not
        finite. Gradients flow to prediction and target (once).

    On a CUDA device one launch gives the statistics (two above 1024 elements) and one the gradient; statistics are
    float32 around a pivot, results the same from run to run. Elsewhere, in float64, above 1,048,576 elements or 16
    dimensions it is the plain formula in float64.

    Raises:
        TypeError: an argument is not of the kind or dtype stated here.
        ValueError: a shape or device does not fit.

    Source: Lin, "A Concordance Correlation Coefficient to Evaluate Reproducibility", Biometrics 45, 1989.
    """
    _check(prediction, target, valid)
    dim = prediction.shape[-1]
    mask = None if valid is None else valid.reshape(-1)
    return _forward(prediction.reshape(-1, dim), target.reshape(-1, dim), mask)[0]


def _check(prediction: Tensor, target: Tensor, valid: Tensor | None) -> None:
    for name, x in (("prediction", prediction), ("target", target)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
        if x.dtype not in DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, not {x.dtype}")
    if prediction.shape != target.shape or prediction.ndim < 1:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have one shape")
    if target.device != prediction.device:
        raise ValueError(f"target is on {target.device} but prediction is on {prediction.device}")
    if valid is None:
        return
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        kind = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise TypeError(f"valid must be a bool tensor, not {kind}")
    if valid.shape != prediction.shape[:-1]:
        raise ValueError(f"valid {tuple(valid.shape)} must have the shape {tuple(prediction.shape[:-1])}")
    if valid.device != prediction.device:
        raise ValueError(f"valid is on {valid.device} but prediction is on {prediction.device}")


def _runs_as_kernel(x: Tensor, y: Tensor) -> bool:
    exact = torch.float64 in (x.dtype, y.dtype)
    return x.is_cuda and HAS_TRITON and not exact and 0 < x.shape[0] <= MAX_ROWS and x.shape[1] <= MAX_KERNEL_DIM


@triton_op("jmt_fast::ccc_loss", mutates_args=())
def _forward(x: Tensor, y: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss, and the statistics (5, D) that its gradient needs."""
    if _runs_as_kernel(x, y):
        statistics = torch.empty(5, x.shape[1], dtype=torch.float32, device=x.device)
        with on_device(x.device):
            launch_statistics(x, y, valid, statistics)
    else:
        statistics = ccc_statistics(x, y, valid)
    return (1 - statistics[3]).sum().to(torch.promote_types(x.dtype, torch.float32)), statistics


@triton_op("jmt_fast::ccc_loss_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, y: Tensor, valid: Tensor | None, statistics: Tensor) -> Tensor:
    """The gradient for x (N, D). For that of y exchange the two, and their statistics."""
    if _runs_as_kernel(x, y):
        gradient = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        with on_device(x.device):
            launch_gradient(grad, x, y, valid, statistics, gradient)
        return gradient
    return (grad * ccc_gradient(x, y, valid, statistics)).to(x.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, unused: Tensor) -> tuple[Tensor | None, ...]:
    x, y, valid, statistics = ctx.saved_tensors
    dx = dy = None
    if ctx.needs_input_grad[0]:
        dx = _backward(grad, x, y, valid, statistics)
    if ctx.needs_input_grad[1]:
        mean_x, mean_y, difference, value, factor = statistics
        dy = _backward(grad, y, x, valid, torch.stack((mean_y, mean_x, -difference, value, factor)))
    return dx, dy, None


_forward.register_autograd(_differentiate, setup_context=_save)
