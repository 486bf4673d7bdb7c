"""Labelled clips of video for training a visual backbone: each needed frame decoded and resized once, kept on disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from jmt_fast.config import CLIP_FRAMES
from jmt_fast.data import OpenRecording, Recording, clip_frames, clip_labels, clip_times
from jmt_fast.data.graph import ClipGraph
from jmt_fast.errors import DataError, JMTError, MediaError

_CHUNK = 32  # decoded frames held at once: 200 MB at 1920 x 1080
_BLACK = -1

Frame = tuple[int, np.ndarray | None]


class ClipCache:
    """All labelled clips of some recordings, at `stride`, with `targets` float32 (C, 2).

    Their frames lie in the file `path`, resized as `graph` does, uint8, mapped into memory: what is used often stays
    there, and what does not fit comes from the disk. Missing frames are black. A recording that cannot be decoded is
    passed over with a warning. Raises DataError when no labelled clip is left, JMTError when the disk is full.
    """

    def __init__(
        self,
        path: Path,
        recordings: Sequence[Recording],
        graph: ClipGraph,
        stride: int,
        label: Literal["end", "mean"] = "end",
        label_lag: float = 0.0,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._graph = graph
        self._config = graph.frame_config
        self._starts: list[int] = []  # of each frame, its first byte in the file
        self._sizes: list[tuple[int, ...]] = []  # and its shape
        targets, rows = [np.zeros((0, 2), np.float32)], [np.zeros((0, CLIP_FRAMES), np.int64)]
        try:
            with path.open("wb") as file:
                for number, recording in enumerate(recordings):
                    try:
                        target, row = self._add(file, OpenRecording(recording), stride, label, label_lag)
                        targets.append(target)
                        rows.append(row)
                    except MediaError as error:
                        warnings.warn(f"{error}; training goes on without it", stacklevel=2)
                    if progress:
                        progress(number + 1, len(recordings), f"frames of {recording.name}")
        except OSError as error:
            raise JMTError(f"{path}: cannot keep resized frames ({error.strerror}); free some space there") from error
        self.targets = np.concatenate(targets)
        self._rows = np.concatenate(rows)
        if not len(self):
            raise DataError(f"no labelled clip in {len(recordings)} recordings; check splits and annotations")
        self._data = np.memmap(path, np.uint8, "r") if self._starts else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self.targets)

    def inputs(
        self,
        clips: np.ndarray,
        crop_x: np.ndarray | None = None,
        crop_y: np.ndarray | None = None,
        mirror: np.ndarray | None = None,
    ) -> Tensor:
        """The pictures of some clips: uint8 (n, 8, crop, crop, 3), by default the centre crop.

        `crop_x`, `crop_y` in [0, 1] and `mirror`, one value a clip, place and flip the crop of all its frames.
        """
        side = self._config.crop
        middle = np.full(len(clips), 0.5)
        x, y = middle if crop_x is None else crop_x, middle if crop_y is None else crop_y
        pictures = np.empty((len(clips), CLIP_FRAMES, side, side, 3), np.uint8)
        for number, clip in enumerate(clips):
            across = slice(None, None, -1 if mirror is not None and mirror[number] else 1)
            for position, frame in enumerate(self.frames(clip)):
                height, width, _ = frame.shape
                top, left = int(y[number] * (height - side) + 0.5), int(x[number] * (width - side) + 0.5)
                pictures[number, position] = frame[top : top + side, left : left + side][:, across]
        return torch.from_numpy(pictures)

    def frames(self, clip: int) -> list[np.ndarray]:
        """The eight frames of a clip, each (h, w, 3) uint8, not copied."""
        black = np.zeros((self._config.resize, self._config.resize, 3), np.uint8)
        return [black if frame == _BLACK else self._frame(frame) for frame in self._rows[clip]]

    def _frame(self, index: int) -> np.ndarray:
        start, size = self._starts[index], self._sizes[index]
        return np.asarray(self._data[start : start + int(np.prod(size))]).reshape(size)

    def _add(
        self, file: BinaryIO, opened: OpenRecording, stride: int, label: Literal["end", "mean"], lag: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Write the frames that the recording's labelled clips need; their targets, and rows of positions of frames."""
        times = clip_times(opened.timestamps, stride)
        target, known = clip_labels(opened.labels(), opened.timestamps, times, mode=label, lag=lag)
        if not known.any():
            return target[known], np.zeros((0, CLIP_FRAMES), np.int64)
        needed = clip_frames(opened.timestamps, times[known])
        place = np.full(len(opened.timestamps), _BLACK)  # of each of the video's frames
        last = -1
        for chunk in _chunks(opened.frames(np.unique(needed))):
            last = chunk[-1][0]
            for shape, run in groupby(chunk, lambda frame: None if frame[1] is None else frame[1].shape):
                if shape is not None:
                    indices, pictures = zip(*run, strict=True)
                    place[list(indices)] = np.arange(len(self._starts), len(self._starts) + len(indices))
                    self._write(file, self._graph.resized([pictures])[0].cpu().numpy())
        there = needed.max(1) <= last  # the stream may end before its index says
        return target[known][there], place[needed[there]]

    def _write(self, file: BinaryIO, pictures: np.ndarray) -> None:
        for picture in pictures:
            self._starts.append(self._starts[-1] + int(np.prod(self._sizes[-1])) if self._starts else 0)
            self._sizes.append(picture.shape)
        file.write(np.ascontiguousarray(pictures).data)


def _chunks(frames: Iterator[Frame]) -> Iterator[list[Frame]]:
    while chunk := list(islice(frames, _CHUNK)):
        yield chunk
