"""The fusion model, fast: the parameters and the function of the reference, with fewer and larger products."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from jmt_fast.config import JMTConfig
from jmt_fast.kernels import sigmoid_attention
from jmt_fast.models.hub import FusionHubMixin, encode_config
from jmt_fast.models.parameters import AttentionWeights, EncoderLayer, FusionParameters

Bias = float | Tensor


class JMT(
    FusionParameters,
    FusionHubMixin,
    coders={JMTConfig: (encode_config, JMTConfig.model_validate)},
    library_name="jmt-fast",
    tags=["valence-arousal", "emotion-recognition", "multimodal"],
):
    """Joint Multimodal Transformer, or the baseline that `config.fusion` names.

    Parameters, names and results are those of `ReferenceJMT`. Made for `torch.compile(fullgraph=True)` and autocast;
    `prepare_fusion` makes a frozen copy for inference.
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
        hidden = F.linear(fused, *_stacked(self.valence[0], self.arousal[0])).relu()  # (B, L, 2 * HEAD)
        hidden = F.dropout(hidden, self.config.head_dropout, self.training).unflatten(-1, (2, -1))
        weight, bias = _stacked(self.valence[3], self.arousal[3])
        dtype = torch.promote_types(weight.dtype, torch.float32)
        result = (hidden.to(dtype) * weight).sum(-1) + bias
        return result if valid is None else result.masked_fill(~valid[..., None], 0)

    def embed(self, audio: Tensor, visual: Tensor, valid: Tensor | None = None) -> Tensor:
        """The fused representation before the heads: (B, L, 1024), or (B, L, D) with output="self_attention"."""
        fused = self._fuse(*self.checked(audio, visual, valid), valid)
        return fused if valid is None else fused.masked_fill(~valid[..., None], 0)

    def _fuse(self, audio: Tensor, visual: Tensor, valid: Tensor | None) -> Tensor:
        streams = self._inputs(audio, visual)
        if not self.pairs:
            return self.out(torch.cat([streams[name] for name in reversed(self.streams)], -1))
        bias = self._bias(streams["a"], valid)
        if valid is not None and self.config.activation == "softmax":
            valid = valid | ~valid.any(-1, keepdim=True)  # a softmax over nothing is NaN, and so is its gradient
        for name, layers in self.encoders.items():
            for layer in layers:
                streams[name] = self._encode(streams[name], layer, bias, valid)
        outputs = self._cross(streams, bias, valid)
        if not self.tokens:
            return self.out(torch.cat(outputs, -1))
        return self._last_token(torch.stack(outputs, 2))

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

    def _encode(self, x: Tensor, layer: EncoderLayer, bias: Bias, valid: Tensor | None) -> Tensor:
        weights = layer.attention
        q, k, v = F.linear(x, weights.in_proj_weight, weights.in_proj_bias).chunk(3, -1)
        attended = self._attend(q, k, v, weights, bias, valid)
        if not layer.transformer:
            return attended
        x = layer.norm1(x + attended)
        return layer.norm2(x + layer.feed_forward(x))

    def _cross(self, streams: dict[str, Tensor], bias: Bias, valid: Tensor | None) -> list[Tensor]:
        """One product for the query, one for key and value together. Splitting a weight, unlike slicing it, leaves a
        gradient that is written once, by a concatenation."""
        outputs = []
        dim = self.config.dim
        for query, key in self.pairs:
            weights = self.cross[self.cross_name((query, key))]
            w_q, w_kv = weights.in_proj_weight.split((dim, 2 * dim))
            b_q, b_kv = (None, None) if weights.in_proj_bias is None else weights.in_proj_bias.split((dim, 2 * dim))
            k, v = F.linear(streams[key], w_kv, b_kv).chunk(2, -1)
            outputs.append(self._attend(F.linear(streams[query], w_q, b_q), k, v, weights, bias, valid))
        return outputs

    def _last_token(self, tokens: Tensor) -> Tensor:
        batch, length, count, dim = tokens.shape
        x = tokens.reshape(batch * length, count, dim)
        bias = self._bias(x, None)
        for layer in self.final_encoder:
            x = self._encode(x, layer, bias, None)
        weights = self.final_attention
        q, k, v = F.linear(x, weights.in_proj_weight, weights.in_proj_bias).chunk(3, -1)
        return self._attend(q, k, v, weights, bias, None)[:, -1].reshape(batch, length, dim)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, weights: AttentionWeights, bias: Bias, valid: Tensor | None
    ) -> Tensor:
        """Projected (B, L, D) -> (B, L, D)."""
        q, k, v = (x.unflatten(-1, (self.config.heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, H, L, C)
        rows, columns = (k, q) if self.config.orientation == "key" else (q, k)
        if self.config.activation == "sigmoid":
            result = sigmoid_attention(rows, columns, v, self.scale, bias, valid)
        else:
            mask = None if valid is None else valid[:, None, None, :]
            result = F.scaled_dot_product_attention(rows, columns, v, mask, scale=self.scale)
        result = result.transpose(1, 2).flatten(-2)
        return result if weights.out_proj is None else weights.out_proj(result)


def _stacked(*layers: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
