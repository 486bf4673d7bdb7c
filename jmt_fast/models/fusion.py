"""The fusion model, fast: the function of the reference on packed weights, with fewer and larger products."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jmt_fast.config import JMTConfig
from jmt_fast.kernels import sigmoid_attention
from jmt_fast.kernels.fused_attention import MAX_LENGTH, fused_attention
from jmt_fast.models.hub import FusionHubMixin, encode_config
from jmt_fast.models.packed import PackedAttention, PackedLayer, PackedParameters

Bias = float | Tensor


class JMT(
    PackedParameters,
    FusionHubMixin,
    coders={JMTConfig: (encode_config, JMTConfig.model_validate)},
    library_name="jmt-fast",
    tags=["valence-arousal", "emotion-recognition", "multimodal"],
):
    """Joint Multimodal Transformer, or the baseline that `config.fusion` names.

    State dict and results are those of `ReferenceJMT`; in memory the weights are packed, and `named_gradients` shows
    their gradients by stock name. Made for `torch.compile(fullgraph=True)` and autocast; `prepare_fusion` makes a
    frozen copy for inference.
    """

    def __init__(self, config: JMTConfig) -> None:
        super().__init__(config)
        self.scale = (config.dim // config.heads) ** -0.5 if config.scale == "rsqrt" else float(config.scale)

    def forward(self, audio: Tensor, visual: Tensor, valid: Tensor | None = None) -> Tensor:
        """Valence and arousal of each clip.

        Args:
            audio: (B, L, D), the GRU's outputs.
            visual: (B, L, visual_dim), the visual backbone's features.
            valid: bool (B, L), false for padding: left out of every sum. None: all are present.

        Returns:
            (B, L, 2), at least float32: valence, arousal; 0 where not valid.

        Raises:
            ValueError: an argument of another shape or dtype, named in the message.
        """
        fused = self._fuse(*self.checked(audio, visual, valid), valid)
        heads = self.heads
        hidden = F.linear(fused, heads.hidden_weight.flatten(0, 1), heads.hidden_bias.flatten()).relu()
        hidden = F.dropout(hidden, self.config.head_dropout, self.training).unflatten(-1, (2, -1))  # (B, L, 2, HEAD)
        dtype = torch.promote_types(heads.last_weight.dtype, torch.float32)
        result = (hidden.to(dtype) * heads.last_weight.squeeze(1)).sum(-1) + heads.last_bias.squeeze(1)
        return result if valid is None else result.masked_fill(~valid[..., None], 0)

    def embed(self, audio: Tensor, visual: Tensor, valid: Tensor | None = None) -> Tensor:
        """The fused representation before the heads: (B, L, 1024), or (B, L, D) with output="self_attention"."""
        fused = self._fuse(*self.checked(audio, visual, valid), valid)
        return fused if valid is None else fused.masked_fill(~valid[..., None], 0)

    def _fuse(self, audio: Tensor, visual: Tensor, valid: Tensor | None) -> Tensor:
        streams = self._inputs(audio, visual)
        if not self.pairs:
            return self.out(torch.cat([streams[name] for name in reversed(self.streams)], -1))
        bias = self._bias(audio, valid)
        x = torch.stack([streams[name] for name in self.streams])  # (S, B, L, D)
        for layer in self.encoders:
            x = self._encode(x, layer, bias, valid)
        query, key = ([self.streams.index(pair[side]) for pair in self.pairs] for side in (0, 1))
        choice = [self.cross_names.index(self.cross_name(pair)) for pair in self.pairs]
        attended = self._attend(x, self.cross, query, key, choice, bias, valid).permute(1, 2, 0, 3)  # (B, L, P, D)
        return self._last_token(attended) if self.tokens else self.out(attended.flatten(2))

    def _inputs(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        if self.config.input_norm == "l2":
            audio, visual = F.normalize(audio, dim=-1), F.normalize(visual, dim=-1)
        if self.visual_linear is not None:
            visual = self.visual_linear(visual)
        streams = {"a": audio, "v": visual}
        if "av" in self.streams:
            streams["av"] = self.joint(torch.cat((visual, audio), -1))
        return streams

    def _bias(self, x: Tensor, valid: Tensor | None) -> Bias:
        """What is added to the scores of the clips `x` (B, L, D): a number, or one for each sequence."""
        if self.config.bias != "-log_n":
            return float(self.config.bias)
        if valid is None:
            return -math.log(max(x.shape[1], 1))
        return -valid.sum(-1).clamp(min=1).to(torch.promote_types(x.dtype, torch.float32)).log()

    def _encode(self, x: Tensor, layer: PackedLayer, bias: Bias, valid: Tensor | None) -> Tensor:
        """(S, B, L, D) -> (S, B, L, D)."""
        each = list(range(len(x)))
        attended = self._attend(x, layer.attention, each, each, each, bias, valid)
        if not layer.transformer:
            return attended
        x = _norm(x + attended, layer.norm1_weight, layer.norm1_bias)
        up = _linear(x.flatten(1, 2), layer.up_weight, layer.up_bias).relu()
        down = _linear(up, layer.down_weight, layer.down_bias).view(x.shape)
        return _norm(x + down, layer.norm2_weight, layer.norm2_bias)

    def _last_token(self, tokens: Tensor) -> Tensor:
        x = tokens.flatten(0, 1)[None]  # (1, B L, pairs, D)
        bias = self._bias(x[0], None)
        for layer in self.final_encoder:
            x = self._encode(x, layer, bias, None)
        attended = self._attend(x, self.final_attention, [0], [0], [0], bias, None)
        return attended[0, :, -1].unflatten(0, tokens.shape[:2])

    def _attend(
        self, x: Tensor, weights: PackedAttention, query: list[int], key: list[int], choice: list[int], bias: Bias,
        valid: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Pairs of streams of `x` (S, B, L, D), each with its choice of the weights -> (P, B, L, D)."""
        config, dtype = self.config, _product_dtype(x)
        x, weight = x.to(dtype), weights.in_proj_weight.to(dtype)
        offset = None if weights.in_proj_bias is None else weights.in_proj_bias.to(dtype)
        if x.shape[2] <= MAX_LENGTH:
            joined = fused_attention(
                x, weight, offset, query, key, choice, config.heads, self.scale, bias, valid, config.activation,
                config.orientation,
            )  # fmt: skip
            attended = joined.unflatten(-1, (len(query), -1)).permute(2, 0, 1, 3)
        else:
            attended = torch.stack(self._attend_long(x, weight, offset, query, key, choice, bias, valid))
        if weights.out_proj_weight is None or weights.out_proj_bias is None:
            return attended
        return _linear_by_choice(attended, weights.out_proj_weight, weights.out_proj_bias, choice)

    def _attend_long(
        self, x: Tensor, weight: Tensor, offset: Tensor | None, query: list[int], key: list[int], choice: list[int],
        bias: Bias, valid: Tensor | None,
    ) -> list[Tensor]:  # fmt: skip
        """`fused_attention` for sequences too long for one tile, one pair after the other."""
        # Taking a tensor apart, unlike indexing it, leaves a gradient that is written once, by a concatenation.
        streams, widths, outputs = x.unbind(), (self.config.dim, 2 * self.config.dim), []
        sets = [part.split(widths) for part in weight.unbind()]
        offsets = [(None, None)] * len(sets) if offset is None else [part.split(widths) for part in offset.unbind()]
        for source, other, chosen in zip(query, key, choice, strict=True):
            (w_q, w_kv), (b_q, b_kv) = sets[chosen], offsets[chosen]
            q, (k, v) = F.linear(streams[source], w_q, b_q), F.linear(streams[other], w_kv, b_kv).chunk(2, -1)
            q, k, v = (part.unflatten(-1, (self.config.heads, -1)).transpose(1, 2) for part in (q, k, v))
            rows, columns = (k, q) if self.config.orientation == "key" else (q, k)  # (B, H, L, C)
            if self.config.activation == "sigmoid":
                result = sigmoid_attention(rows, columns, v, self.scale, bias, valid)
            else:
                # A softmax over nothing is NaN, and so is its gradient.
                mask = None if valid is None else (valid | ~valid.any(-1, keepdim=True))[:, None, None]
                result = F.scaled_dot_product_attention(rows, columns, v, mask, scale=self.scale)
            outputs.append(result.transpose(1, 2).flatten(-2))
        return outputs


def _product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would give the operands of a product; custom ops must be handed it."""
    device = x.device.type
    low = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if low else x.dtype


class _StackedLinear(torch.autograd.Function):
    """x (count, M, in), weight (count, out, in), bias (count, out) -> (count, M, out).

    Left to autograd, the weight's gradient would come out transposed, and be copied into place: at small batches that
    copy costs as much as the products.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.mT @ x, grad.sum(1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One linear layer a stack: x (count, M, in), weight (count, out, in), bias (count, out) -> (count, M, out)."""
    dtype = _product_dtype(x)
    result: Tensor = _StackedLinear.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))
    return result


def _linear_by_choice(x: Tensor, weight: Tensor, bias: Tensor, choice: list[int]) -> Tensor:
    """x[p] of x (P, B, L, in) through layer choice[p] of the stack; those that share a layer go through it together."""
    if choice == list(range(len(weight))):
        return _linear(x.flatten(1, 2), weight, bias).view(*x.shape[:-1], weight.shape[1])
    order = sorted(range(len(choice)), key=choice.__getitem__)
    parts = x.unbind()
    grouped = torch.stack([parts[part] for part in order]).unflatten(0, (len(weight), -1)).flatten(1, 3)
    outputs = _linear(grouped, weight, bias).view(x.shape).unbind()
    return torch.stack([outputs[order.index(part)] for part in range(len(choice))])


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One LayerNorm a stack: x (count, B, L, D), weight and bias (count, D)."""
    normed = F.layer_norm(x, x.shape[-1:])
    return torch.addcmul(bias[:, None, None], normed, weight[:, None, None])
