"""Fused projection and attention in plain PyTorch: the definition, and what runs wherever the Triton kernels do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .projection import project


def fused_attention_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    query: Sequence[int],
    key: Sequence[int],
    choice: Sequence[int],
    heads: int = 1,
    scale: float = 1.0,
    shift: float | Tensor = 0.0,
    valid: Tensor | None = None,
    activation: str = "sigmoid",
    orientation: str = "key",
) -> Tensor:
    """`fused_attention`, differentiable by autograd: products in the dtype of `x`, attention in at least FP32.

    Any floating dtype is taken, FP64 included. Nothing is validated here.
    """
    with torch.autocast(x.device.type, enabled=False):
        q, kv = project(without_absent(x, valid).flatten(1, 2), weight, bias, query, key, choice)
        return attend(q, kv, x.shape[1:3], heads, scale, shift, valid, activation == "softmax", orientation == "key")


def attend(
    q: Tensor, kv: Tensor, place: Sequence[int], heads: int, scale: float, shift: float | Tensor, valid: Tensor | None,
    softmax: bool, by_key: bool,
) -> Tensor:  # fmt: skip
    """Attention of q (P, B * L, D) and kv (P, B * L, 2D) -> (B, L, P * D); `place`: (B, L)."""
    rows, columns, v = _parts(q, kv, place, heads, by_key)
    out = _weights(rows, columns, scale, shift, valid, softmax) @ v  # (P, B, H, L, C)
    return without_absent(out.permute(1, 3, 0, 2, 4).flatten(2).to(q.dtype), valid)


def attend_backward(
    grad: Tensor, qkv: Tensor, heads: int, scale: float, shift: float | Tensor, valid: Tensor | None,
    softmax: bool, by_key: bool,
) -> Tensor:  # fmt: skip
    """Gradient (P, B * L, 3D) of `attend` for queries, keys and values, from grad (B, L, P * D)."""
    batch, length, dim = *grad.shape[:2], qkv.shape[2] // 3
    rows, columns, v = _parts(qkv[..., :dim], qkv[..., dim:], grad.shape[:2], heads, by_key)
    grad = _widened(without_absent(grad, valid)).reshape(batch, length, len(qkv), heads, dim // heads)
    grad = grad.permute(2, 0, 3, 1, 4)
    p = _weights(rows, columns, scale, shift, valid, softmax)
    dp = grad @ v.mT
    ds = (p * (dp - (p * dp).sum(-1, keepdim=True)) if softmax else p * (1 - p) * dp) * scale
    drows, dcolumns, dv = ds @ columns, ds.mT @ rows, p.mT @ grad  # (P, B, H, L, C)
    ordered = (dcolumns, drows, dv) if by_key else (drows, dcolumns, dv)
    # (P, B, H, L, 3, C) -> (P, B, L, 3, H, C)
    return torch.stack(ordered, 4).permute(0, 1, 3, 4, 2, 5).reshape(qkv.shape).to(qkv.dtype)


def without_absent(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zero rows of x (..., B, L, D) where nothing is present, so that what they hold is never multiplied."""
    return x if valid is None else x.masked_fill(~valid[..., None], 0)


def _parts(q: Tensor, kv: Tensor, place: Sequence[int], heads: int, by_key: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, columns, values), each (P, B, H, L, C) in at least FP32, of the score matrix that is summed along rows."""
    count, dim = len(q), q.shape[2]
    q, k, v = (
        _widened(part).reshape(count, *place, heads, dim // heads).transpose(2, 3)
        for part in (q, kv[..., :dim], kv[..., dim:])
    )
    return (k, q, v) if by_key else (q, k, v)


def _weights(
    rows: Tensor, columns: Tensor, scale: float, shift: float | Tensor, valid: Tensor | None, softmax: bool
) -> Tensor:
    """P (P, B, H, L, L), 0 in the rows and columns of positions that are not valid."""
    scores = rows @ columns.mT * scale
    absent = None if valid is None else ~(valid[:, None, :, None] & valid[:, None, None, :])
    if softmax:
        # A finite number: over nothing but -inf softmax is NaN, and its gradient stays so behind the mask below.
        p = torch.softmax(scores if absent is None else scores.masked_fill(absent, torch.finfo(scores.dtype).min), -1)
    else:
        summand = shift.to(scores.dtype)[:, None, None, None] if isinstance(shift, Tensor) else shift
        p = torch.sigmoid(scores + summand)
    return p if absent is None else p.masked_fill(absent, 0)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
