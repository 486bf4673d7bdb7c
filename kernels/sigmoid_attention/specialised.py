"""Sigmoid attention with tensor-memory descriptors and specialised warps, for sm_90; forward for sm_100 too.

One group of warps asks the copy engine for tiles, the others multiply: what a program waits for and what it computes
are no longer one thread of instructions. Triton does so for loops over descriptor loads on sm_90 where a program is
given four warps; with eight it says nothing and leaves the loop as it is. Of the backward loops, Triton 3.9 makes
programs for sm_100 that spill, or none.

The copy engine fills what lies past the end of a sequence with zeros and does not write there. Notation as in `device`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import on_device
from ..program import Program
from .device import INTERPRETED, _factors, _place, _sigmoid
from .kernel import arch_of, takes_tanh

ALIGNED = 16  # bytes: what a descriptor asks of addresses and strides
STAGES = 2
# kernel: GPU generation: warps, without those that the compiler adds
WARPS = {"forward": {90: 4, 100: 8}, "backward_keys": {90: 4}, "backward_queries": {90: 4}}
# D: rows of the tiles of queries and keys
TILES = {
    "forward": {64: (128, 128), 128: (128, 128)},
    "backward_keys": {64: (64, 128), 128: (64, 128)},
    "backward_queries": {64: (128, 128), 128: (128, 128)},
}


@triton.jit
def _rows(x, batch, head, stride_batch, stride_head, stride_row, length, DIM: tl.constexpr, ROWS: tl.constexpr):
    """Descriptor of the rows of one (batch, head), in tiles of ROWS."""
    first = x + batch * stride_batch + head * stride_head
    return tl.make_tensor_descriptor(first, [length, DIM], [stride_row, 1], [ROWS, DIM])


@triton.jit
def _exist(first, length, ROWS: tl.constexpr):
    """bool (1, ROWS). Without it an infinite row times one of the zeros past the end would be NaN."""
    return (first + tl.arange(0, ROWS) < length)[None, :]


@triton.jit
def forward_specialised(
    q, k, v, out, bias,
    qb, qh, ql, kb, kh, kl, vb, vh, vl, ob, oh, ol,
    heads, len_q, len_k, scale, shift,
    DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HAS_BIAS: tl.constexpr, TANH: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """One program: QUERIES rows of O for one (batch, head), over all keys.

    REST: the last tile of keys is not full. A loop of its own for that tile would undo the specialisation.
    """
    first_q, batch, head = _place(len_q, heads, QUERIES)
    a, b = _factors(bias, batch, scale, shift, HAS_BIAS, TANH)
    k_rows = _rows(k, batch, head, kb, kh, kl, len_k, DIM, KEYS)
    v_rows = _rows(v, batch, head, vb, vh, vl, len_k, DIM, KEYS)
    queries = _rows(q, batch, head, qb, qh, ql, len_q, DIM, QUERIES).load([first_q, 0])
    sums = tl.zeros((QUERIES, DIM), tl.float32)
    for first_k in tl.range(0, len_k, KEYS, warp_specialize=True):
        p = _sigmoid(tl.dot(queries, k_rows.load([first_k, 0]).T), a, b, TANH)
        if REST:
            p = tl.where(_exist(first_k, len_k, KEYS), p, 0.0)
        values = v_rows.load([first_k, 0])
        sums = tl.dot(p.to(values.dtype), values, sums)
    _rows(out, batch, head, ob, oh, ol, len_q, DIM, QUERIES).store([first_q, 0], sums.to(out.dtype.element_ty))


@triton.jit
def backward_keys_specialised(
    q, k, v, grad, dk, dv, bias,
    qb, qh, ql, kb, kh, kl, vb, vh, vl, gb, gh, gl, dkb, dkh, dkl, dvb, dvh, dvl,
    heads, len_q, len_k, scale, shift,
    DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HAS_BIAS: tl.constexpr, TANH: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """One program: KEYS rows of dK and dV for one (batch, head), over all queries; score tiles are (KEYS, QUERIES)."""
    first_k, batch, head = _place(len_k, heads, KEYS)
    a, b = _factors(bias, batch, scale, shift, HAS_BIAS, TANH)
    q_rows = _rows(q, batch, head, qb, qh, ql, len_q, DIM, QUERIES)
    g_rows = _rows(grad, batch, head, gb, gh, gl, len_q, DIM, QUERIES)
    keys = _rows(k, batch, head, kb, kh, kl, len_k, DIM, KEYS).load([first_k, 0])
    values = _rows(v, batch, head, vb, vh, vl, len_k, DIM, KEYS).load([first_k, 0])
    dk_sums = tl.zeros((KEYS, DIM), tl.float32)
    dv_sums = tl.zeros((KEYS, DIM), tl.float32)
    for first_q in tl.range(0, len_q, QUERIES, warp_specialize=True):
        queries = q_rows.load([first_q, 0])
        p = _sigmoid(tl.dot(keys, queries.T), a, b, TANH)
        grads = g_rows.load([first_q, 0])
        ds = tl.fma(-p, p, p) * tl.dot(values, grads.T)
        if REST:
            exist = _exist(first_q, len_q, QUERIES)
            p, ds = tl.where(exist, p, 0.0), tl.where(exist, ds, 0.0)
        dv_sums = tl.dot(p.to(grads.dtype), grads, dv_sums)
        dk_sums = tl.dot(ds.to(queries.dtype), queries, dk_sums)
    dk_rows = (dk_sums * scale).to(dk.dtype.element_ty)
    _rows(dk, batch, head, dkb, dkh, dkl, len_k, DIM, KEYS).store([first_k, 0], dk_rows)
    _rows(dv, batch, head, dvb, dvh, dvl, len_k, DIM, KEYS).store([first_k, 0], dv_sums.to(dv.dtype.element_ty))


@triton.jit
def backward_queries_specialised(
    q, k, v, grad, dq, bias,
    qb, qh, ql, kb, kh, kl, vb, vh, vl, gb, gh, gl, dqb, dqh, dql,
    heads, len_q, len_k, scale, shift,
    DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, HAS_BIAS: tl.constexpr, TANH: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """One program: QUERIES rows of dQ for one (batch, head), over all keys."""
    first_q, batch, head = _place(len_q, heads, QUERIES)
    a, b = _factors(bias, batch, scale, shift, HAS_BIAS, TANH)
    k_rows = _rows(k, batch, head, kb, kh, kl, len_k, DIM, KEYS)
    v_rows = _rows(v, batch, head, vb, vh, vl, len_k, DIM, KEYS)
    queries = _rows(q, batch, head, qb, qh, ql, len_q, DIM, QUERIES).load([first_q, 0])
    grads = _rows(grad, batch, head, gb, gh, gl, len_q, DIM, QUERIES).load([first_q, 0])
    sums = tl.zeros((QUERIES, DIM), tl.float32)
    for first_k in tl.range(0, len_k, KEYS, warp_specialize=True):
        keys = k_rows.load([first_k, 0])
        p = _sigmoid(tl.dot(queries, keys.T), a, b, TANH)
        ds = tl.fma(-p, p, p) * tl.dot(grads, v_rows.load([first_k, 0]).T)
        if REST:
            ds = tl.where(_exist(first_k, len_k, KEYS), ds, 0.0)
        sums = tl.dot(ds.to(keys.dtype), keys, sums)
    dq_rows = (sums * scale).to(dq.dtype.element_ty)
    _rows(dq, batch, head, dqb, dqh, dql, len_q, DIM, QUERIES).store([first_q, 0], dq_rows)


KERNELS = {
    "forward": forward_specialised,
    "backward_keys": backward_keys_specialised,
    "backward_queries": backward_queries_specialised,
}


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, shift: float, out: Tensor
) -> None:
    """Fill `out` (B, H, Lq, D). Raises ValueError for what descriptors cannot describe, or there are no tiles for."""
    _launch("forward", (q, k, v, out), bias, scale, shift)


def launch_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, shift: float,
    dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """Fill `dq`, `dk` and `dv` from `grad` (B, H, Lq, D). Raises as `launch_forward` does."""
    _launch("backward_keys", (q, k, v, grad, dk, dv), bias, scale, shift)
    _launch("backward_queries", (q, k, v, grad, dq), bias, scale, shift)


def _launch(kernel: str, tensors: tuple[Tensor, ...], bias: Tensor | None, scale: float, shift: float) -> None:
    q, k = tensors[:2]
    arch = arch_of(q.device)
    batch, heads, len_q, len_k, dim = *q.shape[:3], k.shape[2], int(q.shape[3])
    tiles, warps = TILES[kernel], WARPS[kernel]
    if not (arch in warps or INTERPRETED.value) or dim not in tiles or not all(map(_describable, tensors)):
        raise ValueError(
            f"specialised warps need {' or '.join(f'sm_{each}' for each in warps)}, 16-bit tensors of width "
            f"{' or '.join(map(str, tiles))}, and contiguous rows at multiples of {ALIGNED} bytes; sm_{arch}, "
            f"{q.dtype} and width {dim} were given"
        )
    queries, keys = tiles[dim]
    own, others = (len_k, len_q) if kernel == "backward_keys" else (len_q, len_k)
    tile, step = (keys, queries) if kernel == "backward_keys" else (queries, keys)
    # Descriptors lie in memory that the launch asks for; a captured graph keeps it in its own pool.
    device = q.device  # not q itself: the allocator stays
    triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8, device=device))
    with on_device(device):
        KERNELS[kernel][(batch * heads * triton.cdiv(own, tile),)](
            *tensors, q if bias is None else bias.contiguous(), *(n for x in tensors for n in x.stride()[:3]),
            heads, len_q, len_k, scale, shift, DIM=dim, QUERIES=queries, KEYS=keys, HAS_BIAS=bias is not None,
            TANH=takes_tanh(q, bias, shift), REST=others % step != 0, num_warps=warps.get(arch, 4), num_stages=STAGES,
        )  # fmt: skip


def _describable(x: Tensor) -> bool:
    strides = [x.stride(dim) * x.element_size() for dim in range(3)]
    aligned = not any(number % ALIGNED for number in (x.data_ptr(), *strides))
    return x.element_size() == 2 and x.stride(3) == 1 and strides[2] > 0 and aligned


def programs(arch: int) -> Iterator[Program]:
    """What the launchers compile: a bare call on full tiles, and one with a bias tensor on others."""
    for kernel, tiles in TILES.items():
        for dim in tiles if arch in WARPS[kernel] else ():
            for full in (False, True):
                yield _program(kernel, arch, dim, full)


def _program(kernel: str, arch: int, dim: int, full: bool) -> Program:
    function, (queries, keys) = KERNELS[kernel], TILES[kernel][dim]
    constants: dict[str, Any] = {
        "DIM": dim, "QUERIES": queries, "KEYS": keys, "HAS_BIAS": full, "TANH": not full, "REST": full,
    }  # fmt: skip
    kinds = dict.fromkeys(("q", "k", "v", "out", "grad", "dq", "dk", "dv"), "*bf16")
    kinds |= {"bias": "*fp32" if full else "*bf16", "scale": "fp32", "shift": "fp32"}
    types = {name: kinds.get(name, "i32") for name in function.arg_names if name not in constants}
    aligned = frozenset(types) - {"scale", "shift", "heads", "len_q", "len_k"}
    shape = f"L {4095 if full else 4096} D {dim} {queries}x{keys} {'bias' if full else 'bare'} warps"
    return Program(
        "sigmoid_attention", kernel, "bf16", shape, function, types, constants, aligned, WARPS[kernel][arch], STAGES
    )
