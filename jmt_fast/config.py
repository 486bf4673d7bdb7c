"""Validated configuration: every number of the system is a field here, with its default written once."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

CLIP_FRAMES = 8
FRAME_STEP = 4  # thirtieths of a second between the sampled frames of a clip
CLIP_STEP = 32  # thirtieths of a second between the clips of a sequence
TICK = 1 / 30  # seconds: the unit of strides
CLIP_SECONDS = CLIP_STEP * TICK
Region = Literal["face", "center", "none"]
DetectorName = Literal["centerface", "yunet"]
Stride = Literal[1, 2, 4, 8, 16, 32]  # thirtieths of a second between clips
STRIDES = get_args(Stride)
UNANNOTATED = -5.0


class Config(BaseModel):
    """Immutable, with unknown fields refused, so that a checkpoint of another version is noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """16 hex digits that change when any field changes."""
        return digest(self.model_dump(mode="json"))


def digest(values: Any) -> str:
    """16 hex digits of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class JMTConfig(Config):
    """The fusion model. Shapes: audio and visual features (B, L, dim) in, (B, L, 2) out.

    `fusion` selects the Joint Multimodal Transformer or a baseline behind the same interface: `audio` or `visual`
    alone, `concat` (features concatenated, then FC), `cross_attention` (two cross-attentions, no joint stream).
    """

    fusion: Literal["jmt", "audio", "visual", "concat", "cross_attention"] = "jmt"
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    orientation: Literal["key", "query"] = "key"
    scale: Literal["rsqrt"] | float = "rsqrt"
    bias: Literal["-log_n"] | float = "-log_n"
    input_norm: Literal["l2", "none"] = "l2"
    encoder: Literal["transformer", "attention"] = "transformer"
    out_projection: bool = True
    cross_weights: Literal["pair", "query"] = "pair"
    output: Literal["fc", "self_attention"] = "fc"
    heads: int = Field(1, ge=1)
    layers: int = Field(1, ge=1)
    length: int = Field(8, ge=1)
    head_dropout: float = Field(0.0, ge=0, lt=1)
    dim: int = Field(512, ge=1)
    ff_dim: int = Field(512, ge=1)
    visual_dim: int = Field(512, ge=1, description="another width than `dim` adds a linear layer after the input norm")

    @model_validator(mode="after")
    def _check(self) -> JMTConfig:
        if self.dim % self.heads:
            raise ValueError(f"heads={self.heads} does not divide dim={self.dim}")
        for name in ("scale", "bias"):
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}={value} is not finite")
        return self

    @classmethod
    def preset(cls, name: str, **fields: Any) -> JMTConfig:
        """`jmt` (all defaults), `literal` (the paper's equations and no more) or `abaw6` (the authors' later model)."""
        presets: dict[str, dict[str, Any]] = {
            "jmt": {},
            "literal": {
                "encoder": "attention",
                "out_projection": False,
                "input_norm": "none",
                "scale": 1.0,
                "bias": 0.0,
            },
            "abaw6": {"activation": "softmax", "orientation": "query", "scale": "rsqrt", "cross_weights": "query"},
        }
        if name not in presets:
            raise ValueError(f"unknown model preset {name!r}: choose one of {', '.join(presets)}")
        return cls(**{**presets[name], **fields})


class FrameConfig(Config):
    """From a decoded frame to the network's input: shorter side to `resize`, crop of `crop`, Kinetics statistics."""

    resize: int = Field(256, ge=8)
    crop: int = Field(224, ge=8)
    mean: tuple[float, float, float] = (0.43216, 0.394666, 0.37645)
    std: tuple[float, float, float] = (0.22803, 0.22145, 0.216989)

    @model_validator(mode="after")
    def _check(self) -> FrameConfig:
        if self.crop > self.resize:
            raise ValueError(f"crop={self.crop} is larger than resize={self.resize}")
        return self


class SpectrogramConfig(Config):
    """From a clip's sound to a (mels, columns) log-mel spectrogram with fixed normalisation."""

    sample_rate: int = 44_100
    samples: int = 47_040  # 32/30 s
    n_fft: int = 1024
    window: int = 882  # 20 ms, periodic Hann
    hop: int = 441  # 10 ms
    mels: int = 64
    high_hz: float = 22_050.0
    floor_db: float = -100.0
    mean_db: float = -14.8
    std_db: float = Field(19.895, gt=0)

    @property
    def columns(self) -> int:
        """Columns of a centred spectrogram: 107 by default."""
        return 1 + self.samples // self.hop


class VisualConfig(Config):
    """R(2+1)D. The defaults are torchvision's R(2+1)D-18; `widths` and `blocks` per stage make smaller ones."""

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    pooling: Literal["max", "average", "flatten"] = "max"
    features: int = 512

    @model_validator(mode="after")
    def _check(self) -> VisualConfig:
        if len(self.blocks) != len(self.widths) or not self.blocks:
            raise ValueError(f"blocks={self.blocks} and widths={self.widths} need the same length, one entry a stage")
        return self


class AudioConfig(Config):
    """ResNet with a one-channel first convolution, then a GRU. The defaults are torchvision's ResNet-18."""

    blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
    features: int = 512  # width of the last stage
    gru: int = 512


class FeatureConfig(Config):
    """Everything between a file and the two CNN features of a clip, weights excepted.

    `region`: what the networks see of a raw video's frame: an upright `face`, the `center` square, or all of it in a
    square with black bars (`none`). Prepared face crops are taken as they are, whatever it says. `detector`: what
    looks for faces.
    """

    region: Region = "center"
    detector: DetectorName = "centerface"
    frames: FrameConfig = FrameConfig()
    sound: SpectrogramConfig = SpectrogramConfig()
    visual: VisualConfig = VisualConfig()
    audio: AudioConfig = AudioConfig()

    @classmethod
    def preset(cls, name: str) -> FeatureConfig:
        """`paper`: the full networks at 224, on faces. `demo`: the same family, narrower, for two CPU cores and
        minutes, on videos that are faces already."""
        match name:
            case "paper":
                return cls(region="face")
            case "demo":
                return cls(
                    frames=FrameConfig(resize=54, crop=48),
                    visual=VisualConfig(blocks=(1, 1, 1, 1), widths=(8, 16, 32, 64)),
                )
            case _:
                raise ValueError(f"unknown feature preset {name!r}: choose paper or demo")


class FusionTraining(Config):
    """Training of the fusion on cached features. The defaults are the paper's (preset `paper`)."""

    lr: float = Field(5e-4, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    nesterov: bool = False
    clip_norm: float | None = Field(None, gt=0, description="gradients longer than this are shortened to it")
    schedule: Literal["constant", "step", "cosine", "plateau"] = Field(
        "constant",
        description="by epoch; step: a tenth after each third of them, cosine: to 0, plateau: a tenth when half the "
        "patience has passed without a gain",
    )
    batch: int = Field(2, ge=1)
    epochs: int = Field(5, ge=1)
    patience: int = Field(5, ge=1)
    stride: Stride = 4
    label: Literal["end", "mean"] = "end"
    label_lag: float = 0.0  # seconds
    seed: int = 0


class UnfrozenTraining(FusionTraining):
    """Training of the fusion (at `lr`) together with its backbones. No figure of the paper's: there they are frozen."""

    visual_lr: float = Field(5e-5, gt=0, description="of the visual backbone")
    audio_lr: float = Field(5e-5, gt=0, description="of the audio backbone and its GRU")
    freeze: tuple[str, ...] = Field(
        (), description="with commas between: visual, audio, fusion, or a part of one, such as visual.layer1, audio.gru"
    )

    @field_validator("freeze", mode="before")
    @classmethod
    def _parts(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


class VisualTraining(Config):
    """Training of the visual backbone. The defaults are the paper's."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(1e-3, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1, description="of SGD")
    clip_norm: float | None = Field(None, gt=0, description="gradients longer than this are shortened to it")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "one_cycle"] = Field("constant", description="one_cycle: warm up to lr, cosine to 0")
    batch: int = Field(8, ge=1)
    epochs: int = Field(50, ge=1)
    patience: int = Field(5, ge=1)
    dropout: float = Field(0.8, ge=0, lt=1)
    stride: Stride = 32
    label: Literal["end", "mean"] = "end"
    label_lag: float = 0.0  # seconds
    seed: int = 0


class AudioTraining(Config):
    """Training of the GRU behind the audio CNN, with Adam. The learning rate and batch are the paper's."""

    lr: float = Field(1e-2, gt=0)
    batch: int = Field(64, ge=1)
    epochs: int = Field(50, ge=1)
    patience: int = Field(5, ge=1)
    seed: int = 0
