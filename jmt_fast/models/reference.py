"""The fusion model as the paper writes it, in plain PyTorch: the yardstick for the fast one.

Equations are those of Joint Multimodal Transformer (paper.txt, section 3). Shapes: B sequences, L clips, D = `dim`,
H heads of width C = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jmt_fast.config import JMTConfig
from jmt_fast.models.parameters import AttentionWeights, EncoderLayer, FusionParameters


class ReferenceJMT(FusionParameters):
    """Joint Multimodal Transformer or baseline, by `config.fusion`. Computes in at least FP32 with autocast off."""

    def forward(self, audio: Tensor, visual: Tensor, valid: Tensor | None = None) -> Tensor:
        """Valence and arousal of each clip.

        Args:
            audio: (B, L, D), the GRU's outputs.
            visual: (B, L, visual_dim), the visual backbone's features.
            valid: bool (B, L), false for padding: left out of every sum.

        Returns:
            (B, L, 2), at least float32; 0 where not valid.

        Raises:
            ValueError: an argument of another shape or dtype, named in the message.
        """
        with torch.autocast(audio.device.type, enabled=False):
            return self.regress(self.fuse(*self.widened(audio, visual, valid)), valid)

    def embed(self, audio: Tensor, visual: Tensor, valid: Tensor | None = None) -> Tensor:
        """The fused representation before the heads: (B, L, 1024), or (B, L, D) with output="self_attention"."""
        with torch.autocast(audio.device.type, enabled=False):
            fused = self.fuse(*self.widened(audio, visual, valid))
        return fused if valid is None else fused.masked_fill(~valid[..., None], 0)

    def widened(self, audio: Tensor, visual: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Checked inputs in the dtype of the computation, and `present` (B, L) in place of an optional mask."""
        audio, visual = self.checked(audio, visual, valid)
        dtype = torch.promote_types(self.valence[0].weight.dtype, torch.float32)
        present = torch.ones(audio.shape[:2], dtype=torch.bool, device=audio.device) if valid is None else valid
        return audio.to(dtype), visual.to(dtype), present

    def fuse(self, audio: Tensor, visual: Tensor, present: Tensor) -> Tensor:
        """Streams -> encoders -> cross-attentions -> one vector a clip."""
        streams = self.inputs(audio, visual)
        if not self.pairs:  # the baselines without attention
            return linear(torch.cat([streams[name] for name in reversed(self.streams)], -1), self.out)
        for name, layers in self.encoders.items():
            for layer in layers:
                streams[name] = encode(streams[name], layer, self.config, present)
        outputs = [
            attend(streams[query], streams[key], self.cross[self.cross_name((query, key))], self.config, present)
            for query, key in self.pairs
        ]
        if not self.tokens:
            return linear(torch.cat(outputs, -1), self.out)
        return self.last_token(torch.stack(outputs, 2))

    def inputs(self, audio: Tensor, visual: Tensor) -> dict[str, Tensor]:
        """F_a, F_v and, equation 1, J_av = W_j [F_v ; F_a] + b_j."""
        if self.config.input_norm == "l2":
            audio, visual = F.normalize(audio, dim=-1), F.normalize(visual, dim=-1)
        if self.visual_linear is not None:
            visual = linear(visual, self.visual_linear)
        streams = {"a": audio, "v": visual}
        if "av" in self.streams:
            streams["av"] = linear(torch.cat((visual, audio), -1), self.joint)
        return streams

    def last_token(self, tokens: Tensor) -> Tensor:
        """(B, L, tokens, D) -> (B, L, D): a transformer over the tokens of each clip, one attention, the last token."""
        batch, length, count, dim = tokens.shape
        x = tokens.reshape(batch * length, count, dim)
        everywhere = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        for layer in self.final_encoder:
            x = encode(x, layer, self.config, everywhere)
        x = attend(x, x, self.final_attention, self.config, everywhere)
        return x[:, -1].reshape(batch, length, dim)

    def regress(self, fused: Tensor, valid: Tensor | None) -> Tensor:
        """(B, L, width) -> (B, L, 2): a head for each dimension."""
        outputs = []
        for head in (self.valence, self.arousal):
            hidden = F.dropout(linear(fused, head[0]).relu(), self.config.head_dropout, self.training)
            outputs.append(linear(hidden, head[3]))
        result = torch.cat(outputs, -1)
        return result if valid is None else result.masked_fill(~valid[..., None], 0)


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)


def encode(x: Tensor, layer: EncoderLayer, config: JMTConfig, present: Tensor) -> Tensor:
    """One encoder layer, (B, L, D) -> (B, L, D): attention only, or attention, add, norm, feed-forward, add, norm."""
    attended = attend(x, x, layer.attention, config, present)
    if not layer.transformer:
        return attended
    x = norm(x + attended, layer.norm1)
    up, _, down = layer.feed_forward
    return norm(x + linear(linear(x, up).relu(), down), layer.norm2)


def attend(source: Tensor, other: Tensor, weights: AttentionWeights, config: JMTConfig, present: Tensor) -> Tensor:
    """Attention with the query of `source` and the key and value of `other`, both (B, L, D) -> (B, L, D).

    With orientation="key", equation 2, Y = sigmoid(K Q^T) V: out_i = sum_j f(k_i . q_j) v_j.
    With orientation="query", the usual out_i = sum_j f(q_i . k_j) v_j. Clips j that are not present are left out.
    """
    batch, length, dim = source.shape
    w_q, w_k, w_v = weights.in_proj_weight.to(source.dtype).chunk(3)
    b_q = b_k = b_v = None
    if weights.in_proj_bias is not None:
        b_q, b_k, b_v = weights.in_proj_bias.to(source.dtype).chunk(3)
    q, k, v = F.linear(source, w_q, b_q), F.linear(other, w_k, b_k), F.linear(other, w_v, b_v)
    split = (batch, length, config.heads, dim // config.heads)
    q, k, v = (x.reshape(split).transpose(1, 2) for x in (q, k, v))  # (B, H, L, C)

    rows, columns = (k, q) if config.orientation == "key" else (q, k)
    scale = rows.shape[-1] ** -0.5 if config.scale == "rsqrt" else config.scale
    scores = scale * (rows @ columns.transpose(-1, -2))  # (B, H, L, L), [i, j]
    mask = present[:, None, None, :]
    if config.activation == "softmax":  # any bias would cancel
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        strength = scores.softmax(-1)
    else:
        count = present.sum(-1).clamp(min=1).to(scores.dtype)
        bias = -count.log()[:, None, None, None] if config.bias == "-log_n" else config.bias
        strength = torch.sigmoid(scores + bias)
    result = strength.masked_fill(~mask, 0) @ v  # (B, H, L, C)
    result = result.transpose(1, 2).reshape(batch, length, dim)
    return result if weights.out_proj is None else linear(result, weights.out_proj)
