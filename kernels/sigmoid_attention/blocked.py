"""Sigmoid attention in plain PyTorch over blocks of scores: the reference's numbers without its (Lq, Lk) tensors.

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
SIDE = 512  # queries and keys of a block on a CPU: 1 MiB of scores in FP32, and sums in short runs
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
        k32, v32 = _rows(k, valid), _rows(v, valid)
        out = torch.empty_like(q)
        for pair, rows, blocks in _blocks(q, k):
            q32 = widened(q[(*pair, rows)]) * scale
            total = torch.zeros_like(q32)
            for keys in blocks:
                p = _weights(q32, k32[(*pair, keys)], _of_batch(bias, pair), _of_batch(valid, pair, keys))
                total.add_(_product(p, v32[(*pair, keys)].mT))
            out[(*pair, rows)] = total.to(q.dtype)
        return out


def sigmoid_attention_backward_blocked(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: float | Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`sigmoid_attention_backward_reference` by blocks: sums over queries grow from block to block, in order."""
    with torch.autocast(q.device.type, enabled=False):
        k32, v32 = _rows(k, valid), _rows(v, valid)
        dq = torch.empty_like(q)
        dk_t, dv_t = k32.new_zeros(k32.mT.shape), v32.new_zeros(v32.mT.shape)
        for pair, rows, blocks in _blocks(q, k):
            q32, grad32 = widened(q[(*pair, rows)]) * scale, widened(grad[(*pair, rows)])
            total, q_t, grad_t = torch.zeros_like(q32), q32.mT.contiguous(), grad32.mT.contiguous()
            for keys in blocks:
                p = _weights(q32, k32[(*pair, keys)], _of_batch(bias, pair), _of_batch(valid, pair, keys))
                ds = torch.ops.aten.sigmoid_backward(_product(grad32, v32[(*pair, keys)]), p)  # in one pass
                dv_t[(*pair, slice(None), keys)].add_(_product(grad_t, p.mT))
                dk_t[(*pair, slice(None), keys)].add_(_product(q_t, ds.mT))
                total.add_(_product(ds, k32[(*pair, keys)].mT))
            dq[(*pair, rows)] = total.mul_(scale).to(q.dtype)
        return dq, without_masked(dk_t.mT, valid).to(k.dtype), without_masked(dv_t.mT, valid).to(v.dtype)


def _rows(x: Tensor, valid: Tensor | None) -> Tensor:
    """Keys or values in FP32 or FP64, zero where masked, in rows without gaps, which oneDNN wants."""
    return without_masked(widened(x), valid).contiguous()


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[tuple[slice, slice], slice, list[slice]]]:
    """(batch elements and heads, queries, the keys of each of their blocks)."""
    batch, heads, len_q = q.shape[:3]
    if _is_eager_on_cpu(q):
        keys = [slice(first, first + SIDE) for first in range(0, k.shape[2], SIDE)]
        pairs, rows = [(slice(b, b + 1), slice(h, h + 1)) for b in range(batch) for h in range(heads)], SIDE
    else:
        keys, pairs, rows = [slice(None)], [(slice(None), slice(None))], -(-len_q // PIECES)
    for pair in pairs:
        for first in range(0, len_q, rows):
            yield pair, slice(first, first + rows), keys


def _is_eager_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)


def _of_batch(x: Any, pair: tuple[slice, slice], *rest: slice) -> Any:
    """The part of a (B, ...) tensor that belongs to these batch elements; anything else as it is."""
    return x[(pair[0], *rest)] if isinstance(x, Tensor) else x


def _weights(q: Tensor, k: Tensor, bias: float | Tensor, valid: Tensor | None) -> Tensor:
    """P of a block of scaled queries, made in place: a pass over the block costs as much as the sigmoid itself."""
    shift = bias.to(q.dtype)[:, None, None, None] if isinstance(bias, Tensor) else bias
    p = _product(q, k).add_(shift).sigmoid_()
    return p if valid is None else p.masked_fill_(~valid[:, None, None, :], 0)


def _product(x: Tensor, other: Tensor) -> Tensor:
    """`x @ other.mT` of a block: x (..., n, C), other (..., m, C) -> (..., n, m).

    On a CPU in FP32 by oneDNN, to the same precision: PyTorch would call MKL, which leaves half of the vectors' width
    of AMD's processors unused.
    """
    if _is_eager_on_cpu(x) and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, other[0, 0], None, "none", [], "")
    return x @ other.mT
