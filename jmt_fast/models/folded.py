"""The fusion model folded for inference: with one head, most of its products are of two constant matrices.

Between a stream and the ReLU of the heads, an attention is linear in all but its weights f(score). So

- the score of a key x_i and a query y_j, x_i W_k^T W_q y_j + ..., takes one product z_j = W_k^T W_q y_j, not two;
- value, W_o, `out` and the first layer of the heads are one matrix.

With the default configuration 6.0 million weights remain of 15.0. Folded in float64: only the rounding changes.
What is left is stacked: one product serves all streams, one all cross-attentions. Shapes: S streams, P pairs, and
`rows` of B sequences of L clips, (B, L).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jmt_fast.config import JMTConfig
from jmt_fast.models.parameters import CROSS_PAIRS, AttentionWeights, EncoderLayer, FusionParameters


class Affine(NamedTuple):
    """x -> weight x + bias, in float64."""

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,)

    @classmethod
    def of(cls, layer: nn.Linear) -> Affine:
        return cls(layer.weight.detach().double(), layer.bias.detach().double())

    def then(self, after: Affine) -> Affine:
        return Affine(after.weight @ self.weight, after.weight @ self.bias + after.bias)

    def input_parts(self, count: int) -> list[Affine]:
        """A function of `count` concatenated inputs as a sum of `count` functions."""
        return [Affine(part, self.bias / count) for part in self.weight.chunk(count, 1)]


class Folded(NamedTuple):
    """One attention: z and shift from the query's stream, value from the key's, constant added to the result."""

    z: Affine
    shift: Affine  # one output: what the key's bias adds to all scores of a query item
    value: Affine
    constant: Tensor


def fold(weights: AttentionWeights, config: JMTConfig, after: Affine | None = None) -> Folded:
    """`after` is what else happens to the attention's result, as long as it is affine."""
    dim = weights.dim
    scale = dim**-0.5 if config.scale == "rsqrt" else config.scale
    w_q, w_k, w_v = weights.in_proj_weight.detach().double().chunk(3)
    none = torch.zeros_like(w_q[0])
    b_q, b_k, b_v = (none,) * 3 if weights.in_proj_bias is None else weights.in_proj_bias.detach().double().chunk(3)
    query = Affine(scale * w_q, scale * b_q)
    z = query.then(Affine(w_k.T, none))
    shift = query.then(Affine(b_k[None], none[:1]))
    result = Affine(torch.eye(dim, dtype=none.dtype, device=none.device), none)
    if weights.out_proj is not None:
        result = result.then(Affine.of(weights.out_proj))
    if after is not None:
        result = result.then(after)
    value = Affine(result.weight @ w_v, result.weight @ b_v)  # the weights of a sum need not add up to one
    return Folded(z, shift, value, result.bias)


class Dense(nn.Module):
    """`count` affine functions side by side: (count, M, in) -> (count, M, out) in `dtype`."""

    def __init__(self, affines: Iterable[Affine], dtype: torch.dtype) -> None:
        super().__init__()
        affines = list(affines)
        self.weight = _constant(torch.stack([affine.weight.T for affine in affines]), dtype)
        self.bias = _constant(torch.stack([affine.bias[None] for affine in affines]), dtype)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x.to(self.weight.dtype), self.weight)


class Strength(nn.Module):
    """The attention weights f(score), for `count` attentions at once."""

    def __init__(self, folded: Iterable[Folded], config: JMTConfig) -> None:
        super().__init__()
        self.key_rows = config.orientation == "key"
        self.softmax = config.activation == "softmax"
        self.bias = config.bias
        self.shift = Dense((one.shift for one in folded), torch.float32)
        self.shifted = bool(self.shift.weight.any() or self.shift.bias.any())

    def forward(self, x: Tensor, y: Tensor, z: Tensor, present: Tensor) -> Tensor:
        """x (of the key), y (of the query) and z (y projected), all (count, B, L, D) -> (count, B, L, L), [i, j]."""
        count, batch, length, _ = x.shape
        scores = (x @ z.mT if self.key_rows else z @ x.mT).float()
        if self.shifted:
            shift = self.shift(y.flatten(1, 2)).view(count, batch, length, 1)
            scores = scores + (shift.mT if self.key_rows else shift)
        absent = ~present[:, None, :]
        if self.softmax:
            strength = scores.masked_fill(absent, torch.finfo(scores.dtype).min).softmax(-1)
        elif self.bias == "-log_n":
            strength = torch.sigmoid(scores - present.sum(-1).clamp(min=1).log()[:, None, None])
        else:
            strength = torch.sigmoid(scores + self.bias)
        return strength.masked_fill(absent, 0).to(x.dtype)


class FoldedLayer(nn.Module):
    """The encoder layers of all streams at one depth: (S, B, L, D) -> (S, B, L, D), float32."""

    def __init__(self, layers: Iterable[EncoderLayer], config: JMTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        layers = list(layers)
        folded = [fold(layer.attention, config) for layer in layers]
        self.strength = Strength(folded, config)
        self.project = Dense((side_by_side([one.z, one.value]) for one in folded), dtype)
        self.constant = _constant(torch.stack([one.constant for one in folded])[:, None, None])
        self.transformer = layers[0].transformer
        if self.transformer:
            self.up = Dense((Affine.of(layer.feed_forward[0]) for layer in layers), dtype)
            self.down = Dense((Affine.of(layer.feed_forward[2]) for layer in layers), dtype)
            self.norm1 = StackedNorm([layer.norm1 for layer in layers])
            self.norm2 = StackedNorm([layer.norm2 for layer in layers])

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        shape = x.shape
        low = x.to(self.project.weight.dtype)
        z, value = self.project(low.flatten(1, 2)).view(*shape[:3], -1).chunk(2, -1)
        attended = self.strength(low, low, z, present) @ value + self.constant
        if not self.transformer:
            return attended
        x = self.norm1(x + attended)
        return self.norm2(x + self.down(self.up(x.flatten(1, 2)).relu_()).view(shape))


class StackedNorm(nn.Module):
    """The layer norms of S streams."""

    def __init__(self, norms: list[nn.LayerNorm]) -> None:
        super().__init__()
        self.eps, self.shape = norms[0].eps, norms[0].normalized_shape
        self.weight = _constant(torch.stack([norm.weight for norm in norms])[:, None, None])
        self.bias = _constant(torch.stack([norm.bias for norm in norms])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, F.layer_norm(x, self.shape, eps=self.eps), self.weight)


class FoldedFusion(nn.Module):
    """(audio (B, L, D), visual (B, L, visual_dim), valid bool (B, L)) -> (B, L, 2) float32; matrices in `dtype`.

    For models with cross-attention and one head: see `foldable`.
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
        if self.tokens:
            self.cross = FoldedCross(model, [None] * len(model.pairs), dtype)
            self.last = FoldedLast(model, first, dtype)
        else:
            parts = Affine.of(model.out).then(first).input_parts(len(model.pairs))
            self.cross = FoldedCross(model, parts, dtype)
            self.hidden_bias = _constant(self.cross.constants.sum(0))
        self.head_weight = _constant(torch.cat([model.valence[3].weight, model.arousal[3].weight]))  # (2, HEAD)
        self.head_bias = _constant(torch.cat([model.valence[3].bias, model.arousal[3].bias]))

    def forward(self, audio: Tensor, visual: Tensor, valid: Tensor) -> Tensor:
        absent = ~valid[..., None]
        x = self._streams(audio.float().masked_fill(absent, 0), visual.float().masked_fill(absent, 0))
        for layer in self.layers:
            x = layer(x, valid)
        strength, value = self.cross(x, valid)
        if self.tokens:
            tokens = strength @ value + self.cross.constants[:, None, None]
            hidden = self.last(tokens.permute(1, 2, 0, 3).flatten(0, 1)).view(*valid.shape, -1)
        else:  # one product that also sums over the pairs: (B, L, P L) (B, P L, hidden)
            strength = strength.permute(1, 2, 0, 3).flatten(2)
            hidden = (strength @ value.transpose(0, 1).flatten(1, 2)).float() + self.hidden_bias
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


class FoldedCross(nn.Module):
    """All cross-attentions: (S, B, L, D) -> strengths (P, B, L, L) and values (P, B, L, out), in the order of `pairs`.

    One product a stream gives z for the pairs in which it is the query and values where it is the key. Every stream is
    each of them equally often, so the streams stack.
    """

    query: Tensor
    key: Tensor
    z_order: Tensor
    value_order: Tensor

    def __init__(self, model: FusionParameters, afters: Sequence[Affine | None], dtype: torch.dtype) -> None:
        super().__init__()
        crosses = [
            fold(model.cross[model.cross_name(pair)], model.config, after)
            for pair, after in zip(model.pairs, afters, strict=True)
        ]
        self.strength = Strength(crosses, model.config)
        self.constants = _constant(torch.stack([cross.constant for cross in crosses]))
        queries, keys = ([model.streams.index(pair[side]) for pair in model.pairs] for side in (0, 1))
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
            "z_order": _ranks(queries),
            "value_order": _ranks(keys),
        }.items():
            self.register_buffer(name, torch.tensor(numbers, device=crosses[0].constant.device))

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        low = x.to(self.project.weight.dtype)
        z, value = self.project(low.flatten(1, 2)).split(self.widths, -1)
        z, value = (self._by_pair(part, present.shape) for part in (z, value))
        strength = self.strength(low[self.key], low[self.query], z[self.z_order], present)
        return strength, value[self.value_order]

    def _by_pair(self, part: Tensor, shape: torch.Size) -> Tensor:
        """(S, B L, each * width) -> (P, B, L, width), ordered by stream."""
        each = len(self.query) // len(part)
        return part.view(len(part), *shape, each, -1).permute(0, 3, 1, 2, 4).flatten(0, 1)


class FoldedLast(nn.Module):
    """Tokens (M, T, D) of M clips -> the hidden layer of the heads (M, hidden) at the last token."""

    def __init__(self, model: FusionParameters, after: Affine, dtype: torch.dtype) -> None:
        super().__init__()
        config = model.config
        self.layers = nn.ModuleList(FoldedLayer([layer], config, dtype) for layer in model.final_encoder)
        last = fold(model.final_attention, config, after)
        self.strength = Strength([last], config)
        self.project = Dense([side_by_side([last.z, last.value])], dtype)
        self.constant = _constant(last.constant)

    def forward(self, tokens: Tensor) -> Tensor:
        x, present = tokens[None], torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        for layer in self.layers:
            x = layer(x, present)
        low = x.to(self.project.weight.dtype)
        projected = self.project(low.flatten(1, 2)).view(*x.shape[:3], -1)
        z, value = projected.split((x.shape[-1], len(self.constant)), -1)
        strength = self.strength(low, low, z, present)[0, :, -1:]
        return (strength @ value[0])[:, 0].float() + self.constant


def foldable(config: JMTConfig) -> bool:
    """With several heads the folded values of each would be as wide as the result: nothing to gain."""
    return config.fusion in CROSS_PAIRS and config.heads == 1


def side_by_side(affines: list[Affine]) -> Affine:
    """One affine function whose results are those of `affines`, concatenated."""
    return Affine(torch.cat([affine.weight for affine in affines]), torch.cat([affine.bias for affine in affines]))


def _ranks(streams: list[int]) -> list[int]:
    """Where each pair stands once they are sorted by stream."""
    order = sorted(range(len(streams)), key=streams.__getitem__)
    return [order.index(pair) for pair in range(len(streams))]


def _constant(values: Tensor, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(values.detach().to(dtype).contiguous(), requires_grad=False)
