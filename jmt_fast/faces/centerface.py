"""CenterFace (Xu et al. 2019, https://arxiv.org/abs/1911.03599), MIT licence: one small network, no anchors.

A MobileNetV2 whose maps of strides 4 to 32 are added up, top down, to one of stride 4. At each place of it: the
probability that a face has its middle here, the offset of that middle, the logarithm of the box's size, and five
points relative to the box.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jmt_fast.faces.detector import Faces
from jmt_fast.faces.network import NetworkDetector, chosen, conv
from jmt_fast.faces.weights import WEIGHTS

STRIDE = 4  # pixels of the picture a place of the map
# MobileNetV2's stages after the first: expansion, channels, blocks, stride of the first block
STAGES = ((6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
TAPS = (2, 5, 12, 16)  # blocks whose outputs have strides 4, 8, 16 and 32
WIDTH = 24  # channels of the map


class _Block(nn.Module):
    """Widen, filter each channel, narrow; added to the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [conv(inputs, hidden)] if expansion > 1 else []
        self.widen = nn.Sequential(*layers, conv(hidden, hidden, 3, stride, groups=hidden))
        self.narrow = nn.Conv2d(hidden, outputs, 1)
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.widen(x))
        return x + y if self.added else y


class _Merge(nn.Module):
    """A coarse map, enlarged, plus a finer one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH, eps=1e-3)
        self.side = conv(channels, WIDTH)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return F.relu(self.norm(self.up(coarse))) + self.side(fine)


class CenterFaceNet(nn.Module):
    """RGB pictures (B, 3, H, W) in [0, 255], sides multiples of 32 -> four float32 maps of a quarter of the size:
    probabilities (B, 1, h, w), log sizes (B, 2, h, w) and offsets (B, 2, h, w), both y before x, and points
    (B, 10, h, w), y before x.

    Layers with weights stand in the order in which the ONNX file runs them. The heads compute in float32 whatever the
    dtype of the rest: places are counted in parts of a pixel, and they are a hundredth of the work.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 32, 3, 2)
        blocks, width = [_Block(32, 16, 1, 1)], 16
        for expansion, channels, count, stride in STAGES:
            for number in range(count):
                blocks.append(_Block(width, channels, expansion, stride if number == 0 else 1))
                width = channels
        self.blocks = nn.ModuleList(blocks)
        self.top = conv(320, WIDTH)
        self.merges = nn.ModuleList(_Merge(channels) for channels in (96, 32, 24))
        self.smooth = conv(WIDTH, WIDTH, 3)
        self.heads = nn.ModuleList(nn.Conv2d(WIDTH, channels, 1) for channels in (1, 2, 2, 10))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.stem(pictures)
        maps = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in TAPS:
                maps.append(x)
        x = self.top(maps.pop())
        for merge in self.merges:
            x = merge(x, maps.pop())
        x = self.smooth(x).float()
        heat, size, offset, points = (head(x) for head in self.heads)
        return heat.sigmoid(), size, offset, points


class CenterFace(NetworkDetector):
    """The detector, with the published code's reading of the maps."""

    weights = WEIGHTS["centerface"]
    network = CenterFaceNet
    threshold = 0.5

    def decode(self, maps: Sequence[Tensor], limits: tuple[int, int], scale: np.ndarray) -> Faces:
        """Faces from one picture's maps: (1, h, w), (2, h, w), (2, h, w), (10, h, w), as `CenterFaceNet` has them."""
        heat, size, offset, points = maps
        rows, columns = torch.nonzero(heat[0] > self.threshold, as_tuple=True)
        sides = size[:, rows, columns].exp() * STRIDE  # (2, N): height, width
        corner = (torch.stack([rows, columns]) + offset[:, rows, columns] + 0.5) * STRIDE - sides / 2
        marks = points[:, rows, columns].unflatten(0, (5, 2)) * sides + corner  # (5, 2, N)
        boxes = torch.cat([corner.flip(0), (corner + sides).flip(0)]).T  # (N, 4): left, top, right, bottom
        return chosen(boxes, heat[0, rows, columns], marks.permute(2, 0, 1).flip(2), limits, scale)
