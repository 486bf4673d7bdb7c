"""Launchers of the Triton kernels of fused attention, and the settings they launch with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import triton
from torch import Tensor

from ..launch import wrap_triton
from ..program import Program
from .device import attend, attend_backward, project, project_attend

MAX_PAIRS, MAX_NUMBERS = 15, 16  # each number of a pair takes 4 bits of one signed 64-bit integer
PROGRAMS = 128  # below about one program a multiprocessor, smaller tiles are faster


@dataclass(frozen=True)
class Launch:
    """Settings of one launch: rows of a tile, columns a step of its loops reads, warps of a program, stages of loads.

    `columns` is the width of a tile of `project`; the other kernels' tiles are as wide as they must be.
    """

    rows: int
    chunk: int
    warps: int
    stages: int
    columns: int = 0


def fused_rows(width: int, itemsize: int) -> int:
    """Rows of the largest tile of `project_attend` at a padded head width; 0 where none stays in registers.

    Queries, keys, values (rows, width) and the scores are held in FP32. At 256 a tile of 32 rows spills already, and
    shorter ones would read the weights too often.
    """
    by_width = {16: 64, 32: 64, 64: 32, 128: 16} if itemsize == 4 else {16: 128, 32: 128, 64: 128, 128: 64}
    return by_width.get(width, 0)


def launch_settings(kernel: str, itemsize: int, width: int, tokens: int, length: int, programs: int) -> Launch | None:
    """Settings of one of KERNELS, by heuristic; None if `project_attend` cannot run.

    `width` is the head's, padded; `programs` is how many programs each tile means. A tile must hold a whole sequence
    of `length`, and grows as long as there are tokens to fill it and programs enough for all multiprocessors. All fit
    the 99 KiB of the smallest GPUs. With 16-bit operands no loop spills anywhere, and nothing at all on sm_90
    (`jmt_fast.kernels.aot`).
    """
    single = itemsize == 4
    largest = {"project_attend": fused_rows(width, itemsize), "project": 64 if single else 128}.get(kernel, 64)
    rows, least = 16, 1 if kernel == "project" else length
    while rows < least or (rows < min(largest, tokens) and programs * triton.cdiv(tokens, rows) > PROGRAMS):
        rows *= 2
    if kernel == "project_attend":
        few = rows == 16 and width <= 64 and not single  # nothing but latency: half as many steps
        return None if rows > largest else Launch(rows, 64 if few else 32, 4 if rows * width <= 4096 else 8, 2)
    if kernel == "project":
        wide = rows == 128
        return Launch(rows, 32 if single else 64, 8 if wide else 4, 2 if single else 3, 128 if wide else 64)
    warps = 8 if rows == 128 else 4
    if kernel == "attend":
        return Launch(rows, min(width, 32 if single else 64), warps, 1 if single else 2)
    chunk = 64 if rows < 64 and not single else 32
    return Launch(rows, min(width, chunk), warps, 1 if single or rows >= 64 else 2)


def padded(width: int) -> int:
    """A power of two, and at least the 16 that a matrix instruction needs."""
    return max(16, triton.next_power_of_2(width))


def launch_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, offset: Tensor | None, valid: Tensor | None,
    query: Sequence[int], key: Sequence[int], choice: Sequence[int], heads: int, scale: float, shift: float,
    softmax: bool, by_key: bool, out: Tensor, qkv: Tensor | None,
) -> None:  # fmt: skip
    """Fill `out` (B, L, P * D) and, if given, `qkv` (P, B * L, 3D); both contiguous and not empty."""
    _, batch, length, dim = x.shape
    dim, pairs, width, itemsize = int(dim), len(query), padded(int(dim) // heads), x.element_size()
    weight, bias, valid = weight.contiguous(), _contiguous(bias), _contiguous(valid)
    codes = {"QUERY": _code(query), "KEY": _code(key), "CHOICE": _code(choice), "HAS_BIAS": bias is not None}
    attention = {
        "DIM": dim, "HEADS": heads, "HAS_OFFSET": offset is not None, "HAS_VALID": valid is not None,
        "SOFTMAX": softmax, "BY_KEY": by_key,
    }  # fmt: skip
    offset = _contiguous(offset)
    launch = launch_settings("project_attend", itemsize, width, batch * length, length, pairs * heads)
    if launch is not None:
        tiles = triton.cdiv(batch, launch.rows // length)
        wrap_triton(project_attend)[(tiles * pairs * heads,)](
            x, weight, _or(bias, x), _or(offset, x), _or(valid, x), out, _or(qkv, out), *x.stride(),
            pairs, batch, length, scale, shift, **codes, **attention, WIDTH=width, ROWS=launch.rows,
            CHUNK=launch.chunk, SAVE=qkv is not None, num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
        return
    tokens = batch * length
    if qkv is None:
        qkv = x.new_empty(pairs, tokens, 3 * dim)
    launch = launch_settings("project", itemsize, width, tokens, length, pairs * 3 * triton.cdiv(dim, 64))
    assert launch is not None
    blocks = triton.cdiv(tokens, launch.rows) * pairs * 3 * triton.cdiv(dim, launch.columns)
    wrap_triton(project)[(blocks,)](
        x, weight, _or(bias, x), _or(valid, x), qkv, *x.stride(), pairs, tokens, length,
        **codes, DIM=dim, ROWS=launch.rows, COLUMNS=launch.columns, CHUNK=launch.chunk, HAS_VALID=valid is not None,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    launch = launch_settings("attend", itemsize, width, tokens, length, pairs * heads)
    assert launch is not None
    wrap_triton(attend)[(triton.cdiv(batch, launch.rows // length) * pairs * heads,)](
        qkv, _or(offset, x), _or(valid, x), out, pairs, batch, length, scale, shift, **attention,
        ROWS=launch.rows, CHUNK=launch.chunk, num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip


def launch_attend_backward(
    grad: Tensor, qkv: Tensor, offset: Tensor | None, valid: Tensor | None, heads: int, scale: float, shift: float,
    softmax: bool, by_key: bool, dqkv: Tensor,
) -> None:  # fmt: skip
    """Fill `dqkv` from contiguous `qkv` (P, B * L, 3D) and grad (B, L, P * D), which is not empty."""
    batch, length = grad.shape[:2]
    dim, pairs = int(qkv.shape[2]) // 3, len(qkv)
    width = padded(dim // heads)
    launch = launch_settings("attend_backward", qkv.element_size(), width, batch * length, length, pairs * heads)
    assert launch is not None
    wrap_triton(attend_backward)[(triton.cdiv(batch, launch.rows // length) * pairs * heads,)](
        qkv, grad.contiguous(), _or(_contiguous(offset), qkv), _or(_contiguous(valid), qkv), dqkv,
        pairs, batch, length, scale, shift, DIM=dim, HEADS=heads, ROWS=launch.rows, CHUNK=launch.chunk,
        HAS_OFFSET=offset is not None, HAS_VALID=valid is not None, SOFTMAX=softmax, BY_KEY=by_key,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip


def _code(numbers: Sequence[int]) -> int:
    return sum(number << 4 * pair for pair, number in enumerate(numbers))


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """What is absent is never read, and `other` stands in for its pointer."""
    return other if tensor is None else tensor


KERNELS = {
    "project_attend": project_attend,
    "project": project,
    "attend": attend,
    "attend_backward": attend_backward,
}
SHAPES = (  # (B, L, heads) at D = 512: small, middling and large batches, and long sequences
    (2, 8, 1), (4096, 8, 1), (16, 128, 1), (64, 60, 2), (2, 8, 2), (4096, 8, 2), (64, 8, 4), (4096, 8, 4),
    (2, 8, 8), (4096, 16, 8), (16, 100, 8),
)  # fmt: skip
CROSS = ([1, 0, 2, 1, 2, 0], [0, 1, 1, 2, 0, 2], [0, 1, 2, 3, 4, 5])


def programs(arch: int) -> Iterator[Program]:
    """What the launchers compile at SHAPES for JMT's six cross-attentions, bare and with all options."""
    seen = set()
    for batch, length, heads in SHAPES:
        for dtype in ("bf16", "fp32"):
            for full in (False, True):
                for kernel in KERNELS if dtype != "fp32" or length <= 64 else ():
                    found = program(kernel, dtype, batch, length, 512, heads, full)
                    if found is not None and (key := (kernel, dtype, found.shape)) not in seen:
                        seen.add(key)
                        yield found


def program(kernel: str, dtype: str, batch: int, length: int, dim: int, heads: int, full: bool) -> Program | None:
    """One program of KERNELS, if that call launches it; `full`: softmax, with offset, mask and saved qkv."""
    itemsize, width = 4 if dtype == "fp32" else 2, padded(dim // heads)
    pairs = len(CROSS[0])
    each = pairs * 3 * triton.cdiv(dim, 64) if kernel == "project" else pairs * heads
    one = launch_settings("project_attend", itemsize, width, batch * length, length, pairs * heads)
    if kernel in ("project_attend", "project", "attend") and (one is None) == (kernel == "project_attend"):
        return None
    launch = launch_settings(kernel, itemsize, width, batch * length, length, each)
    assert launch is not None
    query, key, choice = map(_code, CROSS)
    every: dict[str, Any] = {
        "QUERY": query, "KEY": key, "CHOICE": choice, "DIM": dim, "HEADS": heads, "WIDTH": width,
        "ROWS": launch.rows, "COLUMNS": launch.columns, "CHUNK": launch.chunk, "HAS_BIAS": True, "HAS_OFFSET": full,
        "HAS_VALID": full, "SOFTMAX": full, "BY_KEY": True, "SAVE": full, "xd": 1,
    }  # fmt: skip
    function = KERNELS[kernel]
    constants = {name: every[name] for name in function.arg_names if name in every}
    types = {
        name: {"offset": "*fp32", "valid": "*i1", "scale": "fp32", "shift": "fp32"}.get(name, f"*{dtype}")
        for name in function.arg_names
        if name not in constants
    }
    types |= dict.fromkeys({"xs", "xb", "xl", "pairs", "batch", "length", "tokens"} & types.keys(), "i32")
    aligned = frozenset(name for name in types if name not in ("scale", "shift", "pairs", "batch", "length", "tokens"))
    shape = f"D {dim} H {heads} {launch.rows}x{launch.columns or width} by {launch.chunk} {'full' if full else 'bare'}"
    return Program(
        "fused_attention", kernel, dtype, shape, function, types, constants, aligned, launch.warps, launch.stages,
        matrix=dtype != "fp32",
    )  # fmt: skip
