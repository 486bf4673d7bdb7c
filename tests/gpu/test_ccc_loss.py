"""The Triton kernels of the CCC loss against FP64: on a CUDA device, or under Triton's interpreter."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

from jmt_fast.kernels.ccc_loss import kernel as module
from jmt_fast.kernels.ccc_loss.kernel import launch_gradient, launch_statistics
from jmt_fast.kernels.ccc_loss.reference import ccc_gradient, ccc_statistics

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: runs the compiled kernels")
pytestmark = [] if INTERPRETED else [needs_cuda]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def draw(rows: int, dtype: torch.dtype, offset: float = 0.0, dim: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction and target that correlate, and a mask; quantised to `dtype`."""
    base = torch.randn(rows, dim, device=DEVICE)
    x, y = (0.3 * base + 0.2 * torch.randn(rows, dim, device=DEVICE) + offset for _ in range(2))
    return x.to(dtype), y.to(dtype), torch.rand(rows, device=DEVICE) < 0.7


def run(x: Tensor, y: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """(statistics, gradient) from outputs poisoned with NaN."""
    statistics = torch.full((5, x.shape[1]), math.nan, device=DEVICE)
    launch_statistics(x, y, valid, statistics)
    gradient = torch.full(x.shape, math.nan, dtype=x.dtype, device=DEVICE)
    launch_gradient(torch.ones((), device=DEVICE), x, y, valid, statistics, gradient)
    return statistics, gradient


def plain(x: Tensor, y: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """CCC and its loss's gradient as PyTorch computes them in FP32 with two passes."""
    keep = torch.ones(len(x), dtype=torch.bool, device=DEVICE) if valid is None else valid
    a, b = x.float()[keep].requires_grad_(), y.float()[keep]
    da, db = a - a.mean(0), b - b.mean(0)
    ccc = 2 * (da * db).mean(0) / ((da * da).mean(0) + (db * db).mean(0) + (a.mean(0) - b.mean(0)) ** 2)
    gradient = torch.zeros(x.shape, device=DEVICE)
    gradient[keep] = torch.autograd.grad((1 - ccc).sum(), a)[0]
    return ccc.detach(), gradient.to(x.dtype)


def check(x: Tensor, y: Tensor, valid: Tensor | None) -> None:
    truth = ccc_statistics(x, y, valid)
    expected = ccc_gradient(x, y, valid, truth)
    statistics, gradient = run(x, y, valid)
    values, slopes = [], []  # in one order of the rows plain PyTorch may be right by chance
    for _ in range(8):
        order = torch.randperm(len(x), device=DEVICE)
        ccc, slope = plain(x[order], y[order], None if valid is None else valid[order])
        values.append((ccc - truth[3]).abs().max())
        slopes.append((slope - expected[order]).abs().max())
    # Of two rows plain PyTorch's are nearly exact; four roundings follow the sums here.
    unit = 4 * torch.finfo(torch.float32).eps
    assert (statistics[3] - truth[3]).abs().max() <= 2 * max(values) + unit
    rounding = max(torch.finfo(x.dtype).eps, unit) * expected.abs().max()
    mean_x, mean_y, _, value, factor = truth.abs()
    means = factor * (value * mean_x + mean_y) * torch.finfo(torch.float32).eps  # float32 too, taken from the values
    assert (gradient - expected).abs().max() <= 2 * max(slopes) + rounding + means.max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [2, 7, 8, 13, 16, 60, 64, 100, 1000, 1025, 5000])
@pytest.mark.parametrize("masked", [False, True])
def test_against_fp64(rows: int, dtype: torch.dtype, masked: bool) -> None:
    x, y, valid = draw(rows, dtype)
    valid[:2] = True
    check(x, y, valid if masked else None)


@pytest.mark.parametrize("rows", [16, 3000])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_an_offset_of_100_costs_nothing(rows: int, dim: int) -> None:
    x, y, valid = draw(rows, torch.float32, 100.0, dim)
    truth = ccc_statistics(x, y, valid)
    statistics, gradient = run(x, y, valid)
    torch.testing.assert_close(statistics[3].double(), truth[3], rtol=2e-5, atol=2e-6)  # means at 100 have 8e-6 steps
    expected = ccc_gradient(x, y, valid, truth)
    assert (gradient - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("rows", [16, 3000])
def test_constants_and_nothing_valid_give_0(rows: int) -> None:
    x, y, valid = draw(rows, torch.float32)
    flat = torch.full_like(x, 0.1)
    statistics, gradient = run(flat, flat, None)
    assert not statistics[3].any() and not gradient.any()
    statistics, gradient = run(flat, y, None)
    assert not statistics[3].any() and gradient.isfinite().all() and gradient.any()
    statistics, gradient = run(x, y, torch.zeros_like(valid))
    assert not statistics[3].any() and not gradient.any()


@pytest.mark.parametrize("rows", [16, 3000])
def test_nan_shows_only_where_valid(rows: int) -> None:
    x, y, valid = draw(rows, torch.float32)
    valid[0], valid[1:3] = False, True
    truth = run(x, y, valid)
    x[0], y[0] = math.nan, math.inf
    for found, expected in zip(run(x, y, valid), truth, strict=True):
        torch.testing.assert_close(found, expected)
    x[1, 0] = math.nan
    ccc = run(x, y, valid)[0][3]
    assert ccc[0].isnan() and ccc[1].isfinite()


def test_strides() -> None:
    x, y, valid = draw(40, torch.float32)
    expected = run(x, y, valid)
    strided = x.T.contiguous().T, torch.stack((y, y), 1)[:, 0], torch.stack((valid, valid), 1)[:, 0]
    for found, value in zip(run(*strided), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_every_block_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, the last one nearly empty, and one without a valid row."""
    monkeypatch.setattr(module, "ROWS", 32)
    x, y, valid = draw(32 * 40 + 1, torch.float32, 3.0)
    valid[64:96] = False
    check(x, y, valid)
