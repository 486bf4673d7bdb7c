"""Triton kernels of sigmoid attention, their launchers and launch settings.

Notation: P = sigmoid(scale * Q K^T + bias), O = P V, dP = dO V^T, dS = P (1 - P) dP, dQ = scale * dS K,
dK = scale * dS^T Q, dV = P^T dO. P is computed anew in every pass; no row statistics exist, so no pass prepares them.

Masked keys, like keys past the end, are loaded as zero rows of K and V. A zero V row cancels its weight in O, makes its
dP, its dS and its dK zero, and whatever such a row held (NaN included) is never multiplied. Only dV needs a mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile(x, first, stride_row, stride_dim, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Pointers (ROWS, WIDTH) to the rows of x from `first` on."""
    # 64 bits: with a sequence-first layout one step of a row is B * H * D elements.
    rows = (first + tl.arange(0, ROWS)).to(tl.int64)
    return x + rows[:, None] * stride_row + tl.arange(0, WIDTH)[None, :] * stride_dim


@triton.jit
def _inside(rows, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Mask (ROWS, WIDTH) from a mask of rows: D is padded to the power of two that tiles need."""
    inside = rows[:, None]
    if DIM != WIDTH:
        inside = inside & (tl.arange(0, WIDTH) < DIM)[None, :]
    return inside


@triton.jit
def _live_keys(valid, first, length, stride, ROWS: tl.constexpr, HAS_VALID: tl.constexpr):
    """bool (ROWS,): the key exists and is not masked."""
    keys = first + tl.arange(0, ROWS)
    live = keys < length
    if HAS_VALID:
        live = live & (tl.load(valid + keys.to(tl.int64) * stride, mask=live, other=0) != 0)
    return live


@triton.jit
def _exponent(bias, batch, scale, shift, HAS_BIAS: tl.constexpr):
    """(a, b) for which sigmoid(scale * s + bias) = 1 / (1 + exp2(a * s + b))."""
    if HAS_BIAS:
        shift = tl.load(bias + batch).to(tl.float32)
    return -scale * LOG2E, -shift * LOG2E


@triton.jit
def _forward(
    q, k, v, out, bias, valid,
    qb, qh, ql, qd, kb, kh, kl, kd, vb, vh, vl, vd, ob, oh, ol, od, valid_b, valid_l,
    heads, len_q, len_k, scale, shift,
    DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr,
):  # fmt: skip
    """One program: QUERIES rows of O for one (batch, head), over all keys."""
    blocks = tl.cdiv(len_q, QUERIES)
    first_q = tl.program_id(0) % blocks * QUERIES
    batch = (tl.program_id(0) // blocks // heads).to(tl.int64)
    head = (tl.program_id(0) // blocks % heads).to(tl.int64)
    a, b = _exponent(bias, batch, scale, shift, HAS_BIAS)

    in_q = _inside(first_q + tl.arange(0, QUERIES) < len_q, DIM, WIDTH)
    q_rows = tl.load(_tile(q + batch * qb + head * qh, first_q, ql, qd, QUERIES, WIDTH), mask=in_q, other=0.0)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for first_k in range(0, len_k, KEYS):
        live = _inside(_live_keys(valid + batch * valid_b, first_k, len_k, valid_l, KEYS, HAS_VALID), DIM, WIDTH)
        k_rows = tl.load(_tile(k + batch * kb + head * kh, first_k, kl, kd, KEYS, WIDTH), mask=live, other=0.0)
        v_rows = tl.load(_tile(v + batch * vb + head * vh, first_k, vl, vd, KEYS, WIDTH), mask=live, other=0.0)
        scores = tl.dot(q_rows, tl.trans(k_rows), input_precision="ieee")
        p = 1.0 / (1.0 + tl.exp2(tl.fma(scores, a, b)))
        sums = tl.dot(p.to(v_rows.dtype), v_rows, sums, input_precision="ieee")
    out_tile = _tile(out + batch * ob + head * oh, first_q, ol, od, QUERIES, WIDTH)
    tl.store(out_tile, sums.to(out.dtype.element_ty), mask=in_q)


@triton.jit
def _backward_keys(
    q, k, v, grad, dq, dk, dv, bias, valid,
    qb, qh, ql, qd, kb, kh, kl, kd, vb, vh, vl, vd, gb, gh, gl, gd,
    dqb, dqh, dql, dqd, dkb, dkh, dkl, dkd, dvb, dvh, dvl, dvd, valid_b, valid_l,
    heads, len_q, len_k, scale, shift,
    DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One program: KEYS rows of dK and dV for one (batch, head), over all queries; score tiles are (KEYS, QUERIES).

    WHOLE: one tile holds all queries and all keys, and dQ is finished here too. The launcher then skips the other pass.
    """
    blocks = tl.cdiv(len_k, KEYS)
    first_k = tl.program_id(0) % blocks * KEYS
    batch = (tl.program_id(0) // blocks // heads).to(tl.int64)
    head = (tl.program_id(0) // blocks % heads).to(tl.int64)
    a, b = _exponent(bias, batch, scale, shift, HAS_BIAS)

    live = _live_keys(valid + batch * valid_b, first_k, len_k, valid_l, KEYS, HAS_VALID)
    in_k = _inside(live, DIM, WIDTH)
    k_rows = tl.load(_tile(k + batch * kb + head * kh, first_k, kl, kd, KEYS, WIDTH), mask=in_k, other=0.0)
    v_rows = tl.load(_tile(v + batch * vb + head * vh, first_k, vl, vd, KEYS, WIDTH), mask=in_k, other=0.0)
    dk_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    dv_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    for first_q in range(0, len_q, QUERIES):
        in_q = _inside(first_q + tl.arange(0, QUERIES) < len_q, DIM, WIDTH)
        q_rows = tl.load(_tile(q + batch * qb + head * qh, first_q, ql, qd, QUERIES, WIDTH), mask=in_q, other=0.0)
        g_rows = tl.load(_tile(grad + batch * gb + head * gh, first_q, gl, gd, QUERIES, WIDTH), mask=in_q, other=0.0)
        scores = tl.dot(k_rows, tl.trans(q_rows), input_precision="ieee")
        p = 1.0 / (1.0 + tl.exp2(tl.fma(scores, a, b)))
        dp = tl.dot(v_rows, tl.trans(g_rows), input_precision="ieee")
        ds = (p * (1.0 - p) * dp).to(q_rows.dtype)
        dv_sums = tl.dot(p.to(g_rows.dtype), g_rows, dv_sums, input_precision="ieee")
        dk_sums = tl.dot(ds, q_rows, dk_sums, input_precision="ieee")
        if WHOLE:
            dq_rows = tl.dot(tl.trans(ds), k_rows, input_precision="ieee") * scale
            dq_tile = _tile(dq + batch * dqb + head * dqh, first_q, dql, dqd, QUERIES, WIDTH)
            tl.store(dq_tile, dq_rows.to(dq.dtype.element_ty), mask=in_q)

    dk_rows = (dk_sums * scale).to(dk.dtype.element_ty)
    # Over its zero K row a masked key has the weight sigmoid(bias), not 0.
    dv_rows = tl.where(live[:, None], dv_sums, 0.0).to(dv.dtype.element_ty)
    exists = _inside(first_k + tl.arange(0, KEYS) < len_k, DIM, WIDTH)
    tl.store(_tile(dk + batch * dkb + head * dkh, first_k, dkl, dkd, KEYS, WIDTH), dk_rows, mask=exists)
    tl.store(_tile(dv + batch * dvb + head * dvh, first_k, dvl, dvd, KEYS, WIDTH), dv_rows, mask=exists)


@triton.jit
def _backward_queries(
    q, k, v, grad, dq, bias, valid,
    qb, qh, ql, qd, kb, kh, kl, kd, vb, vh, vl, vd, gb, gh, gl, gd, dqb, dqh, dql, dqd, valid_b, valid_l,
    heads, len_q, len_k, scale, shift,
    DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr,
):  # fmt: skip
    """One program: QUERIES rows of dQ for one (batch, head), over all keys."""
    blocks = tl.cdiv(len_q, QUERIES)
    first_q = tl.program_id(0) % blocks * QUERIES
    batch = (tl.program_id(0) // blocks // heads).to(tl.int64)
    head = (tl.program_id(0) // blocks % heads).to(tl.int64)
    a, b = _exponent(bias, batch, scale, shift, HAS_BIAS)

    in_q = _inside(first_q + tl.arange(0, QUERIES) < len_q, DIM, WIDTH)
    q_rows = tl.load(_tile(q + batch * qb + head * qh, first_q, ql, qd, QUERIES, WIDTH), mask=in_q, other=0.0)
    g_rows = tl.load(_tile(grad + batch * gb + head * gh, first_q, gl, gd, QUERIES, WIDTH), mask=in_q, other=0.0)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for first_k in range(0, len_k, KEYS):
        live = _inside(_live_keys(valid + batch * valid_b, first_k, len_k, valid_l, KEYS, HAS_VALID), DIM, WIDTH)
        k_rows = tl.load(_tile(k + batch * kb + head * kh, first_k, kl, kd, KEYS, WIDTH), mask=live, other=0.0)
        v_rows = tl.load(_tile(v + batch * vb + head * vh, first_k, vl, vd, KEYS, WIDTH), mask=live, other=0.0)
        scores = tl.dot(q_rows, tl.trans(k_rows), input_precision="ieee")
        p = 1.0 / (1.0 + tl.exp2(tl.fma(scores, a, b)))
        dp = tl.dot(g_rows, tl.trans(v_rows), input_precision="ieee")
        ds = (p * (1.0 - p) * dp).to(k_rows.dtype)
        sums = tl.dot(ds, k_rows, sums, input_precision="ieee")
    dq_tile = _tile(dq + batch * dqb + head * dqh, first_q, dql, dqd, QUERIES, WIDTH)
    tl.store(dq_tile, (sums * scale).to(dq.dtype.element_ty), mask=in_q)


@dataclass(frozen=True)
class Launch:
    """Settings of one launch: rows of a tile, warps of a program, stages of its loads."""

    queries: int
    keys: int
    warps: int
    stages: int


def launch_settings(kernel: str, itemsize: int, dim: int, len_q: int, len_k: int) -> Launch:
    """Settings of `forward`, `backward_keys` or `backward_queries`, by heuristic.

    Tiles shrink as a row (`dim * itemsize` bytes) grows, so that one setting fits every target: at most the 99 KiB of
    shared memory of sm_86, sm_89 and sm_120, and no register spills for 16-bit operands at D = 64
    and 128; elsewhere at most 40 bytes a thread (`jmt_fast.kernels.aot` shows both). No tile is longer than needed.
    """
    launch = next(setting for limit, setting in _SETTINGS[kernel, itemsize == 4] if dim <= limit)
    return replace(launch, queries=_shortened(launch.queries, len_q), keys=_shortened(launch.keys, len_k))


def tile_width(dim: int) -> int:
    """D padded to a power of two, and to at least the 16 that a matrix instruction needs."""
    return max(16, triton.next_power_of_2(dim))


def _shortened(rows: int, length: int) -> int:
    """Halve a tile while it still holds the sequence. Only compares `length`, which may be symbolic under compile."""
    while rows > 16 and length <= rows // 2:
        rows //= 2
    return rows


# (kernel, operands are FP32): settings by the largest padded D they serve.
_SETTINGS = {
    ("forward", False): (
        (64, Launch(128, 64, 8, 3)), (128, Launch(128, 64, 8, 2)), (256, Launch(64, 32, 8, 2)),
        (512, Launch(32, 16, 8, 2)),
    ),
    ("forward", True): (
        (64, Launch(64, 32, 8, 1)), (128, Launch(32, 16, 8, 1)), (512, Launch(16, 16, 8, 1)),
    ),
    ("backward_keys", False): (
        (64, Launch(64, 64, 4, 2)), (128, Launch(64, 64, 8, 2)), (256, Launch(16, 32, 8, 1)),
        (512, Launch(16, 16, 8, 1)),
    ),
    ("backward_keys", True): (
        (64, Launch(32, 32, 8, 1)), (256, Launch(16, 16, 8, 1)), (512, Launch(8, 8, 8, 1)),
    ),
    ("backward_queries", False): (
        (64, Launch(64, 64, 4, 2)), (128, Launch(64, 64, 8, 2)), (256, Launch(32, 32, 8, 1)),
        (512, Launch(16, 16, 8, 1)),
    ),
    ("backward_queries", True): (
        (64, Launch(32, 32, 8, 1)), (256, Launch(16, 16, 8, 1)), (512, Launch(8, 8, 8, 1)),
    ),
}  # fmt: skip


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, valid: Tensor | None, scale: float, shift: float, out: Tensor
) -> None:
    """Fill `out` (B, H, Lq, D). All tensors of any strides; no length may be 0."""
    batch, heads, len_q, len_k, dim = *q.shape[:3], k.shape[2], int(q.shape[3])
    launch = launch_settings("forward", q.element_size(), dim, len_q, len_k)
    wrap_triton(_forward)[(batch * heads * triton.cdiv(len_q, launch.queries),)](
        q, k, v, out, *_options(q, bias, valid),
        *q.stride(), *k.stride(), *v.stride(), *out.stride(), *_valid_strides(valid),
        heads, len_q, len_k, scale, shift, **_constants(launch, dim, bias, valid),
    )  # fmt: skip


def launch_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, valid: Tensor | None, scale: float,
    shift: float, dq: Tensor, dk: Tensor, dv: Tensor,
) -> None:  # fmt: skip
    """Fill `dq`, `dk` and `dv` from `grad` (B, H, Lq, D): two deterministic passes, or one if a tile holds it all."""
    batch, heads, len_q, len_k, dim = *q.shape[:3], k.shape[2], int(q.shape[3])
    inputs = (*q.stride(), *k.stride(), *v.stride(), *grad.stride())
    scalars = (*_valid_strides(valid), heads, len_q, len_k, scale, shift)

    launch = launch_settings("backward_keys", q.element_size(), dim, len_q, len_k)
    whole = len_q <= launch.queries and len_k <= launch.keys
    wrap_triton(_backward_keys)[(batch * heads * triton.cdiv(len_k, launch.keys),)](
        q, k, v, grad, dq, dk, dv, *_options(q, bias, valid),
        *inputs, *dq.stride(), *dk.stride(), *dv.stride(), *scalars,
        **_constants(launch, dim, bias, valid), WHOLE=whole,
    )  # fmt: skip
    if whole:
        return
    launch = launch_settings("backward_queries", q.element_size(), dim, len_q, len_k)
    wrap_triton(_backward_queries)[(batch * heads * triton.cdiv(len_q, launch.queries),)](
        q, k, v, grad, dq, *_options(q, bias, valid),
        *inputs, *dq.stride(), *scalars, **_constants(launch, dim, bias, valid),
    )  # fmt: skip


def _options(q: Tensor, bias: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """(bias, valid) for the kernel; what is absent is never read, and `q` stands in for its pointer."""
    return (q if bias is None else bias.contiguous()), (q if valid is None else valid)


def _valid_strides(valid: Tensor | None) -> tuple[int, ...]:
    return (0, 0) if valid is None else valid.stride()


def _constants(launch: Launch, dim: int, bias: Tensor | None, valid: Tensor | None) -> dict[str, int | bool]:
    return {
        "DIM": dim, "WIDTH": tile_width(dim), "QUERIES": launch.queries, "KEYS": launch.keys,
        "HAS_BIAS": bias is not None, "HAS_VALID": valid is not None,
        "num_warps": launch.warps, "num_stages": launch.stages,
    }  # fmt: skip
