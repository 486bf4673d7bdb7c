"""Triton kernels of the CCC loss and their launchers.

Statistics are float32 and taken around a pivot, the largest value of a block, so that an offset costs nothing and a
constant series varies by exactly 0. Blocks combine as in Chan, Golub and LeVeque (1979), "Updating formulae and a
pairwise algorithm for computing sample variances"; the mean of the difference is kept on its own, because at an offset
of 100 the difference of two float32 means would be off by 1e-5. No atomics: the same numbers from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import wrap_triton
from ..program import Program
from .reference import TINY

ROWS = 1024  # of a block; one program holds it in registers
MOST_BLOCKS = 1024  # that the combining program holds
MAX_ROWS = ROWS * MOST_BLOCKS
SMALLEST = tl.constexpr(TINY)


@triton.jit
def _centred(values, live, count):
    """(mean, deviations) of the columns of a block; deviations are 0 where not live."""
    largest = tl.max(tl.where(live, values, float("-inf")), 1)
    pivot = tl.where(count > 0, largest, 0.0)
    deviation = tl.where(live, values - pivot[:, None], 0.0)
    mean = tl.sum(deviation, 1) / tl.maximum(count, 1.0)
    deviation = tl.where(live, deviation - mean[:, None], 0.0)
    rest = tl.sum(deviation, 1) / tl.maximum(count, 1.0)  # the largest value lies far from the mean: round once more
    return pivot + (mean + rest), tl.where(live, deviation - rest[:, None], 0.0)


@triton.jit
def _finish(out, columns, inside, count, mean_x, mean_y, difference, square, cross, DIM: tl.constexpr):
    """Store mean x, mean y, mean difference, CCC and 2 / (n spread)."""
    count = tl.maximum(count, 1.0)
    spread = square / count + difference * difference
    still = spread <= SMALLEST  # false for NaN, which must show
    spread = tl.where(still, 1.0, spread)
    tl.store(out + columns, mean_x, mask=inside)
    tl.store(out + DIM + columns, mean_y, mask=inside)
    tl.store(out + 2 * DIM + columns, difference, mask=inside)
    tl.store(out + 3 * DIM + columns, 2.0 * cross / count / spread, mask=inside)
    tl.store(out + 4 * DIM + columns, 2.0 / (count * spread), mask=inside)


@triton.jit
def statistics(
    x, y, valid, out, xn, xd, yn, yd, valid_n, rows,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_VALID: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK rows. WHOLE: they are all, and `out` (5, D) is finished; else it is a part (6, D)."""
    block = tl.program_id(0)
    numbers = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDTH)
    inside = columns < DIM
    live = numbers < rows
    if HAS_VALID:
        live = live & (tl.load(valid + numbers * valid_n, mask=live, other=0) != 0)
    count = tl.sum(live.to(tl.float32), 0)
    live = live[None, :] & inside[:, None]
    x_rows = tl.load(x + numbers[None, :] * xn + columns[:, None] * xd, mask=live, other=0.0).to(tl.float32)
    y_rows = tl.load(y + numbers[None, :] * yn + columns[:, None] * yd, mask=live, other=0.0).to(tl.float32)
    difference = tl.sum(x_rows - y_rows, 1) / tl.maximum(count, 1.0)
    mean_x, dx = _centred(x_rows, live, count)
    mean_y, dy = _centred(y_rows, live, count)
    square, cross = tl.sum(dx * dx + dy * dy, 1), tl.sum(dx * dy, 1)
    if WHOLE:
        _finish(out, columns, inside, count, mean_x, mean_y, difference, square, cross, DIM)
    else:
        part = out + block * 6 * DIM + columns
        tl.store(part, tl.zeros((WIDTH,), tl.float32) + count, mask=inside)
        tl.store(part + DIM, mean_x, mask=inside)
        tl.store(part + 2 * DIM, mean_y, mask=inside)
        tl.store(part + 3 * DIM, difference, mask=inside)
        tl.store(part + 4 * DIM, square, mask=inside)
        tl.store(part + 5 * DIM, cross, mask=inside)


@triton.jit
def _overall(means, weights, total):
    """(mean, deviations of the blocks' means from it), around the largest so that equal means deviate by exactly 0."""
    pivot = tl.max(tl.where(weights > 0, means, float("-inf")), 1)
    pivot = tl.where(total > 0, pivot, 0.0)
    deviation = tl.where(weights > 0, means - pivot[:, None], 0.0)
    mean = tl.sum(weights * deviation, 1) / tl.maximum(total, 1.0)
    return pivot + mean, tl.where(weights > 0, deviation - mean[:, None], 0.0)


@triton.jit
def combine(parts, out, blocks, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr):
    """One program: the parts (blocks, 6, D) of all blocks -> `out` (5, D)."""
    numbers, columns = tl.arange(0, BLOCKS), tl.arange(0, WIDTH)
    inside = columns < DIM
    part = parts + numbers[None, :] * 6 * DIM + columns[:, None]
    live = (numbers < blocks)[None, :] & inside[:, None]
    weights = tl.load(part, mask=live, other=0.0)
    total = tl.sum(weights, 1)
    mean_x, dx = _overall(tl.load(part + DIM, mask=live, other=0.0), weights, total)
    mean_y, dy = _overall(tl.load(part + 2 * DIM, mask=live, other=0.0), weights, total)
    difference = tl.sum(weights * tl.load(part + 3 * DIM, mask=live, other=0.0), 1) / tl.maximum(total, 1.0)
    square = tl.sum(tl.load(part + 4 * DIM, mask=live, other=0.0) + weights * (dx * dx + dy * dy), 1)
    cross = tl.sum(tl.load(part + 5 * DIM, mask=live, other=0.0) + weights * dx * dy, 1)
    _finish(out, columns, inside, total, mean_x, mean_y, difference, square, cross, DIM)


@triton.jit
def gradient(
    grad, x, y, valid, stats, out, xn, xd, yn, yd, valid_n, on, od, rows,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, HAS_VALID: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK rows of the gradient with respect to x; see `ccc_gradient`."""
    numbers = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDTH)
    inside = columns < DIM
    exists = numbers < rows
    live = exists
    if HAS_VALID:
        live = live & (tl.load(valid + numbers * valid_n, mask=exists, other=0) != 0)
    live = live[None, :] & inside[:, None]
    mean_x = tl.load(stats + columns, mask=inside, other=0.0)[:, None]
    mean_y = tl.load(stats + DIM + columns, mask=inside, other=0.0)[:, None]
    difference = tl.load(stats + 2 * DIM + columns, mask=inside, other=0.0)[:, None]
    value = tl.load(stats + 3 * DIM + columns, mask=inside, other=0.0)[:, None]
    factor = tl.load(stats + 4 * DIM + columns, mask=inside, other=0.0)[:, None] * tl.load(grad).to(tl.float32)
    x_rows = tl.load(x + numbers[None, :] * xn + columns[:, None] * xd, mask=live, other=0.0).to(tl.float32)
    y_rows = tl.load(y + numbers[None, :] * yn + columns[:, None] * yd, mask=live, other=0.0).to(tl.float32)
    result = factor * (value * (x_rows - mean_x + difference) - (y_rows - mean_y))
    result = tl.where(live, result, 0.0).to(out.dtype.element_ty)
    tl.store(out + numbers[None, :] * on + columns[:, None] * od, result, mask=exists[None, :] & inside[:, None])


def launch_statistics(x: Tensor, y: Tensor, valid: Tensor | None, out: Tensor) -> None:
    """Fill `out` (5, D) float32 from x and y (N, D) and valid (N,), 0 < N <= MAX_ROWS; any strides."""
    rows, dim = x.shape[0], int(x.shape[1])
    constants = _constants(rows, dim, valid)
    block = int(constants["BLOCK"])
    blocks = triton.cdiv(rows, block)
    whole = rows <= block
    parts = out if whole else torch.empty(blocks, 6, dim, dtype=torch.float32, device=x.device)
    wrap_triton(statistics)[(blocks,)](
        x, y, x if valid is None else valid, parts, *x.stride(), *y.stride(), *_stride(valid), rows,
        WHOLE=whole, **constants,
    )  # fmt: skip
    if not whole:
        many = 16
        while many < blocks:  # compares only: the number of rows may be symbolic under the compiler
            many *= 2
        wrap_triton(combine)[(1,)](parts, out, blocks, DIM=dim, WIDTH=constants["WIDTH"], BLOCKS=many, num_warps=4)


def launch_gradient(grad: Tensor, x: Tensor, y: Tensor, valid: Tensor | None, stats: Tensor, out: Tensor) -> None:
    """Fill `out` (N, D) with the gradient for x, from the scalar `grad` and the statistics (5, D)."""
    rows, dim = x.shape[0], int(x.shape[1])
    constants = _constants(rows, dim, valid)
    wrap_triton(gradient)[(triton.cdiv(rows, constants["BLOCK"]),)](
        grad, x, y, x if valid is None else valid, stats, out, *x.stride(), *y.stride(), *_stride(valid), *out.stride(),
        rows, **constants,
    )  # fmt: skip


def _stride(valid: Tensor | None) -> tuple[int, ...]:
    return (0,) if valid is None else valid.stride()


def _constants(rows: int, dim: int, valid: Tensor | None) -> dict[str, int | bool]:
    block = ROWS
    while block > 16 and rows <= block // 2:
        block //= 2
    return {
        "DIM": dim, "WIDTH": triton.next_power_of_2(dim), "BLOCK": block, "HAS_VALID": valid is not None,
        "num_warps": 4,
    }  # fmt: skip


def programs(arch: int) -> Iterator[Program]:
    """What the launchers use for two dimensions at 16 and at 65,536 rows; the same on every GPU generation."""
    pointers = {"x": "*bf16", "y": "*bf16", "valid": "*i1"}
    unit = {"xd": 1, "yd": 1, "valid_n": 1}
    strides = {"xn": "i32", "yn": "i32"}
    for rows, block in ((16, 16), (65536, ROWS)):
        constants = {"DIM": 2, "WIDTH": 2, "BLOCK": block, "HAS_VALID": True}
        shape = f"{rows} x 2"
        aligned = frozenset({"x", "y", "valid", "out", "stats", "grad", "parts"})
        types = {**pointers, "out": "*fp32", **strides, "rows": "i32"}
        whole = {**unit, **constants, "WHOLE": rows <= block}
        yield Program("ccc_loss", "statistics", "bf16", shape, statistics, types, whole, aligned, 4, 1, matrix=False)
        if rows > block:
            yield Program(
                "ccc_loss", "combine", "fp32", shape, combine, {"parts": "*fp32", "out": "*fp32", "blocks": "i32"},
                {"DIM": 2, "WIDTH": 2, "BLOCKS": 64}, aligned, 4, 1, matrix=False,
            )  # fmt: skip
        types = {"grad": "*fp32", **pointers, "stats": "*fp32", "out": "*bf16", **strides, "on": "i32", "rows": "i32"}
        constants = {**unit, "od": 1, **constants}
        yield Program("ccc_loss", "gradient", "bf16", shape, gradient, types, constants, aligned, 4, 1, matrix=False)
