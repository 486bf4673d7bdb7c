"""The two feature extractors: R(2+1)D for clips of frames, ResNet and a GRU for their sound."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torchvision.models.resnet import BasicBlock
from torchvision.models.video.resnet import BasicBlock as VideoBlock
from torchvision.models.video.resnet import Conv2Plus1D

from jmt_fast.config import CLIP_FRAMES, AudioConfig, VisualConfig

# (channels in, channels out, stride, the shortcut's projection or None) -> residual block
BlockMaker = Callable[[int, int, int, nn.Module | None], nn.Module]


class VisualBackbone(nn.Module):
    """R(2+1)D (Tran et al. 2018, "A Closer Look at Spatiotemporal Convolutions for Action Recognition").

    (B, 3, 8, crop, crop) -> (B, features). With the default config it is torchvision's `r2plus1d_18` up to the pooled
    features, with the same parameter names and without its `fc`. Other `widths` and `blocks` give smaller networks of
    the same family: one stage an entry, each stage after the first halves time, height and width. Pooling takes the
    maximum or the average over the whole last map, or flattens it into a linear layer (which fixes `crop`). A linear
    layer `project` brings another last width to `features`.
    """

    def __init__(self, config: VisualConfig, crop: int) -> None:
        super().__init__()
        self.config = config
        self.crop = crop
        width = config.widths[0]
        # torchvision's stem has 45 channels between the spatial and the temporal convolution for 64 at its end
        middle = max(1, 45 * width // 64)
        self.stem = nn.Sequential(
            nn.Conv3d(3, middle, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
            nn.BatchNorm3d(middle),
            nn.ReLU(inplace=True),
            nn.Conv3d(middle, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        frames, side = CLIP_FRAMES, _half(crop)
        for index, (blocks, out) in enumerate(zip(config.blocks, config.widths, strict=True)):
            stride = 1 if index == 0 else 2
            stage = _stage(_video_block, nn.Conv3d, nn.BatchNorm3d, width, out, blocks, stride)
            self.add_module(f"layer{index + 1}", stage)
            width = out
            if stride == 2:
                frames, side = _half(frames), _half(side)
        flatten = config.pooling == "flatten"
        pooled = width * frames * side * side if flatten else width
        linear = flatten or width != config.features
        self.project = nn.Linear(pooled, config.features) if linear else nn.Identity()
        _initialise(self)

    def forward(self, frames: Tensor) -> Tensor:
        """frames (B, 3, 8, crop, crop), normalised -> (B, features). ValueError for another shape of a sample."""
        maps = self.stem(_checked("frames", frames, (3, CLIP_FRAMES, self.crop, self.crop)))
        for index in range(len(self.config.widths)):
            maps = self.get_submodule(f"layer{index + 1}")(maps)
        return self.project(self._pool(maps))

    def _pool(self, maps: Tensor) -> Tensor:
        match self.config.pooling:
            case "max":
                return maps.amax((2, 3, 4))
            case "average":
                return maps.mean((2, 3, 4))
            case _:
                return maps.flatten(1)


class AudioBackbone(nn.Module):
    """ResNet-18 (He et al. 2016) on one-channel spectrograms, then a GRU over the clips of a sequence.

    (B, 1, mels, columns) -> (B, features). The CNN has torchvision's `resnet18` parameter names, one input channel, no
    `fc`, and stages of features/8, /4, /2 and /1 channels (64 to 512 by default).
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        if config.features % 8:
            raise ValueError(
                f"config.features={config.features} is not a multiple of 8 (the first stage has an eighth)"
            )
        self.config = config
        width = config.features // 8
        self.conv1 = nn.Conv2d(1, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for index, blocks in enumerate(config.blocks):
            out = config.features // 8 * 2**index
            stages.append(_stage(BasicBlock, nn.Conv2d, nn.BatchNorm2d, width, out, blocks, 1 if index == 0 else 2))
            width = out
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.gru = nn.GRU(config.features, config.gru, batch_first=True)
        _initialise(self)

    def forward(self, spectrograms: Tensor) -> Tensor:
        """spectrograms (B, 1, mels, columns), normalised -> (B, features). ValueError for other channels."""
        checked = _checked("spectrograms", spectrograms, (1, None, None))
        maps = self.maxpool(self.relu(self.bn1(self.conv1(checked))))
        return self.layer4(self.layer3(self.layer2(self.layer1(maps)))).mean((2, 3))

    def sequence(self, features: Tensor) -> Tensor:
        """The GRU over the clips of sequences, from a zero state: features (B, L, features) -> (B, L, gru)."""
        return self.gru(features)[0]


@dataclass(frozen=True)
class Backbones:
    """The two extractors, and hashes that name their weights."""

    visual: VisualBackbone
    audio: AudioBackbone

    def digest(self) -> str:
        """16 hex digits over every parameter and buffer and its name: the same on every machine."""
        return _digest(self._tensors())

    def feature_digest(self) -> str:
        """`digest` without the GRU, which does not touch the stored CNN features: the feature store's key."""
        return _digest({name: value for name, value in self._tensors().items() if not name.startswith("audio.gru.")})

    def to(self, device: torch.device | str) -> Backbones:
        """Moves both networks, in place."""
        self.visual.to(device)
        self.audio.to(device)
        return self

    def _tensors(self) -> dict[str, Tensor]:
        parts: dict[str, nn.Module] = {"visual": self.visual, "audio": self.audio}
        return {
            f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()
        }


@fx.wrap  # a branch on shapes: traced as one call
def _checked(name: str, batch: Tensor, sample: tuple[int | None, ...]) -> Tensor:
    """`batch` itself. ValueError unless its shape is (B, *sample), where None stands for any size."""
    given = tuple(batch.shape)
    if len(given) != 1 + len(sample) or any(
        size not in (None, found) for size, found in zip(sample, given[1:], strict=True)
    ):
        expected = ", ".join("any" if size is None else str(size) for size in sample)
        raise ValueError(f"{name}: shape (B, {expected}) expected, got {given}")
    return batch


def _video_block(channels: int, out: int, stride: int, shortcut: nn.Module | None) -> nn.Module:
    return VideoBlock(channels, out, Conv2Plus1D, stride, shortcut)


def _stage(
    block: BlockMaker, convolution: type, norm: type, channels: int, out: int, blocks: int, stride: int
) -> nn.Sequential:
    """`blocks` residual blocks; the first changes channels and resolution, with a 1x1 projection as its shortcut."""
    shortcut = None
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(convolution(channels, out, 1, stride=stride, bias=False), norm(out))
    return nn.Sequential(block(channels, out, stride, shortcut), *(block(out, out, 1, None) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    """torchvision's start for residual networks; linear layers and GRU keep PyTorch's."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def _half(size: int) -> int:
    """The size after a convolution of stride 2 with padding kernel // 2."""
    return (size + 1) // 2


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        total.update(value.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]
