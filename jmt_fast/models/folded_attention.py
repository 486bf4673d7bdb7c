"""The attentions of the folded model, with one head and with several; shapes are those of `folded`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from jmt_fast.config import JMTConfig
from jmt_fast.models.affine import (
    Dense,
    Folded,
    constant_parameter,
    fold,
    in_projections,
    out_projection,
    side_by_side,
)
from jmt_fast.models.parameters import AttentionWeights


class Activation(nn.Module):
    """Scores (count, N, L, L) -> attention weights f(score) in `dtype`; 0 in columns that are not present (N, L)."""

    def __init__(self, config: JMTConfig) -> None:
        super().__init__()
        self.softmax, self.bias = config.activation == "softmax", config.bias

    def forward(self, scores: Tensor, present: Tensor, dtype: torch.dtype) -> Tensor:
        absent = ~present[:, None, :]
        if self.softmax:
            strength = scores.masked_fill(absent, torch.finfo(scores.dtype).min).softmax(-1)
        elif self.bias == "-log_n":
            strength = torch.sigmoid(scores - present.sum(-1).clamp(min=1).log()[:, None, None])
        else:
            strength = torch.sigmoid(scores + self.bias)
        return strength.masked_fill(absent, 0).to(dtype)


class Strength(nn.Module):
    """The attention weights f(score) of one head, for `count` attentions at once."""

    def __init__(self, folded: Iterable[Folded], config: JMTConfig) -> None:
        super().__init__()
        self.key_rows = config.orientation == "key"
        self.activation = Activation(config)
        shifts = [one.shift for one in folded]
        self.shifted = any(bool(shift.weight.any() or shift.bias.any()) for shift in shifts)
        self.shift = Dense(shifts, torch.float32)

    def forward(self, x: Tensor, y: Tensor, z: Tensor, present: Tensor) -> Tensor:
        """x (of the key), y (of the query) and z (y projected), all (count, B, L, D) -> (count, B, L, L), [i, j]."""
        scores = (x @ z.mT if self.key_rows else z @ x.mT).float()
        if self.shifted:
            shift = self.shift(y.flatten(1, 2)).view(*y.shape[:3], 1)
            scores = scores + (shift.mT if self.key_rows else shift)
        return self.activation(scores, present, x.dtype)


class Heads(nn.Module):
    """Attentions with several heads, output projections not included: (S, B, L, D) -> (P, B, L, D) in `dtype`.

    Attention p has queries from stream queries[p], keys and values from stream keys[p]; every stream is each of them
    equally often, so that one product does all projections.
    """

    query_order: Tensor
    key_order: Tensor

    def __init__(
        self, sets: Sequence[AttentionWeights], queries: list[int], keys: list[int], config: JMTConfig,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.key_rows = config.heads, config.orientation == "key"
        self.activation = Activation(config)
        parts = [in_projections(weights, config) for weights in sets]
        streams = range(max(queries) + 1)
        self.each = len(sets) // len(streams)
        self.project = Dense(
            (
                side_by_side(
                    [q for (q, _, _), query in zip(parts, queries, strict=True) if query == stream]
                    + [part for (_, *kv), key in zip(parts, keys, strict=True) if key == stream for part in kv]
                )
                for stream in streams
            ),
            dtype,
        )
        device = sets[0].in_proj_weight.device
        self.register_buffer("query_order", torch.tensor(ranks(queries), device=device))
        self.register_buffer("key_order", torch.tensor(ranks(keys), device=device))

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        count, batch, length, dim = x.shape
        projected = self.project(x.flatten(1, 2)).view(
            count, batch, length, 3 * self.each, self.heads, dim // self.heads
        )
        # (S, B, L, each, H, C) -> (P, B H, L, C)
        q, kv = projected.permute(0, 3, 1, 4, 2, 5).flatten(2, 3).split((self.each, 2 * self.each), 1)
        q = q.flatten(0, 1)[self.query_order]
        k, v = kv.unflatten(1, (self.each, 2)).flatten(0, 1)[self.key_order].unbind(1)
        scores = (k @ q.mT if self.key_rows else q @ k.mT).float()
        result = self.activation(scores, present.repeat_interleave(self.heads, 0), v.dtype) @ v
        return result.unflatten(1, (batch, self.heads)).transpose(2, 3).flatten(3)


class SelfAttention(nn.Module):
    """One attention of each stream upon itself, W_o included: (S, B, L, D) -> (S, B, L, D)."""

    def __init__(self, sets: Sequence[AttentionWeights], config: JMTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        folded = [fold(weights, config) for weights in sets]
        self.strength = Strength(folded, config)
        self.project = Dense((side_by_side([one.z, one.value]) for one in folded), dtype)
        self.constant = constant_parameter(torch.stack([one.constant for one in folded])[:, None, None])

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        low = x.to(self.project.dtype)
        z, value = self.project(low.flatten(1, 2)).view(*x.shape[:3], -1).chunk(2, -1)
        return self.strength(low, low, z, present) @ value + self.constant


class SelfHeads(nn.Module):
    """`SelfAttention` with several heads."""

    def __init__(self, sets: Sequence[AttentionWeights], config: JMTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        each = list(range(len(sets)))
        self.heads = Heads(sets, each, each, config, dtype)
        self.out = Dense((out_projection(weights) for weights in sets), dtype)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        return self.out(self.heads(x, present).flatten(1, 2)).view(x.shape)


def ranks(streams: list[int]) -> list[int]:
    """Where each pair stands once they are sorted by stream."""
    order = sorted(range(len(streams)), key=streams.__getitem__)
    return [order.index(pair) for pair in range(len(streams))]
