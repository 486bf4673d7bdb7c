"""What all fusion models share: streams, pairs and checks of inputs; and the parameters in their stock layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jmt_fast.config import JMTConfig

Pair = tuple[str, str]  # (stream of the query, stream of the key and value), written query<-key/value

CROSS_PAIRS: dict[str, tuple[Pair, ...]] = {
    "jmt": (("v", "a"), ("a", "v"), ("av", "v"), ("v", "av"), ("av", "a"), ("a", "av")),
    "cross_attention": (("v", "a"), ("a", "v")),
}
STREAMS: dict[str, tuple[str, ...]] = {
    "jmt": ("a", "v", "av"),
    "cross_attention": ("a", "v"),
    "concat": ("a", "v"),
    "audio": ("a",),
    "visual": ("v",),
}
EMBED = 1024  # width of the fused representation with output="fc"
HEAD = 128  # hidden width of a regression head


class AttentionWeights(nn.Module):
    """The parameters of one attention in the layout, and with the initial values, of `nn.MultiheadAttention`.

    `in_proj_weight` (3D, D) stacks W_q, W_k, W_v. Without `out_projection` there is no W_o and there are no biases.
    """

    def __init__(self, dim: int, out_projection: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj: nn.Linear | None = None
        if out_projection:
            self.in_proj_bias: nn.Parameter | None = nn.Parameter(torch.zeros(3 * dim))
            self.out_proj = nn.Linear(dim, dim)
            nn.init.zeros_(self.out_proj.bias)
        else:
            self.register_parameter("in_proj_bias", None)


class EncoderLayer(nn.Module):
    """One self-attention, and for encoder="transformer" the feed-forward and the two post-norms around it."""

    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    feed_forward: Any  # linear, ReLU, linear

    def __init__(self, config: JMTConfig, transformer: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.attention = AttentionWeights(config.dim, config.out_projection)
        if transformer:
            self.norm1 = nn.LayerNorm(config.dim)
            self.feed_forward = nn.Sequential(
                nn.Linear(config.dim, config.ff_dim), nn.ReLU(), nn.Linear(config.ff_dim, config.dim)
            )
            self.norm2 = nn.LayerNorm(config.dim)


class FusionModel(nn.Module):
    """Configuration of a fusion model or baseline, without parameters."""

    def __init__(self, config: JMTConfig) -> None:
        super().__init__()
        self.config = config
        self.streams = STREAMS[config.fusion]
        self.pairs = CROSS_PAIRS.get(config.fusion, ())

    @property
    def tokens(self) -> bool:
        """Whether the cross-attention outputs become tokens of a last attention instead of one long vector."""
        return bool(self.pairs) and self.config.output == "self_attention"

    @property
    def embed_dim(self) -> int:
        return self.config.dim if self.tokens else EMBED

    @property
    def cross_names(self) -> tuple[str, ...]:
        """Names of the sets of cross-attention weights, in the order of `pairs`."""
        return tuple(dict.fromkeys(self.cross_name(pair) for pair in self.pairs))

    def cross_name(self, pair: Pair) -> str:
        """Name in `cross` of the attention with the query of stream pair[0] and the key and value of pair[1]."""
        return "_".join(pair) if self.config.cross_weights == "pair" else pair[0]

    def checked(self, audio: Tensor, visual: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """The two inputs with rows that are not present set to 0, so that not even a NaN there can spread."""
        check_inputs(self.config, audio, visual, valid)
        if valid is None:
            return audio, visual
        absent = ~valid[..., None]
        return audio.masked_fill(absent, 0), visual.masked_fill(absent, 0)

    def named_gradients(self) -> dict[str, Tensor | None]:
        """The gradient of each weight by its name in the state dict; None where there is none."""
        return {name: parameter.grad for name, parameter in self.named_parameters()}


class FusionParameters(FusionModel):
    """Every parameter of a fusion model or baseline in the stock layout, that of the state dict and of files.

    | name | what |
    | --- | --- |
    | `visual_linear` | `visual_dim` -> `dim`, after the input norm; only where the widths differ |
    | `joint` | W_j, 2 `dim` -> `dim` over [visual ; audio] |
    | `encoders.{a,v,av}.N` | encoder layers of a stream |
    | `cross.{query}_{key}`, or `cross.{query}` | cross-attentions, with cross_weights="pair", or "query" |
    | `out` | concatenated outputs -> 1024 (output="fc", and the baselines without attention) |
    | `final_encoder.N`, `final_attention` | over the outputs as tokens (output="self_attention") |
    | `valence`, `arousal` | regression heads |

    The baseline `cross_attention` is the model without its joint stream; `audio`, `visual` and `concat` have no
    attention: their features go through the input norm, `out` and the heads.
    """

    encoders: Any  # PyTorch's containers have no element types
    cross: Any
    final_encoder: Any
    valence: Any
    arousal: Any

    def __init__(self, config: JMTConfig) -> None:
        super().__init__(config)
        dim = config.dim
        self.visual_linear: nn.Linear | None = None
        if "v" in self.streams and config.visual_dim != dim:
            self.visual_linear = nn.Linear(config.visual_dim, dim)
        if "av" in self.streams:
            self.joint = nn.Linear(2 * dim, dim)
        if self.pairs:
            transformer = config.encoder == "transformer"
            self.encoders = nn.ModuleDict({stream: self._layers(transformer) for stream in self.streams})
            self.cross = nn.ModuleDict(
                {name: AttentionWeights(dim, config.out_projection) for name in self.cross_names}
            )
        if self.tokens:
            self.final_encoder = self._layers(transformer=True)
            self.final_attention = AttentionWeights(dim, config.out_projection)
        else:
            self.out = nn.Linear(dim * (len(self.pairs) or len(self.streams)), EMBED)
        self.valence = self._head()
        self.arousal = self._head()

    def _layers(self, transformer: bool) -> nn.ModuleList:
        return nn.ModuleList(EncoderLayer(self.config, transformer) for _ in range(self.config.layers))

    def _head(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(self.embed_dim, HEAD), nn.ReLU(), nn.Dropout(self.config.head_dropout), nn.Linear(HEAD, 1)
        )


def in_stock_layout(model: FusionModel) -> FusionParameters:
    """The same weights, not copies of them, in the stock layout: without arithmetic, to be read only."""
    if isinstance(model, FusionParameters):
        return model
    with torch.device("meta"):
        stock = FusionParameters(model.config)
    stock.load_state_dict(model.state_dict(), assign=True)
    return stock


def check_inputs(config: JMTConfig, audio: Tensor, visual: Tensor, valid: Tensor | None) -> None:
    """ValueError naming the argument that is not audio (B, L, dim), visual (B, L, visual_dim) or valid bool (B, L)."""
    if audio.ndim != 3 or audio.shape[-1] != config.dim:
        raise ValueError(f"audio has shape {tuple(audio.shape)}, not (B, L, {config.dim})")
    expected = (*audio.shape[:2], config.visual_dim)
    if visual.shape != expected:
        raise ValueError(f"visual has shape {tuple(visual.shape)}, not {expected} as audio's shape demands")
    if valid is not None and (valid.shape != expected[:2] or valid.dtype != torch.bool):
        found = f"{valid.dtype} of shape {tuple(valid.shape)}"
        raise ValueError(f"valid is {found}, not torch.bool of shape {expected[:2]}")
