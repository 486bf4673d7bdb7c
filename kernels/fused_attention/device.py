"""The Triton kernels of fused projection and attention.

A tile of ROWS tokens holds as many whole sequences as fit, and its scores are masked to the blocks on the diagonal: at
8 clips a sequence the matrix unit works at full width, and what the mask wastes is small beside the projections.

Notation: R, C, V are the rows, columns and values of a head. S = R C^T, P = f(scale * S + shift), O = P V, and back
dP = dO V^T, dR = scale * dS C, dC = scale * dS^T R, dV = P^T dO, with dS = P (1 - P) dP for the sigmoid and
P (dP - sum_j P dP) for the softmax. In key orientation R is the keys and C the queries, else the other way round.

QUERY, KEY and CHOICE hold the number of pair p in bits 4p to 4p + 3. Queries, keys and values of every pair lie in qkv
(P, N, 3 * DIM), N = batch * length. Loads of rows that do not exist or are not valid give zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _number(CODE: tl.constexpr, pair):
    return (tl.full((), CODE, tl.int64) >> (4 * pair)) & 15


@triton.jit
def _place(pairs, HEADS: tl.constexpr):
    """(tile, pair, head). Programs of one tile follow each other: they read the same rows of x."""
    rest = tl.program_id(0) // HEADS
    return rest // pairs, rest % pairs, tl.program_id(0) % HEADS


@triton.jit
def _tokens(tile, batch, length, ROWS: tl.constexpr):
    """(sequence, token, exists) of each row of a tile of whole sequences."""
    row = tl.arange(0, ROWS)
    fit = ROWS // length
    sequence = tile * fit + row // length
    token = sequence.to(tl.int64) * length + row % length
    return sequence, token, (row < fit * length) & (sequence < batch)


@triton.jit
def _live(exists, valid, token, HAS_VALID: tl.constexpr):
    """Which rows exist and are valid. Apart from `_tokens`: PyTorch takes what a function that also returns the place
    of a store was given for written, and would copy it."""
    live = exists
    if HAS_VALID:
        live = live & (tl.load(valid + token, mask=exists, other=0) != 0)
    return live


@triton.jit
def _load(base, rows, live, columns, width):
    """(ROWS, columns) of a tensor whose rows start at base + rows; zero where not live or past `width`."""
    return tl.load(base + rows[:, None] + columns[None, :], mask=live[:, None] & (columns < width)[None, :], other=0.0)


@triton.jit
def _together(sequence, live):
    """Mask (ROWS, ROWS): both positions are live and of one sequence."""
    return (sequence[:, None] == sequence[None, :]) & live[:, None] & live[None, :]


@triton.jit
def _weights(scores, together, sequence, live, offset, scale, shift, HAS_OFFSET: tl.constexpr, SOFTMAX: tl.constexpr):
    """P of a tile of S."""
    if SOFTMAX:
        scores = tl.where(together, scores * (scale * LOG2E), float("-inf"))
        top = tl.max(scores, 1)
        p = tl.exp2(scores - tl.where(live, top, 0.0)[:, None])
        p = tl.where(together, p / tl.where(live, tl.sum(p, 1), 1.0)[:, None], 0.0)
    else:
        if HAS_OFFSET:
            scores = scores * scale + tl.load(offset + sequence, mask=live, other=0.0).to(tl.float32)[:, None]
        else:
            scores = scores * scale + shift
        p = tl.where(together, 1.0 / (1.0 + tl.exp2(scores * -LOG2E)), 0.0)
    return p


@triton.jit
def _spoilt(v):
    """bool (ROWS,): the row holds a NaN or an infinity."""
    return tl.max(tl.where(tl.abs(v.to(tl.float32)) < float("inf"), 0, 1), 1) > 0


@triton.jit
def _mixed(p, v):
    """P V, where P is NaN for rows of v that are spoilt: as they are, they would spoil the whole tile by 0 * NaN."""
    v = tl.where(tl.abs(v.to(tl.float32)) < float("inf"), v, 0.0).to(v.dtype)
    return tl.dot(p.to(v.dtype), v, input_precision="ieee")


@triton.jit
def project_attend(
    x, weight, bias, offset, valid, out, qkv, xs, xb, xl, xd, pairs, batch, length, scale, shift,
    QUERY: tl.constexpr, KEY: tl.constexpr, CHOICE: tl.constexpr, DIM: tl.constexpr, HEADS: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_OFFSET: tl.constexpr,
    HAS_VALID: tl.constexpr, SOFTMAX: tl.constexpr, BY_KEY: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """One program: one head of one pair for a tile of sequences, from x to the output. With SAVE also fills qkv."""
    HEAD: tl.constexpr = DIM // HEADS
    tile, pair, head = _place(pairs, HEADS)
    sequence, token, exists = _tokens(tile, batch, length, ROWS)
    live = _live(exists, valid, token, HAS_VALID)
    rows = sequence.to(tl.int64) * xb + (token - sequence.to(tl.int64) * length) * xl
    x_query, x_key = x + _number(QUERY, pair) * xs, x + _number(KEY, pair) * xs
    columns = tl.arange(0, WIDTH)
    first = _number(CHOICE, pair) * (3 * DIM) + head * HEAD  # its row of W_q
    weight += first * DIM

    q = tl.zeros((ROWS, WIDTH), tl.float32)
    k = tl.zeros((ROWS, WIDTH), tl.float32)
    v = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, DIM, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        inside = live[:, None] & (inner < DIM)[None, :]
        steps = rows[:, None] + inner[None, :] * xd
        cells = columns[None, :] * DIM + inner[:, None]  # (CHUNK, WIDTH): W^T
        filled = (columns < HEAD)[None, :] & (inner < DIM)[:, None]
        from_key = tl.load(x_key + steps, mask=inside, other=0.0)
        if QUERY == KEY:
            from_query = from_key
        else:
            from_query = tl.load(x_query + steps, mask=inside, other=0.0)
        w = tl.load(weight + cells, mask=filled, other=0.0)
        q = tl.dot(from_query, w, q, input_precision="ieee")
        w = tl.load(weight + DIM * DIM + cells, mask=filled, other=0.0)
        k = tl.dot(from_key, w, k, input_precision="ieee")
        w = tl.load(weight + 2 * DIM * DIM + cells, mask=filled, other=0.0)
        v = tl.dot(from_key, w, v, input_precision="ieee")
    if HAS_BIAS:
        here = columns < HEAD
        q += tl.load(bias + first + columns, mask=here, other=0.0).to(tl.float32)[None, :]
        k += tl.load(bias + first + DIM + columns, mask=here, other=0.0).to(tl.float32)[None, :]
        v += tl.load(bias + first + 2 * DIM + columns, mask=here, other=0.0).to(tl.float32)[None, :]
    q, k, v = q.to(x.dtype.element_ty), k.to(x.dtype.element_ty), v.to(x.dtype.element_ty)

    stored = exists[:, None] & (columns < HEAD)[None, :]
    if SAVE:
        cells = (pair.to(tl.int64) * batch * length + token)[:, None] * (3 * DIM) + (head * HEAD + columns)[None, :]
        tl.store(qkv + cells, q, mask=stored)
        tl.store(qkv + cells + DIM, k, mask=stored)
        tl.store(qkv + cells + 2 * DIM, v, mask=stored)
    if BY_KEY:
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")
    else:
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    together = _together(sequence, live)
    p = _weights(scores, together, sequence, live, offset, scale, shift, HAS_OFFSET, SOFTMAX)
    p = tl.where(together & _spoilt(v)[None, :], float("nan"), p)
    cells = (token * pairs + pair)[:, None] * DIM + (head * HEAD + columns)[None, :]
    tl.store(out + cells, _mixed(p, v).to(out.dtype.element_ty), mask=stored)


@triton.jit
def project(
    x, weight, bias, valid, qkv, xs, xb, xl, xd, pairs, tokens, length,
    QUERY: tl.constexpr, KEY: tl.constexpr, CHOICE: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, CHUNK: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_VALID: tl.constexpr,
):  # fmt: skip
    """One program: ROWS tokens by COLUMNS of the queries, keys or values of one pair."""
    blocks: tl.constexpr = (DIM + COLUMNS - 1) // COLUMNS
    tile, pair, block = _place(pairs, 3 * blocks)
    part = block // blocks  # 0: queries, 1: keys, 2: values
    column = block % blocks * COLUMNS + tl.arange(0, COLUMNS)
    token = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
    exists = token < tokens
    live = _live(exists, valid, token, HAS_VALID)
    rows = token // length * xb + token % length * xl
    x += tl.where(part == 0, _number(QUERY, pair), _number(KEY, pair)) * xs
    first = _number(CHOICE, pair) * (3 * DIM) + part * DIM

    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, DIM, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        inside = live[:, None] & (inner < DIM)[None, :]
        values = tl.load(x + rows[:, None] + inner[None, :] * xd, mask=inside, other=0.0)
        cells = (first + column)[None, :] * DIM + inner[:, None]
        w = tl.load(weight + cells, mask=(column < DIM)[None, :] & (inner < DIM)[:, None], other=0.0)
        sums = tl.dot(values, w, sums, input_precision="ieee")
    if HAS_BIAS:
        sums += tl.load(bias + first + column, mask=column < DIM, other=0.0).to(tl.float32)[None, :]
    cells = (pair.to(tl.int64) * tokens + token)[:, None] * (3 * DIM) + (part * DIM + column)[None, :]
    tl.store(qkv + cells, sums.to(qkv.dtype.element_ty), mask=exists[:, None] & (column < DIM)[None, :])


@triton.jit
def attend(
    qkv, offset, valid, out, pairs, batch, length, scale, shift,
    DIM: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, HAS_OFFSET: tl.constexpr,
    HAS_VALID: tl.constexpr, SOFTMAX: tl.constexpr, BY_KEY: tl.constexpr,
):  # fmt: skip
    """One program: one head of one pair for a tile of sequences, from qkv, a CHUNK of the head's width at a time."""
    HEAD: tl.constexpr = DIM // HEADS
    tile, pair, head = _place(pairs, HEADS)
    sequence, token, exists = _tokens(tile, batch, length, ROWS)
    live = _live(exists, valid, token, HAS_VALID)
    rows = (pair.to(tl.int64) * batch * length + token) * (3 * DIM)
    qkv += head * HEAD
    # Both products of the tile, in either orientation: R from R_AT on, C from C_AT on.
    R_AT: tl.constexpr = DIM if BY_KEY else 0
    C_AT: tl.constexpr = 0 if BY_KEY else DIM

    scores = tl.zeros((ROWS, ROWS), tl.float32)
    spoilt = tl.zeros((ROWS,), tl.int1)
    for start in range(0, HEAD, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        r, c = _load(qkv + R_AT, rows, live, inner, HEAD), _load(qkv + C_AT, rows, live, inner, HEAD)
        scores = tl.dot(r, tl.trans(c), scores, input_precision="ieee")
        spoilt |= _spoilt(_load(qkv + 2 * DIM, rows, live, inner, HEAD))
    together = _together(sequence, live)
    p = _weights(scores, together, sequence, live, offset, scale, shift, HAS_OFFSET, SOFTMAX)
    p = tl.where(together & spoilt[None, :], float("nan"), p).to(qkv.dtype.element_ty)
    for start in range(0, HEAD, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        found = _mixed(p, _load(qkv + 2 * DIM, rows, live, inner, HEAD))
        cells = (token * pairs + pair)[:, None] * DIM + (head * HEAD + inner)[None, :]
        tl.store(out + cells, found.to(out.dtype.element_ty), mask=exists[:, None] & (inner < HEAD)[None, :])


@triton.jit
def attend_backward(
    qkv, grad, offset, valid, dqkv, pairs, batch, length, scale, shift,
    DIM: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, HAS_OFFSET: tl.constexpr,
    HAS_VALID: tl.constexpr, SOFTMAX: tl.constexpr, BY_KEY: tl.constexpr,
):  # fmt: skip
    """One program: dqkv of one head of one pair for a tile of sequences, from qkv and grad (N, P * DIM)."""
    HEAD: tl.constexpr = DIM // HEADS
    tile, pair, head = _place(pairs, HEADS)
    sequence, token, exists = _tokens(tile, batch, length, ROWS)
    live = _live(exists, valid, token, HAS_VALID)
    rows = (pair.to(tl.int64) * batch * length + token) * (3 * DIM)
    grad_rows = (token * pairs + pair) * DIM
    qkv, dqkv, grad = qkv + head * HEAD, dqkv + head * HEAD, grad + head * HEAD
    R_AT: tl.constexpr = DIM if BY_KEY else 0
    C_AT: tl.constexpr = 0 if BY_KEY else DIM

    # One product after the other: together their operands would not fit beside both sums at 128 rows, and P as an
    # operand not beside dS.
    scores = tl.zeros((ROWS, ROWS), tl.float32)
    for start in range(0, HEAD, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        r, c = _load(qkv + R_AT, rows, live, inner, HEAD), _load(qkv + C_AT, rows, live, inner, HEAD)
        scores = tl.dot(r, tl.trans(c), scores, input_precision="ieee")
    together = _together(sequence, live)
    p = _weights(scores, together, sequence, live, offset, scale, shift, HAS_OFFSET, SOFTMAX)
    across = tl.trans(p.to(qkv.dtype.element_ty))
    dp = tl.zeros((ROWS, ROWS), tl.float32)
    for start in range(0, HEAD, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        g, v = _load(grad, grad_rows, live, inner, HEAD), _load(qkv + 2 * DIM, rows, live, inner, HEAD)
        dp = tl.dot(g, tl.trans(v), dp, input_precision="ieee")
        found = tl.dot(across, g, input_precision="ieee").to(dqkv.dtype.element_ty)
        stored = exists[:, None] & (inner < HEAD)[None, :]
        tl.store(dqkv + 2 * DIM + rows[:, None] + inner[None, :], found, mask=stored)
    if SOFTMAX:
        ds = p * (dp - tl.sum(tl.where(together, p * dp, 0.0), 1)[:, None])
    else:
        ds = p * (1.0 - p) * dp
    ds = tl.where(together, ds * scale, 0.0).to(qkv.dtype.element_ty)
    for start in range(0, HEAD, CHUNK):
        inner = start + tl.arange(0, CHUNK)
        stored = exists[:, None] & (inner < HEAD)[None, :]
        cells = dqkv + rows[:, None] + inner[None, :]
        found = tl.dot(ds, _load(qkv + C_AT, rows, live, inner, HEAD), input_precision="ieee")
        tl.store(cells + R_AT, found.to(dqkv.dtype.element_ty), mask=stored)
        found = tl.dot(tl.trans(ds), _load(qkv + R_AT, rows, live, inner, HEAD), input_precision="ieee")
        tl.store(cells + C_AT, found.to(dqkv.dtype.element_ty), mask=stored)
