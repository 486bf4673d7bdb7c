"""Clips as frames that they share, and R(2+1)D over them with its first layers computed once a frame, on a CPU.

The clips of a video lie closer together than their frames reach: at strides of 4 and 8 thirtieths of a second a clip
has 7 and 6 of its 8 frames in common with the one before, moved by 1 and 2 positions. A layer's maps at a position
depend on the frames up to `depth` positions away, `depth` being the number of temporal convolutions so far; those that
do not reach beyond the clip's ends, where zeros stand, are the same in both clips. At depth 3, behind the stem and the
first block (a third of the network's work), next to nothing is left to share.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from jmt_fast.config import CLIP_FRAMES
from jmt_fast.models.onednn import FusedConvolution, RowWinograd, module_of
from jmt_fast.runtime import sent

SHIFTS = (1, 2)  # from 3 on the clips' ends, computed apart, eat up what is shared
# Positions kept of each layer: 160 MB at 224. At least twice a clip, so that moving one to the front never overlaps.
SLOTS = 2 * CLIP_FRAMES
Span = tuple[int, int]  # positions in a clip: the first, and the one behind the last
CLIP: Span = (0, CLIP_FRAMES)


@dataclass(frozen=True)
class Clips:
    """N clips: frames (F, 3, crop, crop), normalised, and each clip's frames as indices, int64 (N, 8) on the CPU."""

    frames: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, 8, crop, crop)."""
        channels, *size = self.frames.shape[1:]
        return torch.Size((len(self.rows), channels, self.rows.shape[1], *size))

    def split(self, size: int) -> tuple[Clips, ...]:
        """Parts of `size` clips; the last one may have fewer."""
        return tuple(Clips(self.frames, rows) for rows in self.rows.split(size))

    def stacked(self) -> Tensor:
        """(N, 3, 8, crop, crop), what the backbone takes."""
        return self.frames[sent(self.rows, self.frames.device)].transpose(1, 2)

    @staticmethod
    def cat(parts: Sequence[Clips]) -> Clips:
        """The clips of all parts, in their order."""
        before = torch.tensor([0, *(len(part.frames) for part in parts)]).cumsum(0).tolist()
        rows = [part.rows + start for part, start in zip(parts, before, strict=False)]
        return Clips(torch.cat([part.frames for part in parts]), torch.cat(rows))


class SharingNetwork(nn.Module):
    """R(2+1)D over `Clips` by a network from `onednn.fuse`: each clip's features are those of the network alone.

    What clips share is found from one clip to the next, so a video's clips should come in the order of their times.
    """

    stem: FusedConvolution
    first: FusedConvolution | RowWinograd
    second: FusedConvolution | RowWinograd
    dtype: torch.dtype

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__()
        nodes = [
            node for node in network.graph.nodes if isinstance(module_of(network, node), FusedConvolution | RowWinograd)
        ][:6]
        layers: list[Any] = [
            network.get_submodule(str(node.target)) for node in nodes
        ]  # spatial and temporal ones in turn
        self.stem, self.first, self.second = layers[0::2]
        self.stem_time, self.first_time, self.second_time = (_unpadded(layer) for layer in layers[1::2])
        self.rest = _behind(network, nodes[-1])
        self.dtype = self.stem.packed.dtype
        self._idle: list[_Kept] = []  # as many as threads have been in here at once

    def forward(self, clips: Clips) -> Tensor:
        """-> (N, features) in the network's dtype. Calls from several threads are safe."""
        kept = self._idle.pop() if self._idle else _Kept()
        kept.forget()
        try:
            return torch.cat([self.rest(self._start(kept, clips.frames, row)) for row in clips.rows.tolist()])
        finally:
            self._idle.append(kept)

    def _start(self, kept: _Kept, frames: Tensor, row: list[int]) -> Tensor:
        """A clip's maps behind the first block (1, C, 8, H, W); (2, C, 8, H/2, W) where Winograd splits the rows."""
        kept.advance(row)
        for span in kept.new(depth=0):
            pictures = frames[row[slice(*span)]].to(self.dtype).contiguous(memory_format=torch.channels_last)
            kept.put("stem", span, [self.stem(pictures.transpose(0, 1)[None])])
        for span in kept.new(depth=1):
            [stem] = kept.around("stem", span)
            maps = self.stem_time(stem)
            halves = [maps[..., 0::2, :], maps[..., 1::2, :]] if isinstance(self.first, RowWinograd) else [maps]
            kept.put("block", span, halves)
            kept.apply("first", span, self.first, kept.at("block", span))
        for span in kept.new(depth=2):
            kept.apply("second", span, self.second, [self.first_time(half) for half in kept.around("first", span)])
        pairs = zip(kept.around("second", CLIP), kept.at("block", CLIP), strict=True)
        return torch.cat([self.second_time(half, shortcut) for half, shortcut in pairs])


class _Kept:
    """The maps of the current clip and of those before it, layer by layer along the time axis.

    A layer's maps are one tensor (1, C, SLOTS, H, W), channels-last, or two of half the rows where Winograd's products
    want them split. Position p of the current clip is slot `_base + p`.
    """

    def __init__(self) -> None:
        self._layers: dict[str, list[Tensor]] = {}
        self.forget()

    def forget(self) -> None:
        """The next clip shares nothing with what is here."""
        self._row: list[int] = []
        self._shift, self._base = CLIP_FRAMES, 1

    def advance(self, row: list[int]) -> None:
        """Makes the clip of the frames `row` the current one."""
        self._shift = next((shift for shift in SHIFTS if row[:-shift] == self._row[shift:]), CLIP_FRAMES)
        self._base += self._shift
        self._row = row
        if self._base + CLIP_FRAMES >= SLOTS:  # the slot behind the clip is for zeros, as is the one before it
            shared = CLIP_FRAMES - self._shift
            for maps in chain.from_iterable(self._layers.values()):
                maps[:, :, 1 : 1 + shared] = maps[:, :, self._base : self._base + shared]
            self._base = 1

    def new(self, depth: int) -> list[Span]:
        """Where a layer behind `depth` temporal convolutions differs from the maps of the clip before."""
        if self._shift + 2 * depth >= CLIP_FRAMES:
            return [CLIP]
        return [(0, depth)] * bool(depth) + [(CLIP_FRAMES - depth - self._shift, CLIP_FRAMES)]

    def at(self, name: str, span: Span) -> list[Tensor]:
        """A layer's maps at the positions of `span`: what they are may be written there."""
        first, end = (self._base + position for position in span)
        return [maps[:, :, first:end] for maps in self._layers[name]]

    def around(self, name: str, span: Span) -> list[Tensor]:
        """With the position before and the one behind, zeros at the clip's ends: what a temporal convolution takes."""
        for maps in self._layers[name]:
            maps[:, :, self._base - 1] = 0
            maps[:, :, self._base + CLIP_FRAMES] = 0
        return self.at(name, (span[0] - 1, span[1] + 1))

    def put(self, name: str, span: Span, values: list[Tensor]) -> None:
        """Keeps a layer's maps."""
        self._reserve(name, values, values[0].shape[1])
        for maps, value in zip(self.at(name, span), values, strict=True):
            maps.copy_(value)

    def apply(self, name: str, span: Span, layer: FusedConvolution | RowWinograd, values: list[Tensor]) -> None:
        """Keeps what a layer that leaves the maps' size as it is makes of `values`."""
        if isinstance(layer, RowWinograd):
            self._reserve(name, values, layer.channels)
            layer.halves(values, self.at(name, span))
        else:
            self.put(name, span, [layer(value) for value in values])

    def _reserve(self, name: str, values: list[Tensor], channels: int) -> None:
        if name not in self._layers:
            self._layers[name] = [
                value.new_empty(1, SLOTS, *value.shape[3:], channels).permute(0, 4, 1, 2, 3) for value in values
            ]


def _unpadded(layer: FusedConvolution) -> FusedConvolution:
    """The same temporal convolution without its zeros at the ends."""
    convolution = copy.copy(layer.convolution)
    convolution.padding = (0, 0, 0)
    return FusedConvolution(convolution, layer.activation is not None)


def _behind(network: fx.GraphModule, last: fx.Node) -> fx.GraphModule:
    """The part of a network that follows `last`, with its value as the input."""
    graph = fx.Graph()
    known = {last: graph.placeholder("maps")}
    nodes = list(network.graph.nodes)
    for node in nodes[nodes.index(last) + 1 :]:
        known[node] = graph.node_copy(node, known.__getitem__)
    return fx.GraphModule(network, graph)
