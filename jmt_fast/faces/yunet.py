"""YuNet (Wu et al. 2023, https://doi.org/10.1007/s11633-023-1423-y), MIT licence: 53,000 parameters, no anchors.

Convolutions that mix channels, then filter each one by itself. Three maps of strides 8, 16 and 32, the coarse ones
added to the finer, and at each place of each: is this a face, is this place the one that knows it best, the box, and
five points.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jmt_fast.faces.detector import Faces
from jmt_fast.faces.network import NetworkDetector, chosen, conv
from jmt_fast.faces.weights import WEIGHTS

STRIDES = (8, 16, 32)  # pixels of the picture a place of each map
WIDTH = 64  # channels of the maps


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), *conv(outputs, outputs, 3, groups=outputs))


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(WIDTH, channels, 1), nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    )  # fmt: skip


class YuNetNet(nn.Module):
    """RGB pictures (B, 3, H, W) in [0, 255], sides multiples of 32 -> candidates, one a place of the three maps:
    scores (B, N) in [0, 1], boxes (B, N, 4) left, top, right, bottom, points (B, N, 5, 2) x, y, in pixels.

    Layers with weights stand in the order in which the ONNX file runs them. The heads compute in float32 whatever the
    dtype of the rest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(3, 16, 3, 2), *_unit(16, 16))
        widths = (16, 32, WIDTH, WIDTH, WIDTH, WIDTH)
        self.stages = nn.ModuleList(
            nn.Sequential(*_unit(before, before), *_unit(before, after)) for before, after in pairwise(widths)
        )
        self.sides = nn.ModuleList(_unit(WIDTH, WIDTH) for _ in STRIDES)  # the coarsest first
        self.heads = nn.ModuleList(nn.ModuleList(_head(channels) for _ in STRIDES) for channels in (1, 4, 1, 10))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(self.stem(pictures.flip(1)), 2)  # it has learnt from blue, green, red
        maps = []
        for number, stage in enumerate(self.stages):
            x = stage(x if number in (0, 1) else F.max_pool2d(x, 2))
            maps.append(x)
        x, maps = maps.pop(), maps[2:]
        levels: list[Tensor] = []
        for side in self.sides:
            x = side(x)
            levels.insert(0, x.float())
            if maps:
                x = maps.pop() + F.interpolate(x, scale_factor=2.0, mode="nearest")
        found = [
            _candidates([head(level) for head in heads], stride)
            for level, stride, *heads in zip(levels, STRIDES, *self.heads, strict=True)
        ]
        scores, boxes, points = (torch.cat(part, 1) for part in zip(*found, strict=True))
        return scores, boxes, points


def _candidates(heads: Sequence[Tensor], stride: int) -> tuple[Tensor, Tensor, Tensor]:
    face, box, best, points = (head.flatten(2).mT for head in heads)  # (B, places, channels)
    height, width = heads[0].shape[2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=face.device), torch.arange(width, device=face.device), indexing="ij"
    )
    place = torch.stack([columns, rows], -1).reshape(-1, 2).float()  # x, y
    middle, half = (place + box[..., :2]) * stride, box[..., 2:].exp() * stride / 2
    return (
        (face.sigmoid() * best.sigmoid()).sqrt().squeeze(-1),
        torch.cat([middle - half, middle + half], -1),
        (place[:, None] + points.unflatten(-1, (5, 2))) * stride,
    )


class YuNet(NetworkDetector):
    """The detector: a third of CenterFace's time."""

    weights = WEIGHTS["yunet"]
    network = YuNetNet
    threshold = 0.6  # of the class YuNet in OpenCV's zoo

    def decode(self, maps: Sequence[Tensor], limits: tuple[int, int], scale: np.ndarray) -> Faces:
        scores, boxes, points = (candidates[maps[0] > self.threshold] for candidates in maps)
        return chosen(boxes, scores, points, limits, scale)
