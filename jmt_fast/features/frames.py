"""The frames of a recording, each decoded and prepared once, handed out as clips."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch

from jmt_fast.config import CLIP_FRAMES
from jmt_fast.data.graph import ClipGraph, can_decode
from jmt_fast.data.recording import OpenRecording
from jmt_fast.errors import DataError, MediaError
from jmt_fast.faces import Cropper
from jmt_fast.media.route import Route
from jmt_fast.models import Clips
from jmt_fast.runtime import sent
from jmt_fast.threads import ahead

log = logging.getLogger(__name__)
CHUNK = 16  # frames decoded ahead: 100 MB at 1920 x 1080
BLACK = np.zeros((16, 16, 3), np.uint8)
Chunk = list[tuple[int, Any]]  # frame indices, and arrays (H, W, 3), Jpegs or None for what is missing
# n frame indices, those of them that are black, and the frames, each (3, crop, crop)
Prepared = tuple[list[int], list[int], Iterable[torch.Tensor]]


class FrameSource:
    """Clips in the order of their times from one pass over the stream; only frames still needed are kept.

    `wanted` int64 (W,), sorted: every frame index that will be asked for. `missing` collects the indices of frames that
    could not be had, which are black. `ended` is None, or the number of frames when the stream was shorter than its
    index says. With `in_graph` the media graph decodes; where it gives up, the frames from there on come from PyAV.
    Else PyAV decodes, and with a `cropper` what it cuts out of a frame takes the place of the graph's centre square.
    """

    def __init__(
        self,
        recording: OpenRecording,
        wanted: np.ndarray,
        graph: ClipGraph,
        in_graph: bool = False,
        cropper: Cropper | None = None,
    ) -> None:
        self.missing: list[int] = []
        self.ended: int | None = None
        self._recording = recording
        self._wanted = wanted
        self._graph = graph
        self._cropper = cropper
        self._ready: dict[int, torch.Tensor] = {}  # frame index -> (3, crop, crop), in increasing order
        self._next = 0  # position in `wanted` of the first frame that is not ready
        self._source = self._decoded() if in_graph else self._fed()

    def clips(self, rows: np.ndarray) -> Clips:
        """Frame indices (n, 8) -> those clips, frames float32 on the graph's device. Later calls never go back.

        None of them when the stream has no frame at all.
        """
        for index in [index for index in self._ready if index < rows.min() and len(self._ready) > 1]:
            del self._ready[index]
        while self.ended is None and self._next < len(self._wanted) and self._wanted[self._next] <= rows.max():
            self._pull()
        if not self._ready:
            return Clips(torch.empty(0), torch.empty(0, CLIP_FRAMES, dtype=torch.int64))
        indices, places = np.unique(rows, return_inverse=True)
        frames = torch.stack([self._frame(int(index)) for index in indices])
        return Clips(frames, torch.from_numpy(places.reshape(rows.shape)))

    def close(self) -> None:
        """Let go of the file, the thread that reads it and the frames that it has read on."""
        self._source.close()

    def _frame(self, index: int) -> torch.Tensor:
        if index not in self._ready:  # only where the stream ended early and its last clip moved off the grid
            index = max((ready for ready in self._ready if ready <= index), default=min(self._ready))
        return self._ready[index]

    def _pull(self) -> None:
        prepared = next(self._source, None)
        if prepared is None:
            self.ended = int(self._wanted[self._next - 1]) + 1 if self._next else 0
            return
        indices, black, frames = prepared
        self._ready.update(zip(indices, frames, strict=True))
        self.missing += black
        self._next += len(indices)

    def _decoded(self) -> Generator[Prepared]:
        """Decoded by the graph itself: every frame passes, the wanted ones are kept."""
        try:
            for first, frames in self._graph.decoded(self._recording.info):
                here = self._wanted[self._next :]
                here = here[here < first + len(frames)]
                if len(here):
                    yield here.tolist(), [], frames[sent(torch.from_numpy(here - first), frames.device)]
        except MediaError as error:  # the probe promised what the stream does not keep: PyAV says what is there
            log.debug("%s; PyAV from there on", error)
            yield from self._fed()

    def _fed(self) -> Generator[Prepared]:
        """Decoded by PyAV, or face crops that are still encoded, and fed to the graph."""
        wanted = self._wanted[self._next :]
        position = 0
        shorter = self._graph.shorter if self._cropper is None else None  # faces are cut out of whole frames
        for chunk in ahead(_chunks(self._recording.pictures(wanted, shorter))):
            filled: Chunk = []
            for index, frame in chunk:
                lost = position + int(np.searchsorted(wanted[position:], index))
                filled += [(int(each), None) for each in wanted[position:lost]]
                filled.append((index, frame))
                position = lost + 1
            yield self._prepared(filled)

    def _prepared(self, frames: Chunk) -> Prepared:
        cut: Iterable[torch.Tensor]
        try:
            try:
                cut = self._cut(frames)
            except DataError:
                frames = self._graph.decodable(frames)
                cut = self._cut(frames)
        except DataError as error:  # frames too large for this machine: this file's fault, not the collection's
            raise MediaError(f"{self._recording.recording.video}: {error}") from error
        return [index for index, _ in frames], [index for index, frame in frames if frame is None], cut

    def _cut(self, frames: Chunk) -> Iterable[torch.Tensor]:
        if self._cropper is not None:
            return self._cropper(frames)
        [tensors] = self._graph.frames([[frame for _, frame in frames if frame is not None]])
        shown = iter(tensors)
        return [self._black if frame is None else next(shown) for _, frame in frames]

    @cached_property
    def _black(self) -> torch.Tensor:
        return self._graph.frames([[BLACK]])[0][0]


def choose_decoder(recording: OpenRecording, graph: ClipGraph, cropper: Cropper | None) -> Route:
    """On a GPU the graph decodes what NVDEC knows; on a CPU PyAV is faster, as it skips frames before conversion.

    Told to the logger at level DEBUG.
    """
    chosen = _decoder(recording, graph, cropper)
    log.debug("%s: %s", recording.recording.video, chosen.reason)
    return chosen


def _decoder(recording: OpenRecording, graph: ClipGraph, cropper: Cropper | None) -> Route:
    if recording.recording.crops is not None:
        place = "GPU" if graph.runs_on.type == "cuda" else "CPU"
        return Route(False, f"prepared face crops, JPEGs decoded by DALI on the {place}")
    if recording.stills is not None:
        return Route(False, "pictures, decoded on the CPU")
    if graph.device.type != "cuda":
        return Route(False, "PyAV on the CPU: no GPU is used")
    if graph.runs_on.type != "cuda":
        return Route(False, "PyAV on the CPU: DALI cannot use the GPU")
    if cropper is not None:
        return Route(False, "PyAV on the CPU: crops are cut out of whole frames")
    return Route(*can_decode(recording.info, graph.device))


def _chunks(frames: Iterator[tuple[int, Any]]) -> Iterator[Chunk]:
    while chunk := list(islice(frames, CHUNK)):
        yield chunk
