"""What detection networks share: pictures shrunk and padded to a batch, boxes chosen among candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from jmt_fast.faces.detector import Faces
from jmt_fast.faces.onnx import read, take_over
from jmt_fast.faces.weights import Weights
from jmt_fast.runtime import sent

MULTIPLE = 32  # the coarsest map's stride: sides must be multiples of it
LONGER = 640  # a picture's longer side, at most, which bounds its time; a face should then be some 12 pixels wide
OVERLAP = 0.3  # boxes that share more than this (intersection over union) are one face


class NetworkDetector(ABC):
    """A detector: shrinks and pads pictures, runs the network on all of them at once, reads boxes off its maps.

    `net`, a `network`: RGB pictures (B, 3, H, W) in [0, 255], sides multiples of 32 -> a tuple of float32 tensors
    (B, ...); its `heads` compute in float32, and its layers with weights stand in the order in which the ONNX file runs
    them. `dtype`: of all but the heads. `threshold`: faces with a lower score are left out.
    """

    weights: ClassVar[Weights]
    network: ClassVar[type[nn.Module]]
    threshold: float

    def __init__(
        self,
        net: Any,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        threshold: float | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.net = net.to(self.device, dtype, memory_format=torch.channels_last).eval()
        self.net.heads.float()
        if threshold is not None:
            self.threshold = threshold

    @classmethod
    def pretrained(cls, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """With the published weights. Raises JMTError when they cannot be had."""
        net = cls.network()
        take_over(net, read(cls.weights.read()))
        return cls(net, device, dtype)

    @abstractmethod
    def decode(self, maps: Sequence[Tensor], limits: tuple[int, int], scale: np.ndarray) -> Faces:
        """Faces from what the network gives for one picture, which it saw `limits` (height, width) large; in pixels of
        the original, `scale` (x, y) times as large."""

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Faces]:
        """Faces on each picture, (H, W, 3) uint8 RGB; the pictures of one call have one size."""
        if not len(pictures):
            return []
        height, width = pictures[0].shape[:2]
        tall, wide = _shrunk(height, width)
        batch = torch.from_numpy(np.stack(pictures)).movedim(3, 1)
        if (tall, wide) != (height, width):
            # Bytes, on the CPU: a sixteenth of the time of float32 there, and CUDA has no such kernel for bytes.
            batch = F.interpolate(batch, (tall, wide), mode="bilinear", antialias=True)
        batch = F.pad(sent(batch.contiguous(), self.device), (0, -wide % MULTIPLE, 0, -tall % MULTIPLE))
        batch = batch.to(self.dtype).contiguous(memory_format=torch.channels_last)
        # One by one, the maps of a picture stay in a processor's cache: half the time of a batch of eight.
        parts = batch.split(1 if self.device.type == "cpu" else len(batch))
        scale = np.array([width / wide, height / tall], np.float32)
        return [
            self.decode([one[number] for one in maps], (tall, wide), scale)
            for maps in map(self.net, parts)
            for number in range(len(maps[0]))
        ]


def _shrunk(height: int, width: int) -> tuple[int, int]:
    factor = min(1.0, LONGER / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def chosen(boxes: Tensor, scores: Tensor, points: Tensor, limits: tuple[int, int], scale: np.ndarray) -> Faces:
    """Of candidates that overlap the best one: boxes (N, 4), scores (N,), points (N, 5, 2), x before y.

    Boxes are clipped to `limits` (height, width); then everything is multiplied by `scale` (x, y).
    """
    if not len(boxes):
        return Faces.none()
    height, width = limits
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    keep = nms(boxes, scores, OVERLAP)
    return Faces(
        (boxes[keep].cpu().numpy() * np.tile(scale, 2)).astype(np.float32),
        scores[keep].cpu().numpy(),
        (points[keep].cpu().numpy() * scale).astype(np.float32),
    )


def conv(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the sides, but for its stride, and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups), nn.ReLU(inplace=True)
    )  # fmt: skip
