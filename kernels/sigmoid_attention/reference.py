"""Sigmoid attention in plain PyTorch: the definition, and what runs wherever the Triton kernels do not."""

from __future__ import annotations

import torch
from torch import Tensor


def sigmoid_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0, bias: float | Tensor = 0.0, valid: Tensor | None = None
) -> Tensor:
    """`sigmoid(scale * Q K^T + bias) V`, differentiable by autograd, in at least FP32 with autocast off.

    Shapes and meanings are those of `sigmoid_attention`; any floating dtype, FP64 included, is taken, and the result
    has the dtype of `q`. Nothing is validated here.
    """
    with torch.autocast(q.device.type, enabled=False):
        q32, k32, v32 = widened(q), without_masked(widened(k), valid), without_masked(widened(v), valid)
        return (_weights(q32, k32, scale, bias, valid) @ v32).to(q.dtype)


def sigmoid_attention_backward_reference(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: float | Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `sigmoid_attention_reference` with respect to q, k and v, from `grad` (B, H, Lq, D), written out.

    With P the attention weights, `dS = P (1 - P) (dO V^T)`: a weight depends on its own score alone, so nothing has to
    be summed over a row before dS is known, as softmax needs.
    """
    with torch.autocast(q.device.type, enabled=False):
        grad32, q32 = widened(grad), widened(q)
        k32, v32 = without_masked(widened(k), valid), without_masked(widened(v), valid)
        p = _weights(q32, k32, scale, bias, valid)  # (B, H, Lq, Lk)
        ds = p * (1 - p) * (grad32 @ v32.mT) * scale
        dq, dk, dv = ds @ k32, ds.mT @ q32, p.mT @ grad32
        dk, dv = without_masked(dk, valid), without_masked(dv, valid)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def widened(x: Tensor) -> Tensor:
    """In FP32, or FP64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def without_masked(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zero rows of a (B, H, Lk, D) tensor for masked keys, so that nothing they hold is ever multiplied."""
    return x if valid is None else x.masked_fill(~valid[:, None, :, None], 0)


def _weights(q: Tensor, k: Tensor, scale: float, bias: float | Tensor, valid: Tensor | None) -> Tensor:
    """P (B, H, Lq, Lk), 0 for masked keys: over a zero row an infinite query would otherwise have the weight NaN."""
    shift = bias.to(q.dtype)[:, None, None, None] if isinstance(bias, Tensor) else bias
    p = torch.sigmoid(q @ k.mT * scale + shift)
    return p if valid is None else p.masked_fill(~valid[:, None, None, :], 0)
