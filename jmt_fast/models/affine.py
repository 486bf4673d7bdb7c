"""What is folded: affine functions in float64, and their weights ready for use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jmt_fast.config import JMTConfig
from jmt_fast.models.parameters import AttentionWeights


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


def side_by_side(affines: list[Affine]) -> Affine:
    """One affine function whose results are those of `affines`, concatenated."""
    return Affine(torch.cat([affine.weight for affine in affines]), torch.cat([affine.bias for affine in affines]))


def in_projections(weights: AttentionWeights, config: JMTConfig) -> tuple[Affine, Affine, Affine]:
    """q, scaled as the scores are; k; v."""
    scale = (weights.dim // config.heads) ** -0.5 if config.scale == "rsqrt" else config.scale
    w_q, w_k, w_v = weights.in_proj_weight.detach().double().chunk(3)
    none = torch.zeros_like(w_q[0])
    b_q, b_k, b_v = (none,) * 3 if weights.in_proj_bias is None else weights.in_proj_bias.detach().double().chunk(3)
    return Affine(scale * w_q, scale * b_q), Affine(w_k, b_k), Affine(w_v, b_v)


def out_projection(weights: AttentionWeights) -> Affine:
    """W_o, or the identity."""
    if weights.out_proj is not None:
        return Affine.of(weights.out_proj)
    unit = torch.eye(weights.dim, dtype=torch.float64, device=weights.in_proj_weight.device)
    return Affine(unit, torch.zeros_like(unit[0]))


class Folded(NamedTuple):
    """One attention: z and shift from the query's stream, value from the key's, constant added to the result."""

    z: Affine
    shift: Affine  # one output: what the key's bias adds to all scores of a query item
    value: Affine
    constant: Tensor


def fold(weights: AttentionWeights, config: JMTConfig, after: Affine | None = None) -> Folded:
    """`after` is what else happens to the attention's result, as long as it is affine."""
    query, key, value = in_projections(weights, config)
    none = torch.zeros_like(key.bias)
    z = query.then(Affine(key.weight.T, none))
    shift = query.then(Affine(key.bias[None], none[:1]))
    result = out_projection(weights)
    if after is not None:
        result = result.then(after)
    value = Affine(result.weight @ value.weight, result.weight @ value.bias)  # weights of a sum need not add up to one
    return Folded(z, shift, value, result.bias)


class Dense(nn.Module):
    """`count` affine functions side by side: (count, M, in) -> (count, M, out) in `dtype`."""

    weight: nn.Parameter | None  # (count, out, in); None once packed
    bias: Tensor  # (count, 1, out)

    def __init__(self, affines: Iterable[Affine], dtype: torch.dtype) -> None:
        super().__init__()
        affines = list(affines)
        self.dtype = dtype
        self.weight = constant_parameter(torch.stack([affine.weight for affine in affines]), dtype)
        self.bias = constant_parameter(torch.stack([affine.bias[None] for affine in affines]), dtype)
        self.packed: list[tuple[Tensor, Tensor]] = []

    def pack(self) -> None:
        """Bring the weights into oneDNN's own layout, on a CPU only: at 16 clips 10 to 30 % faster, for PyTorch's
        stacked product brings them there at every call; at 512 clips it makes no difference."""
        if self.weight is not None:
            reorder, pairs = torch.ops.mkldnn._reorder_linear_weight, zip(self.weight, self.bias, strict=True)
            self.packed = [(reorder(weight.detach().contiguous()), bias[0]) for weight, bias in pairs]
            self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.weight is not None:
            return torch.baddbmm(self.bias, x, self.weight.mT)
        linear = torch.ops.mkldnn._linear_pointwise
        parts = zip(x.unbind(), self.packed, strict=True)
        return torch.stack([linear(part, weight, bias, "none", [], "") for part, (weight, bias) in parts])


def constant_parameter(values: Tensor, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(values.detach().to(dtype).contiguous(), requires_grad=False)
