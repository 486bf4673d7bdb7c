"""Sigmoid attention's Triton kernels.

Notation: P = sigmoid(scale * Q K^T + bias), O = P V, dP = dO V^T, dS = P (1 - P) dP, dQ = scale * dS K,
dK = scale * dS^T Q, dV = P^T dO. P is computed anew in every pass; no row statistics exist, so no pass prepares them.

Rows past the end of a sequence and masked keys are loaded as zeros and their weights are set to 0, so whatever memory
held there (NaN included) is never multiplied, and an infinity elsewhere meets no zero that stands for nothing. Only
tiles that hold such rows are masked: the last one of a pass, or all of them where a mask of keys is given.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))  # Triton's interpreter cannot run inline assembly
LOG2E = tl.constexpr(1.4426950408889634)
# Above it sums fill the registers: there one loop masks every tile (two loops would hold the addresses of both), and
# the backward passes compute addresses anew in each step. So does the forward pass under Triton 3.9, which otherwise
# keeps more of them than there are registers.
PEELED = tl.constexpr(128)
FRUGAL = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9))


@triton.jit
def _tile(x, first, stride_row, stride_dim, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Pointers (ROWS, WIDTH) to the rows of x from `first` on."""
    # 32 bits within a tile, which `within_reach` sees to: half the registers. The second sum does not change from tile
    # to tile, so the compiler takes it out of the loops.
    offsets = tl.arange(0, ROWS)[:, None] * stride_row + tl.arange(0, WIDTH)[None, :] * stride_dim
    return (x + tl.cast(first, tl.int64) * stride_row) + offsets


@triton.jit
def _inside(rows, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Mask (ROWS, WIDTH) from a mask of rows: D is padded to the power of two that tiles need."""
    inside = rows[:, None]
    if DIM != WIDTH:
        inside = inside & (tl.arange(0, WIDTH) < DIM)[None, :]
    return inside


@triton.jit
def _load(tile, rows, DIM: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """A tile (ROWS, WIDTH), zero where D is padded and, if MASKED, in rows that `rows` leaves out."""
    if MASKED:
        values = tl.load(tile, mask=_inside(rows, DIM, WIDTH), other=0.0)
    elif DIM != WIDTH:
        values = tl.load(tile, mask=(tl.arange(0, WIDTH) < DIM)[None, :], other=0.0)
    else:
        values = tl.load(tile)
    return values


@triton.jit
def _live_keys(valid, first, length, stride, ROWS: tl.constexpr, HAS_VALID: tl.constexpr):
    """bool (ROWS,): the key exists and is not masked."""
    keys = first + tl.arange(0, ROWS)
    live = keys < length
    if HAS_VALID:
        live = live & (tl.load(valid + keys.to(tl.int64) * stride, mask=live, other=0) != 0)
    return live


@triton.jit
def _factors(bias, batch, scale, shift, HAS_BIAS: tl.constexpr, TANH: tl.constexpr):
    """(a, b) with which `_sigmoid` takes scores s to sigmoid(scale * s + bias)."""
    if HAS_BIAS:
        shift = tl.load(bias + batch).to(tl.float32)
    if TANH:
        a, b = scale * 0.5, shift * 0.5
    else:
        a, b = -scale * LOG2E, -shift * LOG2E
    return a, b


@triton.jit
def _sigmoid(scores, a, b, TANH: tl.constexpr):
    """P of a tile of scores. TANH: one special operation instead of two, off by up to 2.4e-4 whatever P is."""
    x = tl.fma(scores, a, b)
    if TANH:
        t = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
        p = tl.fma(t, 0.5, 0.5)
    elif INTERPRETED:
        p = 1.0 / (1.0 + tl.exp2(x))
    else:
        # A division would cost eight instructions where the reciprocal is one, good to a unit in the last place.
        p = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + tl.exp2(x)], dtype=tl.float32, is_pure=True, pack=1
        )
    return p


@triton.jit
def _place(len_rows, heads, ROWS: tl.constexpr):
    """(first row, batch element, head) of this program; offsets of the last two need 64 bits."""
    blocks = tl.cdiv(len_rows, ROWS)
    rest = tl.program_id(0) // blocks
    return tl.program_id(0) % blocks * ROWS, (rest // heads).to(tl.int64), (rest % heads).to(tl.int64)


@triton.jit
def _forward_step(sums, q_rows, k_tile, v_tile, live, a, b, DIM: tl.constexpr, WIDTH: tl.constexpr,
                  MASKED: tl.constexpr, TANH: tl.constexpr):  # fmt: skip
    k_rows = _load(k_tile, live, DIM, WIDTH, MASKED)
    v_rows = _load(v_tile, live, DIM, WIDTH, MASKED)
    p = _sigmoid(tl.dot(q_rows, tl.trans(k_rows), input_precision="ieee"), a, b, TANH)
    if MASKED:
        p = tl.where(live[None, :], p, 0.0)
    return tl.dot(p.to(v_rows.dtype), v_rows, sums, input_precision="ieee")


@triton.jit
def sigmoid_attention_forward(
    q, k, v, out, bias, valid,
    qb, qh, ql, qd, kb, kh, kl, kd, vb, vh, vl, vd, ob, oh, ol, od, valid_b, valid_l,
    heads, len_q, len_k, scale, shift,
    DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """One program: QUERIES rows of O for one (batch, head), over all keys."""
    first_q, batch, head = _place(len_q, heads, QUERIES)
    a, b = _factors(bias, batch, scale, shift, HAS_BIAS, TANH)
    k += batch * kb + head * kh
    v += batch * vb + head * vh
    valid += batch * valid_b

    exists = first_q + tl.arange(0, QUERIES) < len_q
    q_rows = _load(_tile(q + batch * qb + head * qh, first_q, ql, qd, QUERIES, WIDTH), exists, DIM, WIDTH, True)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    MASK_ALL: tl.constexpr = HAS_VALID or WIDTH > PEELED
    whole = 0 if MASK_ALL else len_k // KEYS * KEYS  # keys in tiles that need no mask
    if not MASK_ALL:
        for first_k in range(0, whole, KEYS):
            k_tile, v_tile = _tile(k, first_k, kl, kd, KEYS, WIDTH), _tile(v, first_k, vl, vd, KEYS, WIDTH)
            sums = _forward_step(sums, q_rows, k_tile, v_tile, exists, a, b, DIM, WIDTH, False, TANH)
    for first_k in tl.range(whole, len_k, KEYS, disable_licm=WIDTH > PEELED and FRUGAL):
        live = _live_keys(valid, first_k, len_k, valid_l, KEYS, HAS_VALID)
        k_tile, v_tile = _tile(k, first_k, kl, kd, KEYS, WIDTH), _tile(v, first_k, vl, vd, KEYS, WIDTH)
        sums = _forward_step(sums, q_rows, k_tile, v_tile, live, a, b, DIM, WIDTH, True, TANH)
    out_tile = _tile(out + batch * ob + head * oh, first_q, ol, od, QUERIES, WIDTH)
    tl.store(out_tile, sums.to(out.dtype.element_ty), mask=_inside(exists, DIM, WIDTH))


@triton.jit
def _slopes(scores, dp, live, a, b, MASKED: tl.constexpr, TANH: tl.constexpr):
    """(P, dS) of a tile whose elements outside `live` (which broadcasts to it) count for nothing."""
    p = _sigmoid(scores, a, b, TANH)
    ds = tl.fma(-p, p, p) * dp
    if MASKED:
        p, ds = tl.where(live, p, 0.0), tl.where(live, ds, 0.0)
    return p, ds


@triton.jit
def _keys_step(dk_sums, dv_sums, k_rows, v_rows, q_tile, g_tile, queries, live, a, b, DIM: tl.constexpr,
               WIDTH: tl.constexpr, MASKED: tl.constexpr, TANH: tl.constexpr, PART: tl.constexpr):  # fmt: skip
    q_rows = _load(q_tile, queries, DIM, WIDTH, MASKED)
    g_rows = _load(g_tile, queries, DIM, WIDTH, MASKED)
    scores = tl.dot(k_rows, tl.trans(q_rows), input_precision="ieee")
    if PART == 1:
        p = _sigmoid(scores, a, b, TANH)
        if MASKED:
            p = tl.where(live, p, 0.0)
    else:
        dp = tl.dot(v_rows, tl.trans(g_rows), input_precision="ieee")
        p, ds = _slopes(scores, dp, live, a, b, MASKED, TANH)
    if PART != 2:
        dv_sums = tl.dot(p.to(g_rows.dtype), g_rows, dv_sums, input_precision="ieee")
    if PART != 1:
        dk_sums = tl.dot(ds.to(q_rows.dtype), q_rows, dk_sums, input_precision="ieee")
    return dk_sums, dv_sums


@triton.jit
def sigmoid_attention_backward_keys(
    q, k, v, grad, dk, dv, bias, valid,
    qb, qh, ql, qd, kb, kh, kl, kd, vb, vh, vl, vd, gb, gh, gl, gd,
    dkb, dkh, dkl, dkd, dvb, dvh, dvl, dvd, valid_b, valid_l,
    heads, len_q, len_k, scale, shift,
    DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr, TANH: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """One program: KEYS rows of dK and dV for one (batch, head), over all queries; score tiles are (KEYS, QUERIES).

    PART: 0 for both, 1 for dV alone, 2 for dK alone: registers hold the sums of only one of them at the widest D.
    """
    first_k, batch, head = _place(len_k, heads, KEYS)
    a, b = _factors(bias, batch, scale, shift, HAS_BIAS, TANH)
    q += batch * qb + head * qh
    grad += batch * gb + head * gh

    live = _live_keys(valid + batch * valid_b, first_k, len_k, valid_l, KEYS, HAS_VALID)
    k_rows = _load(_tile(k + batch * kb + head * kh, first_k, kl, kd, KEYS, WIDTH), live, DIM, WIDTH, True)
    v_rows = _load(_tile(v + batch * vb + head * vh, first_k, vl, vd, KEYS, WIDTH), live, DIM, WIDTH, True)
    dk_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    dv_sums = tl.zeros((KEYS, WIDTH), tl.float32)
    # Here a masked key is a row of the tile: it spoils its own sums only, and they are replaced at the end.
    MASK_ALL: tl.constexpr = WIDTH > PEELED
    whole = 0 if MASK_ALL else len_q // QUERIES * QUERIES
    if not MASK_ALL:
        for first_q in range(0, whole, QUERIES):
            q_tile, g_tile = _tile(q, first_q, ql, qd, QUERIES, WIDTH), _tile(grad, first_q, gl, gd, QUERIES, WIDTH)
            dk_sums, dv_sums = _keys_step(
                dk_sums, dv_sums, k_rows, v_rows, q_tile, g_tile, live, live, a, b, DIM, WIDTH, False, TANH, PART
            )
    for first_q in tl.range(whole, len_q, QUERIES, disable_licm=MASK_ALL):
        exists = first_q + tl.arange(0, QUERIES) < len_q
        q_tile, g_tile = _tile(q, first_q, ql, qd, QUERIES, WIDTH), _tile(grad, first_q, gl, gd, QUERIES, WIDTH)
        dk_sums, dv_sums = _keys_step(
            dk_sums, dv_sums, k_rows, v_rows, q_tile, g_tile, exists, exists[None, :], a, b, DIM, WIDTH, True, TANH,
            PART,
        )  # fmt: skip

    inside = _inside(first_k + tl.arange(0, KEYS) < len_k, DIM, WIDTH)
    if PART != 1:
        dk_rows = tl.where(live[:, None], dk_sums * scale, 0.0).to(dk.dtype.element_ty)
        tl.store(_tile(dk + batch * dkb + head * dkh, first_k, dkl, dkd, KEYS, WIDTH), dk_rows, mask=inside)
    if PART != 2:
        dv_rows = tl.where(live[:, None], dv_sums, 0.0).to(dv.dtype.element_ty)
        tl.store(_tile(dv + batch * dvb + head * dvh, first_k, dvl, dvd, KEYS, WIDTH), dv_rows, mask=inside)


@triton.jit
def sigmoid_attention_backward_whole(
    q, k, v, grad, dq, dk, dv, bias, valid,
    qb, qh, ql, qd, kb, kh, kl, kd, vb, vh, vl, vd, gb, gh, gl, gd,
    dqb, dqh, dql, dqd, dkb, dkh, dkl, dkd, dvb, dvh, dvl, dvd, valid_b, valid_l,
    heads, len_q, len_k, scale, shift,
    DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """One program: all three gradients of one (batch, head) whose queries and keys fit one (KEYS, QUERIES) tile."""
    first, batch, head = _place(1, heads, 1)
    a, b = _factors(bias, batch, scale, shift, HAS_BIAS, TANH)
    exists = tl.arange(0, QUERIES) < len_q
    live = _live_keys(valid + batch * valid_b, first, len_k, valid_l, KEYS, HAS_VALID)
    k_rows = _load(_tile(k + batch * kb + head * kh, first, kl, kd, KEYS, WIDTH), live, DIM, WIDTH, True)
    q_rows = _load(_tile(q + batch * qb + head * qh, first, ql, qd, QUERIES, WIDTH), exists, DIM, WIDTH, True)
    scores = tl.dot(k_rows, tl.trans(q_rows), input_precision="ieee")
    v_rows = _load(_tile(v + batch * vb + head * vh, first, vl, vd, KEYS, WIDTH), live, DIM, WIDTH, True)
    g_rows = _load(_tile(grad + batch * gb + head * gh, first, gl, gd, QUERIES, WIDTH), exists, DIM, WIDTH, True)
    dp = tl.dot(v_rows, tl.trans(g_rows), input_precision="ieee")
    p, ds = _slopes(scores, dp, exists[None, :] & live[:, None], a, b, True, TANH)

    inside_q = _inside(exists, DIM, WIDTH)
    inside_k = _inside(tl.arange(0, KEYS) < len_k, DIM, WIDTH)
    dv_rows = tl.dot(p.to(g_rows.dtype), g_rows, input_precision="ieee")
    dv_rows = tl.where(live[:, None], dv_rows, 0.0).to(dv.dtype.element_ty)
    tl.store(_tile(dv + batch * dvb + head * dvh, first, dvl, dvd, KEYS, WIDTH), dv_rows, mask=inside_k)
    ds = ds.to(q_rows.dtype)
    dk_rows = tl.dot(ds, q_rows, input_precision="ieee") * scale
    dk_rows = tl.where(live[:, None], dk_rows, 0.0).to(dk.dtype.element_ty)
    tl.store(_tile(dk + batch * dkb + head * dkh, first, dkl, dkd, KEYS, WIDTH), dk_rows, mask=inside_k)
    dq_rows = (tl.dot(tl.trans(ds), k_rows, input_precision="ieee") * scale).to(dq.dtype.element_ty)
    tl.store(_tile(dq + batch * dqb + head * dqh, first, dql, dqd, QUERIES, WIDTH), dq_rows, mask=inside_q)


@triton.jit
def _queries_step(sums, q_rows, g_rows, k_tile, v_tile, live, a, b, DIM: tl.constexpr, WIDTH: tl.constexpr,
                  MASKED: tl.constexpr, TANH: tl.constexpr):  # fmt: skip
    k_rows = _load(k_tile, live, DIM, WIDTH, MASKED)
    v_rows = _load(v_tile, live, DIM, WIDTH, MASKED)
    scores = tl.dot(q_rows, tl.trans(k_rows), input_precision="ieee")
    dp = tl.dot(g_rows, tl.trans(v_rows), input_precision="ieee")
    _, ds = _slopes(scores, dp, live[None, :], a, b, MASKED, TANH)
    return tl.dot(ds.to(k_rows.dtype), k_rows, sums, input_precision="ieee")


@triton.jit
def sigmoid_attention_backward_queries(
    q, k, v, grad, dq, bias, valid,
    qb, qh, ql, qd, kb, kh, kl, kd, vb, vh, vl, vd, gb, gh, gl, gd, dqb, dqh, dql, dqd, valid_b, valid_l,
    heads, len_q, len_k, scale, shift,
    DIM: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr, TANH: tl.constexpr,
):  # fmt: skip
    """One program: QUERIES rows of dQ for one (batch, head), over all keys."""
    first_q, batch, head = _place(len_q, heads, QUERIES)
    a, b = _factors(bias, batch, scale, shift, HAS_BIAS, TANH)
    k += batch * kb + head * kh
    v += batch * vb + head * vh
    valid += batch * valid_b

    exists = first_q + tl.arange(0, QUERIES) < len_q
    q_rows = _load(_tile(q + batch * qb + head * qh, first_q, ql, qd, QUERIES, WIDTH), exists, DIM, WIDTH, True)
    g_rows = _load(_tile(grad + batch * gb + head * gh, first_q, gl, gd, QUERIES, WIDTH), exists, DIM, WIDTH, True)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    MASK_ALL: tl.constexpr = HAS_VALID or WIDTH > PEELED
    whole = 0 if MASK_ALL else len_k // KEYS * KEYS
    if not MASK_ALL:
        for first_k in range(0, whole, KEYS):
            k_tile, v_tile = _tile(k, first_k, kl, kd, KEYS, WIDTH), _tile(v, first_k, vl, vd, KEYS, WIDTH)
            sums = _queries_step(sums, q_rows, g_rows, k_tile, v_tile, exists, a, b, DIM, WIDTH, False, TANH)
    for first_k in tl.range(whole, len_k, KEYS, disable_licm=WIDTH > PEELED):
        live = _live_keys(valid, first_k, len_k, valid_l, KEYS, HAS_VALID)
        k_tile, v_tile = _tile(k, first_k, kl, kd, KEYS, WIDTH), _tile(v, first_k, vl, vd, KEYS, WIDTH)
        sums = _queries_step(sums, q_rows, g_rows, k_tile, v_tile, live, a, b, DIM, WIDTH, True, TANH)
    dq_tile = _tile(dq + batch * dqb + head * dqh, first_q, dql, dqd, QUERIES, WIDTH)
    tl.store(dq_tile, (sums * scale).to(dq.dtype.element_ty), mask=_inside(exists, DIM, WIDTH))
