"""Sigmoid attention's forward pass with tensor-memory descriptors and specialised warps, for sm_90 and sm_100.

One group of warps asks the copy engine for tiles of K and V, the others multiply: what a program waits for and what it
computes are no longer one thread of instructions. Triton does so for loops over descriptor loads on sm_90 where a
program is given four warps; with eight it says nothing and leaves the loop as it is.

The copy engine fills what lies past the end of a sequence with zeros and does not write there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..program import Program
from .device import INTERPRETED, _factors, _place, _sigmoid

WARPS = {90: 4, 100: 8}  # GPU generation: warps, without those that the compiler adds
TILES = {64: (128, 128, 2), 128: (128, 128, 2)}  # D: queries, keys, stages
ALIGNED = 16  # bytes: what a descriptor asks of addresses and strides


@triton.jit
def sigmoid_attention_forward_specialised(
    q, k, v, out, bias,
    qb, qh, ql, kb, kh, kl, vb, vh, vl, ob, oh, ol,
    heads, len_q, len_k, scale, shift,
    DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HAS_BIAS: tl.constexpr, TANH: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """One program: QUERIES rows of O for one (batch, head), over all keys. Rows are contiguous.

    REST: the last tile of keys is not full. A loop of its own for that tile would undo the specialisation.
    """
    first_q, batch, head = _place(len_q, heads, QUERIES)
    a, b = _factors(bias, batch, scale, shift, HAS_BIAS, TANH)
    q_rows = tl.make_tensor_descriptor(q + batch * qb + head * qh, [len_q, DIM], [ql, 1], [QUERIES, DIM])
    k_rows = tl.make_tensor_descriptor(k + batch * kb + head * kh, [len_k, DIM], [kl, 1], [KEYS, DIM])
    v_rows = tl.make_tensor_descriptor(v + batch * vb + head * vh, [len_k, DIM], [vl, 1], [KEYS, DIM])
    o_rows = tl.make_tensor_descriptor(out + batch * ob + head * oh, [len_q, DIM], [ol, 1], [QUERIES, DIM])
    queries = q_rows.load([first_q, 0])
    sums = tl.zeros((QUERIES, DIM), tl.float32)
    for first_k in tl.range(0, len_k, KEYS, warp_specialize=True):
        p = _sigmoid(tl.dot(queries, k_rows.load([first_k, 0]).T), a, b, TANH)
        if REST:  # an infinite query times a key of zeros is NaN
            p = tl.where((first_k + tl.arange(0, KEYS) < len_k)[None, :], p, 0.0)
        values = v_rows.load([first_k, 0])
        sums = tl.dot(p.to(values.dtype), values, sums)
    o_rows.store([first_q, 0], sums.to(out.dtype.element_ty))


def launch_forward_specialised(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, shift: float, out: Tensor, tanh: bool, arch: int
) -> None:
    """Fill `out` (B, H, Lq, D). Raises ValueError for what descriptors cannot describe, or there are no tiles for."""
    batch, heads, len_q, len_k, dim = *q.shape[:3], k.shape[2], int(q.shape[3])
    if not (arch in WARPS or INTERPRETED.value) or dim not in TILES or not all(map(_describable, (q, k, v, out))):
        raise ValueError(
            f"specialised warps need sm_90 or sm_100, 16-bit q, k and v of width {' or '.join(map(str, TILES))}, and "
            f"contiguous rows at multiples of {ALIGNED} bytes; sm_{arch}, {q.dtype} and width {dim} were given"
        )
    queries, keys, stages = TILES[dim]
    # Descriptors lie in memory that the launch asks for; a captured graph keeps it in its own pool.
    triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8, device=q.device))
    sigmoid_attention_forward_specialised[(batch * heads * triton.cdiv(len_q, queries),)](
        q, k, v, out, q if bias is None else bias.contiguous(),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        heads, len_q, len_k, scale, shift,
        DIM=dim, QUERIES=queries, KEYS=keys, HAS_BIAS=bias is not None, TANH=tanh, REST=len_k % keys != 0,
        num_warps=WARPS.get(arch, 4), num_stages=stages,
    )  # fmt: skip


def _describable(x: Tensor) -> bool:
    strides = [x.stride(dim) * x.element_size() for dim in range(3)]
    aligned = not any(number % ALIGNED for number in (x.data_ptr(), *strides))
    return x.element_size() == 2 and x.stride(3) == 1 and strides[2] > 0 and aligned


def programs(arch: int) -> Iterator[Program]:
    """What the launcher compiles: a bare call on full tiles, and one with a bias tensor on others."""
    for dim in TILES if arch in WARPS else ():
        for full in (False, True):
            yield _program(arch, dim, full)


def _program(arch: int, dim: int, full: bool) -> Program:
    function, (queries, keys, stages) = sigmoid_attention_forward_specialised, TILES[dim]
    constants: dict[str, Any] = {
        "DIM": dim, "QUERIES": queries, "KEYS": keys, "HAS_BIAS": full, "TANH": not full, "REST": full,
    }  # fmt: skip
    kinds = dict.fromkeys(("q", "k", "v", "out"), "*bf16") | {"scale": "fp32", "shift": "fp32"}
    kinds["bias"] = "*fp32" if full else "*bf16"
    types = {name: kinds.get(name, "i32") for name in function.arg_names if name not in constants}
    aligned = frozenset(types) - {"scale", "shift", "heads", "len_q", "len_k"}
    shape = f"L {4095 if full else 4096} D {dim} {queries}x{keys} {'bias' if full else 'bare'}"
    return Program(
        "sigmoid_attention", "forward_specialised", "bf16", shape, function, types, constants, aligned, WARPS[arch],
        stages,
    )  # fmt: skip
