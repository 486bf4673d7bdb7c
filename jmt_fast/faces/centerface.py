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
from torchvision.ops import nms

from jmt_fast.faces import weights
from jmt_fast.faces.detector import Faces
from jmt_fast.faces.onnx import Graph, read

STRIDE = 4  # pixels of the picture a place of the map
MULTIPLE = 32  # the coarsest map's stride: sides must be multiples of it
LONGER = 640  # a picture's longer side, at most: larger ones are shrunk for detection
OVERLAP = 0.3  # boxes that share more than this (intersection over union) are one face
# MobileNetV2's stages after the first: expansion, channels, blocks, stride of the first block
STAGES = ((6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
TAPS = (2, 5, 12, 16)  # blocks whose outputs have strides 4, 8, 16 and 32
WIDTH = 24  # channels of the map


class _Block(nn.Module):
    """Widen, filter each channel, narrow; added to the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [_conv(inputs, hidden)] if expansion > 1 else []
        self.widen = nn.Sequential(*layers, _conv(hidden, hidden, 3, stride, groups=hidden))
        self.narrow = nn.Conv2d(hidden, outputs, 1)
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.widen(x))
        return x + y if self.added else y


def _conv(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups), nn.ReLU(inplace=True)
    )  # fmt: skip


class _Merge(nn.Module):
    """A coarse map, enlarged, plus a finer one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH, eps=1e-3)
        self.side = _conv(channels, WIDTH)

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
        self.stem = _conv(3, 32, 3, 2)
        blocks, width = [_Block(32, 16, 1, 1)], 16
        for expansion, channels, count, stride in STAGES:
            for number in range(count):
                blocks.append(_Block(width, channels, expansion, stride if number == 0 else 1))
                width = channels
        self.blocks = nn.ModuleList(blocks)
        self.top = _conv(320, WIDTH)
        self.merges = nn.ModuleList(_Merge(channels) for channels in (96, 32, 24))
        self.smooth = _conv(WIDTH, WIDTH, 3)
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

    def load_onnx(self, graph: Graph) -> None:
        """Take over the weights of the ONNX file. Raises ValueError where its layers are not this network's."""
        kinds = {"Conv": nn.Conv2d, "ConvTranspose": nn.ConvTranspose2d, "BatchNormalization": nn.BatchNorm2d}
        nodes = [node for node in graph.nodes if node.op in kinds]
        layers = [layer for layer in self.modules() if isinstance(layer, tuple(kinds.values()))]
        if [kinds[node.op] for node in nodes] != [type(layer) for layer in layers]:
            raise ValueError("the file's layers are not CenterFace's")
        with torch.no_grad():
            for node, layer in zip(nodes, layers, strict=True):
                names = ("weight", "bias", "running_mean", "running_var")
                for name, source in zip(names, node.inputs[1:], strict=False):
                    value, place = torch.from_numpy(graph.tensors[source].copy()), getattr(layer, name)
                    if place.shape != value.shape:
                        raise ValueError(f"{source}: {tuple(value.shape)}, expected {tuple(place.shape)}")
                    place.copy_(value)


class CenterFace:
    """The detector: shrinks and pads pictures, runs the network on all of them at once, reads boxes off its maps.

    `dtype`: of all but the heads. `threshold`: faces with a lower score are left out. `longer`: pictures with a longer
    side are shrunk to it, so that the time a picture takes is bounded; a face should then still be some 12 pixels wide.
    """

    def __init__(
        self,
        net: CenterFaceNet,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        threshold: float = 0.5,
        longer: int = LONGER,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.net = net.to(self.device, dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.net.heads.float()
        self.threshold = threshold
        self.longer = longer

    @classmethod
    def pretrained(cls, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> CenterFace:
        """With the published weights. Raises JMTError when they cannot be had."""
        net = CenterFaceNet()
        net.load_onnx(read(weights.centerface()))
        return cls(net, device, dtype)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Faces]:
        """Faces on each picture, (H, W, 3) uint8 RGB; the pictures of one call have one size."""
        if not len(pictures):
            return []
        height, width = pictures[0].shape[:2]
        tall, wide = _shrunk(height, width, self.longer)
        batch = torch.from_numpy(np.stack(pictures)).movedim(3, 1)
        if (tall, wide) != (height, width):
            # Bytes, on the CPU: a sixteenth of the time of float32 there, and CUDA has no such kernel for bytes.
            batch = F.interpolate(batch, (tall, wide), mode="bilinear", antialias=True)
        batch = F.pad(batch.to(self.device), (0, -wide % MULTIPLE, 0, -tall % MULTIPLE))
        batch = batch.to(self.dtype).contiguous(memory_format=torch.channels_last)
        # One by one, the maps of a picture stay in a processor's cache: half the time of a batch of eight.
        parts = batch.split(1 if self.device.type == "cpu" else len(batch))
        scale = np.array([width / wide, height / tall], np.float32)
        return [
            decode([one[number] for one in maps], self.threshold, (tall, wide), scale)
            for maps in map(self.net, parts)
            for number in range(len(maps[0]))
        ]


def _shrunk(height: int, width: int, longer: int) -> tuple[int, int]:
    factor = min(1.0, longer / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def decode(maps: Sequence[Tensor], threshold: float, limits: tuple[int, int], scale: np.ndarray) -> Faces:
    """Faces from one picture's maps: (1, h, w), (2, h, w), (2, h, w), (10, h, w), as `CenterFaceNet` describes them.

    Boxes are clipped to `limits` (height, width) of the picture that the network saw; then everything is multiplied
    by `scale` (x, y).
    """
    heat, size, offset, points = maps
    rows, columns = torch.nonzero(heat[0] > threshold, as_tuple=True)
    if not len(rows):
        return Faces.none()
    sides = size[:, rows, columns].exp() * STRIDE  # (2, N): height, width
    place = torch.stack([rows, columns])
    corner = (place + offset[:, rows, columns] + 0.5) * STRIDE - sides / 2
    marks = points[:, rows, columns].unflatten(0, (5, 2)) * sides + corner  # (5, 2, N)
    limit = torch.tensor(limits, device=heat.device)[:, None]
    near, far = (edge.clamp(min=0).minimum(limit) for edge in (corner, corner + sides))
    boxes = torch.cat([near.flip(0), far.flip(0)]).T  # (N, 4): left, top, right, bottom
    scores = heat[0, rows, columns]
    keep = nms(boxes, scores, OVERLAP)
    return Faces(
        (boxes[keep].cpu().numpy() * np.tile(scale, 2)).astype(np.float32),
        scores[keep].cpu().numpy(),
        (marks[:, :, keep].permute(2, 0, 1).flip(2).cpu().numpy() * scale).astype(np.float32),
    )
