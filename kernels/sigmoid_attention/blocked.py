"""Sigmoid attention in plain PyTorch over blocks of queries: the reference's numbers without its (Lq, Lk) tensors.

For long sequences wherever the Triton kernels do not run. A score is used once and only a block's scores exist at a
time; on a CPU they stay in the cache, which is why this is also the faster form there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .reference import widened, without_masked

LONG = 2**20  # scores of one head from which on blocks pay
BLOCK = 2**18  # scores of one block on a CPU: 1 MiB in FP32
PIECES = 16  # blocks of a head elsewhere, and under a compiler, which writes out every block


def is_long(q: Tensor, k: Tensor) -> bool:
    """Whether blocks pay for q (B, H, Lq, D) and k (B, H, Lk, D).

    Never for symbolic lengths, which stay symbolic: the number of blocks would be written into the program.
    """
    lengths = q.shape[2], k.shape[2]
    return not any(isinstance(n, torch.SymInt) for n in lengths) and lengths[0] * lengths[1] >= LONG


def sigmoid_attention_blocked(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: float | Tensor, valid: Tensor | None
) -> Tensor:
    """`sigmoid_attention_reference` by blocks. Autograd does not see through it: it is for the op's body."""
    with torch.autocast(q.device.type, enabled=False):
        k32, v32 = without_masked(widened(k), valid), without_masked(widened(v), valid)
        out = torch.empty_like(q)
        for at, pair in _blocks(q, k):
            p = _weights(widened(q[at]), k32[pair], scale, _of_batch(bias, pair), _of_batch(valid, pair))
            out[at] = (p @ v32[pair]).to(q.dtype)
        return out


def sigmoid_attention_backward_blocked(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: float | Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`sigmoid_attention_backward_reference` by blocks: sums over queries grow from block to block, in order."""
    with torch.autocast(q.device.type, enabled=False):
        k32, v32 = without_masked(widened(k), valid), without_masked(widened(v), valid)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k32), torch.zeros_like(v32)
        for at, pair in _blocks(q, k):
            q32, grad32 = widened(q[at]), widened(grad[at])
            p = _weights(q32, k32[pair], scale, _of_batch(bias, pair), _of_batch(valid, pair))
            dv[pair].add_(p.mT @ grad32)
            ds = (grad32 @ v32[pair].mT).mul_(p).mul_(p.neg_().add_(1))
            dq[at] = (ds @ k32[pair]).mul_(scale).to(q.dtype)
            dk[pair].add_((ds.mT @ q32).mul_(scale))
        return dq, without_masked(dk, valid).to(k.dtype), without_masked(dv, valid).to(v.dtype)


Index = tuple[slice, ...]


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[Index, Index]]:
    """(index of the block's queries, index of their batch elements and heads)."""
    batch, heads, len_q = q.shape[:3]
    if q.device.type == "cpu" and type(q) in (Tensor, torch.nn.Parameter):
        pairs = [(slice(b, b + 1), slice(h, h + 1)) for b in range(batch) for h in range(heads)]
        rows = max(16, BLOCK // k.shape[2])
    else:
        pairs = [(slice(None), slice(None))]
        rows = -(-len_q // PIECES)
    for pair in pairs:
        for first in range(0, len_q, rows):
            yield (*pair, slice(first, first + rows)), pair


def _of_batch(x: Any, pair: Index) -> Any:
    """The part of a (B, ...) tensor that belongs to these batch elements; anything else as it is."""
    return x[pair[0]] if isinstance(x, Tensor) else x


def _weights(q: Tensor, k: Tensor, scale: float, bias: float | Tensor, valid: Tensor | None) -> Tensor:
    """P of a block, made in place: a pass over the block costs as much as the sigmoid itself."""
    shift = bias.to(q.dtype)[:, None, None, None] if isinstance(bias, Tensor) else bias
    p = ((q * scale) @ k.mT).add_(shift).sigmoid_()
    return p if valid is None else p.masked_fill_(~valid[:, None, None, :], 0)
