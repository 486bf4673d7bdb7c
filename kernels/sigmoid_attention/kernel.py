"""Launchers of the Triton kernels of sigmoid attention, and the settings they launch with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..launch import on_device, wrap_triton
from ..program import Program
from .device import (
    INTERPRETED,
    sigmoid_attention_backward_keys,
    sigmoid_attention_backward_queries,
    sigmoid_attention_backward_whole,
    sigmoid_attention_forward,
)

# The least number as bias under which `tanh.approx` serves. Its relative error of 2^-11 puts P off by up to
# 2^-12 |tanh|, which at a score of 0 must stay within half a unit of P's own rounding.
TANH_BIAS = {torch.bfloat16: -2.0, torch.float16: -1.0}
_REACH = 2**31 // 128  # the largest tile has 128 rows; of its columns there are 512
FEWEST = 512  # elements of a 16-bit tile that a warp is worth
SPLIT_DIM = 256  # above it the registers hold the sums of dK or those of dV, not both


@dataclass(frozen=True)
class Launch:
    """Settings of one launch: rows of a tile, warps of a program, stages of its loads."""

    queries: int
    keys: int
    warps: int
    stages: int


def launch_settings(
    kernel: str, itemsize: int, dim: int, len_q: int, len_k: int, arch: int, masked: bool = False
) -> Launch:
    """Settings of a kernel (a name in KERNELS) on a GPU generation (90 for sm_90), by heuristic.

    Tiles shrink as a row (`dim * itemsize` bytes) grows. Those for 16-bit operands come in two sizes: one for the
    227 KiB of shared memory and the wide matrix instructions of sm_90 and sm_100, one for the 99 KiB of sm_86, sm_89
    and sm_120, which sm_80 takes too. `masked` (a mask of keys is given) needs registers of its own. With 16-bit
    operands no loop spills (`jmt_fast.kernels.aot` shows it). No tile is longer than its sequence needs, and
    a program of short tiles has fewer warps: more of them then load at a time.
    """
    kind = "fp32" if itemsize == 4 else "large" if arch // 10 in (9, 10) else "small"
    limit, launch = next(setting for setting in _SETTINGS[kernel, kind] if dim <= setting[0])
    if masked:
        launch = _MASKED.get((kernel, kind, limit), launch)
    queries, keys, warps = _shortened(launch.queries, len_q), _shortened(launch.keys, len_k), launch.warps
    if itemsize == 2:
        while warps > 1 and max(queries, keys) * tile_width(dim) < FEWEST * warps:
            warps //= 2
    return replace(launch, queries=queries, keys=keys, warps=warps)


def tile_width(dim: int) -> int:
    """D padded to a power of two, and to at least the 16 that a matrix instruction needs."""
    return max(16, triton.next_power_of_2(dim))


def within_reach(x: Tensor) -> Tensor:
    """`x` (B, H, L, D), or a contiguous copy if rows or columns lie so far apart that 32 bits cannot number a tile's
    elements. Only compares strides, which may be symbolic under compile."""
    return x if x.stride(2) < _REACH // 2 and x.stride(3) < _REACH // 8 else x.contiguous()


def _shortened(rows: int, length: int) -> int:
    """Halve a tile while it still holds the sequence. Only compares `length`, which may be symbolic under compile."""
    while rows > 16 and length <= rows // 2:
        rows //= 2
    return rows


# (kernel, kind): settings by the largest D they serve. A product sums over at least 16 (Triton 3.6 refuses fewer): over
# a tile's queries in the pass over keys, over its keys in the pass over queries.
_SETTINGS = {
    ("forward", "large"): (
        (64, Launch(128, 128, 8, 3)), (128, Launch(128, 128, 8, 2)), (256, Launch(128, 64, 8, 2)),
        (512, Launch(64, 32, 8, 2)),
    ),
    ("forward", "small"): (
        (64, Launch(128, 64, 8, 3)), (128, Launch(128, 32, 8, 2)), (256, Launch(64, 32, 8, 2)),
        (512, Launch(32, 16, 8, 2)),
    ),
    ("forward", "fp32"): (
        (64, Launch(64, 32, 8, 1)), (128, Launch(32, 16, 8, 1)), (512, Launch(16, 16, 8, 1)),
    ),
    ("backward_keys", "large"): (
        (128, Launch(64, 128, 8, 2)), (256, Launch(32, 64, 8, 2)),
        (512, Launch(16, 64, 8, 2)),
    ),
    ("backward_keys", "small"): (
        (64, Launch(64, 64, 8, 2)), (128, Launch(32, 64, 8, 2)), (256, Launch(16, 32, 8, 1)),
        (512, Launch(16, 16, 8, 1)),
    ),
    ("backward_keys", "fp32"): (
        (64, Launch(32, 32, 8, 1)), (256, Launch(16, 16, 8, 1)), (512, Launch(16, 8, 8, 1)),
    ),
    ("backward_queries", "large"): (
        (128, Launch(128, 64, 8, 2)), (256, Launch(64, 64, 8, 2)), (512, Launch(64, 16, 8, 2)),
    ),
    ("backward_queries", "small"): (
        (64, Launch(128, 64, 8, 2)), (128, Launch(64, 64, 8, 2)), (256, Launch(32, 32, 4, 1)),
        (512, Launch(16, 16, 8, 1)),
    ),
    ("backward_queries", "fp32"): (
        (64, Launch(32, 32, 8, 1)), (256, Launch(16, 16, 8, 1)), (512, Launch(8, 16, 8, 1)),
    ),
    ("backward_whole", "large"): ((128, Launch(16, 16, 4, 1)), (512, Launch(16, 16, 8, 1))),
    ("backward_whole", "small"): ((128, Launch(16, 16, 4, 1)), (512, Launch(16, 16, 8, 1))),
    ("backward_whole", "fp32"): (
        (128, Launch(16, 16, 4, 1)), (256, Launch(16, 16, 8, 1)), (512, Launch(0, 0, 8, 1)),  # 128 KiB do not fit
    ),
}  # fmt: skip
# The same, by that largest D too, where a mask of keys is given and the setting above would spill.
_MASKED = {
    ("forward", "large", 128): Launch(128, 64, 8, 2),
    ("forward", "large", 256): Launch(128, 32, 8, 2),
    ("forward", "large", 512): Launch(64, 16, 8, 2),
    ("backward_queries", "small", 64): Launch(64, 64, 8, 2),
}


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, valid: Tensor | None, scale: float, shift: float, out: Tensor
) -> None:
    """Fill `out` (B, H, Lq, D). All tensors of any strides that are `within_reach`; no length may be 0.

    `specialised.launch_forward` does the same for fewer cases, in another way that no GPU has timed yet.
    """
    batch, heads, len_q, len_k, dim = *q.shape[:3], k.shape[2], int(q.shape[3])
    launch = launch_settings("forward", q.element_size(), dim, len_q, len_k, arch_of(q.device), valid is not None)
    wrap_triton(sigmoid_attention_forward)[(batch * heads * triton.cdiv(len_q, launch.queries),)](
        q, k, v, out, *_options(q, bias, valid),
        *q.stride(), *k.stride(), *v.stride(), *out.stride(), *_valid_strides(valid),
        heads, len_q, len_k, scale, shift, **_constants(launch, q, bias, valid, shift),
    )  # fmt: skip


def launch_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, valid: Tensor | None, scale: float,
    shift: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """Fill `dq`, `dk` and `dv` from `grad` (B, H, Lq, D): deterministic passes, or a single one if a tile holds it all.

    One pass over key tiles gives dK and dV (two passes, one for each, above D = SPLIT_DIM), one over query tiles dQ.
    """
    batch, heads, len_q, len_k, dim = *q.shape[:3], k.shape[2], int(q.shape[3])
    inputs = (*q.stride(), *k.stride(), *v.stride(), *grad.stride())
    scalars = (*_valid_strides(valid), heads, len_q, len_k, scale, shift)
    about = (q.element_size(), dim, len_q, len_k, arch_of(q.device), valid is not None)

    launch = launch_settings("backward_whole", *about)
    if len_q <= launch.queries and len_k <= launch.keys:
        wrap_triton(sigmoid_attention_backward_whole)[(batch * heads,)](
            q, k, v, grad, dq, dk, dv, *_options(q, bias, valid),
            *inputs, *dq.stride(), *dk.stride(), *dv.stride(), *scalars,
            **_constants(launch, q, bias, valid, shift),
        )  # fmt: skip
        return
    launch = launch_settings("backward_keys", *about)
    for part in _parts(dim):
        wrap_triton(sigmoid_attention_backward_keys)[(batch * heads * triton.cdiv(len_k, launch.keys),)](
            q, k, v, grad, dk, dv, *_options(q, bias, valid), *inputs, *dk.stride(), *dv.stride(), *scalars,
            **_constants(launch, q, bias, valid, shift), PART=part,
        )  # fmt: skip
    launch = launch_settings("backward_queries", *about)
    wrap_triton(sigmoid_attention_backward_queries)[(batch * heads * triton.cdiv(len_q, launch.queries),)](
        q, k, v, grad, dq, *_options(q, bias, valid),
        *inputs, *dq.stride(), *scalars, **_constants(launch, q, bias, valid, shift),
    )  # fmt: skip


def _parts(dim: int) -> tuple[int, ...]:
    """PART of each key pass."""
    return (0,) if dim <= SPLIT_DIM else (1, 2)


@cache
def arch_of(device: torch.device) -> int:
    """90 for sm_90: asked once a device, as the answer takes longer than a small launch."""
    with on_device(device):
        return 80 if INTERPRETED.value else triton.runtime.driver.active.get_current_target().arch


def _options(q: Tensor, bias: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """(bias, valid) for the kernel; what is absent is never read, and `q` stands in for its pointer."""
    return (q if bias is None else bias.contiguous()), (q if valid is None else valid)


def _valid_strides(valid: Tensor | None) -> tuple[int, ...]:
    return (0, 0) if valid is None else valid.stride()


def takes_tanh(q: Tensor, bias: Tensor | None, shift: float) -> bool:
    """Whether the coarse sigmoid is within the rounding of these inputs."""
    return bias is None and shift >= TANH_BIAS.get(q.dtype, math.inf) and not INTERPRETED.value


def _constants(
    launch: Launch, q: Tensor, bias: Tensor | None, valid: Tensor | None, shift: float
) -> dict[str, int | bool]:
    dim = int(q.shape[3])
    return {
        "DIM": dim, "WIDTH": tile_width(dim), "QUERIES": launch.queries, "KEYS": launch.keys,
        "HAS_BIAS": bias is not None, "HAS_VALID": valid is not None, "TANH": takes_tanh(q, bias, shift),
        "num_warps": launch.warps, "num_stages": launch.stages,
    }  # fmt: skip


SHAPES = ((8, 64), (8, 512), (4096, 16), (4096, 32), (4096, 64), (4096, 128), (4096, 256), (4096, 512))  # (L, D)
KERNELS = {
    "forward": sigmoid_attention_forward,
    "backward_keys": sigmoid_attention_backward_keys,
    "backward_queries": sigmoid_attention_backward_queries,
    "backward_whole": sigmoid_attention_backward_whole,
}


def programs(arch: int) -> Iterator[Program]:
    """What the launchers compile at SHAPES: a bare call, and one with a bias tensor and a mask of keys."""
    for length, dim in SHAPES:
        for dtype in ("bf16", "fp32"):
            whole = launch_settings("backward_whole", 4 if dtype == "fp32" else 2, dim, length, length, arch)
            backward = ("backward_whole",) if length <= whole.keys else ("backward_keys", "backward_queries")
            for full in (False, True):
                for kernel in ("forward", *backward):
                    for part in _parts(dim) if kernel == "backward_keys" else (0,):
                        yield program(kernel, arch, dtype, length, dim, full, part)


def program(kernel: str, arch: int, dtype: str, length: int, dim: int, full: bool, part: int = 0) -> Program:
    """One program of KERNELS for sequences of `length` on both sides; `full`: with a bias tensor and a mask of keys."""
    function, itemsize = KERNELS[kernel], 4 if dtype == "fp32" else 2
    launch = launch_settings(kernel, itemsize, dim, length, length, arch, full)
    constants: dict[str, Any] = {
        "DIM": dim, "WIDTH": tile_width(dim), "QUERIES": launch.queries, "KEYS": launch.keys,
        "HAS_BIAS": full, "HAS_VALID": full, "TANH": not full and itemsize == 2,
    }  # fmt: skip
    if kernel == "backward_keys":
        constants["PART"] = part
    types: dict[str, str] = {}
    for name in function.arg_names:
        if name in ("scale", "shift"):
            types[name] = "fp32"
        elif name in ("bias", "valid"):
            types[name] = {"bias": "*fp32", "valid": "*i1"}[name] if full else f"*{dtype}"
        elif name in ("q", "k", "v", "grad", "out", "dq", "dk", "dv"):
            types[name] = f"*{dtype}"
        elif name == "valid_l" or name in ("qd", "kd", "vd", "gd", "od", "dqd", "dkd", "dvd"):
            constants[name] = 1
        elif name not in constants:
            types[name] = "i32"
    aligned = frozenset(name for name in types if name not in ("scale", "shift", "heads", "len_q", "len_k"))
    shape = f"L {length} D {dim} {launch.queries}x{launch.keys} {'bias, mask' if full else 'bare'}"
    shape += ("", " dV", " dK")[part]
    return Program(
        "sigmoid_attention", kernel, dtype, shape, function, types, constants, aligned, launch.warps, launch.stages,
        matrix=dtype != "fp32",
    )  # fmt: skip
