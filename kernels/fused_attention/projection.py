"""The projections of all attentions of one call as few stacked products, and their gradients, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def project(
    x: Tensor, weight: Tensor, bias: Tensor | None, query: Sequence[int], key: Sequence[int], choice: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Queries (P, N, D), and keys beside values (P, N, 2D), of every pair, from x (S, N, D).

    `weight` is (W, 3D, D) and `bias` (W, 3D), as for `fused_attention`. The results may be views of one tensor.
    """
    dim = x.shape[-1]
    if query == key:
        both = _linear(x, weight, bias, query, choice)
        return both[..., :dim], both[..., dim:]
    q_bias, kv_bias = (None, None) if bias is None else (bias[:, :dim], bias[:, dim:])
    q = _linear(x, weight[:, :dim], q_bias, query, choice)
    return q, _linear(x, weight[:, dim:], kv_bias, key, choice)


def project_backward(
    dqkv: Tensor, x: Tensor, weight: Tensor, query: Sequence[int], key: Sequence[int], choice: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `project` for x, weight and bias, from dqkv (P, N, 3D)."""
    dim = x.shape[-1]
    parts = [(slice(0, None), query)] if query == key else [(slice(0, dim), query), (slice(dim, None), key)]
    dx: list[Tensor] = []
    dweight: list[Tensor] = []
    owners: list[int] = []
    for columns, streams in parts:
        grad = dqkv[..., columns]
        dweight.append(torch.bmm(grad.mT, _pick(x, streams)))
        dx += torch.bmm(grad, _pick(weight[:, columns], choice)).unbind()
        owners += streams
    joined, dbias = torch.cat(dweight, 1) if len(parts) > 1 else dweight[0], dqkv.sum(1)
    if list(choice) != list(range(len(weight))):
        joined, dbias = (_summed(part.unbind(), choice, len(weight)) for part in (joined, dbias))
    return _summed(dx, owners, len(x)), joined, dbias


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, streams: Sequence[int], choice: Sequence[int]) -> Tensor:
    """Stream streams[p] through layer choice[p], for each p: (P, N, out). What two pairs share is computed once."""
    wanted = list(zip(choice, streams, strict=True))
    products = sorted(set(wanted))
    used = sorted(set(choice))
    each = len(products) // len(used)
    if any(sum(layer == other for other, _ in products) != each for layer in used):
        used, each = [layer for layer, _ in products], 1  # streams do not spread evenly over the layers
    rows = _pick(x, [stream for _, stream in products]).reshape(len(used), each * x.shape[1], x.shape[2])
    layers = _pick(weight, used).mT
    found = torch.bmm(rows, layers) if bias is None else torch.baddbmm(_pick(bias, used)[:, None], rows, layers)
    found = found.reshape(len(products), x.shape[1], weight.shape[1])
    return _pick(found, [products.index(pair) for pair in wanted])


def _pick(x: Tensor, indices: Sequence[int]) -> Tensor:
    """x[indices], without a copy if that is x itself. A tensor of indices would have to travel to the device."""
    return x if list(indices) == list(range(len(x))) else torch.stack([x[index] for index in indices])


def _summed(parts: Sequence[Tensor], owners: Sequence[int], count: int) -> Tensor:
    """Parts summed by owner 0 .. count - 1, in a fixed order, in float32 or more, and rounded once.

    By additions, which the compiler takes into one kernel; a stack of all parts would be one kernel for each.
    """
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    sums = [torch.zeros_like(parts[0])] * count
    for number in range(count):
        own = [part for part, owner in zip(parts, owners, strict=True) if owner == number]
        if own:
            first, *others = own
            sums[number] = sum((part.to(dtype) for part in others), first.to(dtype)).to(first.dtype)
    return torch.stack(sums)
