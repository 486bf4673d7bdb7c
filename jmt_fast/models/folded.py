"""The fusion model folded for inference: with one head, most of its products are of two constant matrices.

Between a stream and the ReLU of the heads, an attention is linear in all but its weights f(score). So

- the score of a key x_i and a query y_j, x_i W_k^T W_q y_j + ..., takes one product z_j = W_k^T W_q y_j, not two;
- value, W_o, `out` and the first layer of the heads are one matrix.

With the default configuration 6.0 million weights remain of 15.0. Folded in float64: only the rounding changes. With
several heads the values of each would be as wide as the result: then only W_o, `out` and the heads' first layer become
one matrix, and 10.7 million remain.

What is left is stacked: one product serves all streams, one all cross-attentions. Shapes: S streams, P pairs, and
`rows` of B sequences of L clips, (B, L).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jmt_fast.config import JMTConfig
from jmt_fast.models.affine import Affine, Dense, constant_parameter, fold, out_projection, side_by_side
from jmt_fast.models.folded_attention import Heads, SelfAttention, SelfHeads, Strength, ranks
from jmt_fast.models.parameters import CROSS_PAIRS, AttentionWeights, EncoderLayer, FusionParameters


class FoldedLayer(nn.Module):
    """The encoder layers of all streams at one depth: (S, B, L, D) -> (S, B, L, D), float32."""

    def __init__(self, layers: Iterable[EncoderLayer], config: JMTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        layers = list(layers)
        kind = SelfAttention if config.heads == 1 else SelfHeads
        self.attention = kind([layer.attention for layer in layers], config, dtype)
        self.transformer = layers[0].transformer
        if self.transformer:
            self.up = Dense((Affine.of(layer.feed_forward[0]) for layer in layers), dtype)
            self.down = Dense((Affine.of(layer.feed_forward[2]) for layer in layers), dtype)
            self.norm1 = StackedNorm([layer.norm1 for layer in layers])
            self.norm2 = StackedNorm([layer.norm2 for layer in layers])

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        attended = self.attention(x, present)
        if not self.transformer:
            return attended.float()
        x = self.norm1(x + attended)
        return self.norm2(x + self.down(self.up(x.flatten(1, 2)).relu_()).view(x.shape))


class StackedNorm(nn.Module):
    """The layer norms of S streams."""

    def __init__(self, norms: list[nn.LayerNorm]) -> None:
        super().__init__()
        self.eps, self.shape = norms[0].eps, norms[0].normalized_shape
        self.weight = constant_parameter(torch.stack([norm.weight for norm in norms])[:, None, None])
        self.bias = constant_parameter(torch.stack([norm.bias for norm in norms])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, F.layer_norm(x, self.shape, eps=self.eps), self.weight)


class FoldedFusion(nn.Module):
    """(audio (B, L, D), visual (B, L, visual_dim), valid bool (B, L)) -> (B, L, 2) float32; matrices in `dtype`.

    For models with cross-attention: see `foldable`.
    """

    def __init__(self, model: FusionParameters, dtype: torch.dtype) -> None:
        super().__init__()
        config = model.config
        self.l2, self.tokens = config.input_norm == "l2", model.tokens
        self.visual_linear = None if model.visual_linear is None else Dense([Affine.of(model.visual_linear)], dtype)
        self.joint = Dense([Affine.of(model.joint)], dtype) if "av" in model.streams else None
        self.layers = nn.ModuleList(
            FoldedLayer([model.encoders[stream][depth] for stream in model.streams], config, dtype)
            for depth in range(config.layers)
        )
        first = side_by_side([Affine.of(head[0]) for head in (model.valence, model.arousal)])
        kind = OneHeadCross if config.heads == 1 else HeadsCross
        self.cross = kind(model, None if self.tokens else Affine.of(model.out).then(first), dtype)
        if self.tokens:
            self.last = FoldedLast(model, first, dtype)
        self.head_weight = constant_parameter(
            torch.cat([model.valence[3].weight, model.arousal[3].weight])
        )  # (2, HEAD)
        self.head_bias = constant_parameter(torch.cat([model.valence[3].bias, model.arousal[3].bias]))

    def forward(self, audio: Tensor, visual: Tensor, valid: Tensor) -> Tensor:
        absent = ~valid[..., None]
        x = self._streams(audio.float().masked_fill(absent, 0), visual.float().masked_fill(absent, 0))
        for layer in self.layers:
            x = layer(x, valid)
        hidden = self.cross(x, valid)
        if self.tokens:
            hidden = self.last(hidden.permute(1, 2, 0, 3).flatten(0, 1)).view(*valid.shape, -1)
        hidden = hidden.relu().unflatten(-1, (2, -1))
        return ((hidden * self.head_weight).sum(-1) + self.head_bias).masked_fill(absent, 0)

    def _streams(self, audio: Tensor, visual: Tensor) -> Tensor:
        """(S, B, L, D) float32 in the order of `STREAMS`."""
        if self.l2:
            audio, visual = F.normalize(audio, dim=-1), F.normalize(visual, dim=-1)
        if self.visual_linear is not None:
            visual = self.visual_linear(visual.flatten(0, 1)[None]).view(audio.shape).float()
        if self.joint is None:
            return torch.stack((audio, visual))
        both = torch.cat((visual, audio), -1)
        return torch.stack((audio, visual, self.joint(both.flatten(0, 1)[None]).view(audio.shape).float()))


class OneHeadCross(nn.Module):
    """All cross-attentions: (S, B, L, D) -> with `after` the sum of all pairs (B, L, out), else (P, B, L, D) in the
    order of `pairs`; float32.

    One product a stream gives z for the pairs in which it is the query and values where it is the key. Every stream is
    each of them equally often, so the streams stack.
    """

    query: Tensor
    key: Tensor
    z_order: Tensor
    value_order: Tensor

    def __init__(self, model: FusionParameters, after: Affine | None, dtype: torch.dtype) -> None:
        super().__init__()
        sets = cross_sets(model)
        afters = [None] * len(sets) if after is None else after.input_parts(len(sets))
        crosses = [fold(weights, model.config, part) for weights, part in zip(sets, afters, strict=True)]
        self.summed = after is not None
        self.strength = Strength(crosses, model.config)
        constants = torch.stack([cross.constant for cross in crosses])
        self.constant = constant_parameter(constants.sum(0) if self.summed else constants[:, None, None])
        queries, keys = pair_streams(model)
        streams, each = range(len(model.streams)), len(crosses) // len(model.streams)
        self.widths = [each * len(crosses[0].z.bias), each * len(crosses[0].value.bias)]
        self.project = Dense(
            (
                side_by_side(
                    [cross.z for cross, query in zip(crosses, queries, strict=True) if query == stream]
                    + [cross.value for cross, key in zip(crosses, keys, strict=True) if key == stream]
                )
                for stream in streams
            ),
            dtype,
        )
        for name, numbers in {
            "query": queries,
            "key": keys,
            "z_order": ranks(queries),
            "value_order": ranks(keys),
        }.items():
            self.register_buffer(name, torch.tensor(numbers, device=crosses[0].constant.device))

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        low = x.to(self.project.dtype)
        z, value = self.project(low.flatten(1, 2)).split(self.widths, -1)
        z, value = (self._by_pair(part, present.shape) for part in (z, value))
        # Without biases of the key nobody looks at the query's clips themselves.
        query = low[self.query] if self.strength.shifted else low
        strength, value = self.strength(low[self.key], query, z[self.z_order], present), value[self.value_order]
        if not self.summed:
            return (strength @ value).float() + self.constant
        # One product that also sums over the pairs: (B, L, P L) (B, P L, out)
        strength = strength.permute(1, 2, 0, 3).flatten(2)
        return (strength @ value.transpose(0, 1).flatten(1, 2)).float() + self.constant

    def _by_pair(self, part: Tensor, shape: torch.Size) -> Tensor:
        """(S, B L, each * width) -> (P, B, L, width), ordered by stream."""
        each = len(self.query) // len(part)
        return part.view(len(part), *shape, each, -1).permute(0, 3, 1, 2, 4).flatten(0, 1)


class HeadsCross(nn.Module):
    """`OneHeadCross` with several heads: W_o and `after` are one matrix over the concatenated pairs."""

    def __init__(self, model: FusionParameters, after: Affine | None, dtype: torch.dtype) -> None:
        super().__init__()
        sets = cross_sets(model)
        self.heads = Heads(sets, *pair_streams(model), model.config, dtype)
        self.summed = after is not None
        results = [out_projection(weights) for weights in sets]
        if after is not None:
            parts = [one.then(part) for one, part in zip(results, after.input_parts(len(sets)), strict=True)]
            bias = torch.stack([part.bias for part in parts]).sum(0)
            results = [Affine(torch.cat([part.weight for part in parts], 1), bias)]
        self.out = Dense(results, dtype)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        pairs = self.heads(x, present)  # (P, B, L, D)
        if not self.summed:
            return self.out(pairs.flatten(1, 2)).view(pairs.shape).float()
        joined = pairs.permute(1, 2, 0, 3).flatten(2)
        return self.out(joined.flatten(0, 1)[None]).view(*present.shape, -1).float()


class FoldedLast(nn.Module):
    """Tokens (M, T, D) of M clips -> the hidden layer of the heads (M, hidden) at the last token, float32."""

    def __init__(self, model: FusionParameters, after: Affine, dtype: torch.dtype) -> None:
        super().__init__()
        config = model.config
        self.layers = nn.ModuleList(FoldedLayer([layer], config, dtype) for layer in model.final_encoder)
        kind = SelfAttention if config.heads == 1 else SelfHeads
        self.attention = kind([model.final_attention], config, dtype)
        self.after = Dense([after], dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        x, present = tokens[None], torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        for layer in self.layers:
            x = layer(x, present)
        return self.after(self.attention(x, present)[:, :, -1])[0].float()


def cross_sets(model: FusionParameters) -> list[AttentionWeights]:
    """The weights of each pair's cross-attention."""
    return [model.cross[model.cross_name(pair)] for pair in model.pairs]


def pair_streams(model: FusionParameters) -> tuple[list[int], list[int]]:
    """Numbers of the streams of the pairs' queries, and of their keys."""
    return [model.streams.index(query) for query, _ in model.pairs], [
        model.streams.index(key) for _, key in model.pairs
    ]


def foldable(config: JMTConfig) -> bool:
    """Whether there are attentions to fold."""
    return config.fusion in CROSS_PAIRS
