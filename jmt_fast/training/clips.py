"""Labelled clips of video for training a visual backbone: where they are, their pictures, and batches of them."""

from __future__ import annotations

import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from jmt_fast.config import CLIP_FRAMES
from jmt_fast.data import OpenRecording, Recording, clip_frames, clip_labels, clip_times
from jmt_fast.data.graph import ClipGraph
from jmt_fast.errors import DataError, JMTError, MediaError

_CHUNK = 32  # decoded frames held at once: 200 MB at 1920 x 1080
_BLACK = -1
_ROOM = 0.8  # of the free disk space, at most, for resized frames

Frame = tuple[int, np.ndarray | None]
Progress = Callable[[int, int, str], None]


class Clips(ABC):
    """Clips of 8 resized frames (h, w, 3) uint8, with `targets` float32 (C, 2)."""

    targets: np.ndarray
    workers: int  # threads that are worth their while in making batches

    def __init__(self, graph: ClipGraph) -> None:
        self.graph = graph

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def frames(self, clip: int) -> list[np.ndarray]:
        """The eight frames of a clip, black where one is missing."""

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
        side = self.graph.frame_config.crop
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

    def black(self) -> np.ndarray:
        return np.zeros((self.graph.frame_config.resize, self.graph.frame_config.resize, 3), np.uint8)

    def resized(self, frames: Iterable[Frame]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Runs of frames of one size: their indices and pictures (n, h, w, 3). Frames that are None are left out."""
        for shape, run in groupby(frames, lambda frame: None if frame[1] is None else frame[1].shape):
            if shape is not None:
                indices, pictures = zip(*run, strict=True)
                yield list(indices), self.graph.resized([pictures])[0].cpu().numpy()


class ClipReader(Clips):
    """All labelled clips of some recordings, at `stride`, decoded when they are asked for.

    Each clip is a seek to the keyframe before it. Safe to use from several threads. A recording that cannot be probed
    is passed over with a warning; frames that cannot be decoded are black. Raises DataError when no labelled clip is
    left; `frames` raises MediaError for a file that has become unreadable.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        graph: ClipGraph,
        stride: int,
        label: Literal["end", "mean"] = "end",
        label_lag: float = 0.0,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(graph)
        self.workers = len(os.sched_getaffinity(0))
        self.opened: list[OpenRecording] = []
        targets, rows, videos = [np.zeros((0, 2), np.float32)], [np.zeros((0, CLIP_FRAMES), np.int64)], []
        for number, recording in enumerate(recordings):
            try:
                opened = OpenRecording(recording)
                times = clip_times(opened.timestamps, stride)
                target, known = clip_labels(opened.labels(), opened.timestamps, times, mode=label, lag=label_lag)
                targets.append(target[known])
                rows.append(clip_frames(opened.timestamps, times[known]))
                videos.append(np.full(known.sum(), len(self.opened)))
                self.opened.append(opened)
            except MediaError as error:
                warnings.warn(f"{error}; training goes on without it", stacklevel=2)
            if progress:
                progress(number + 1, len(recordings), f"clips of {recording.name}")
        self.targets, self.rows = np.concatenate(targets), np.concatenate(rows)
        self.videos = np.concatenate(videos) if videos else np.zeros(0, np.int64)  # of each clip, which recording
        if not len(self):
            raise DataError(f"no labelled clip in {len(recordings)} recordings; check splits and annotations")

    def frames(self, clip: int) -> list[np.ndarray]:
        row = self.rows[clip]
        pictures: dict[int, np.ndarray] = {}
        for indices, resized in self.resized(self.opened[self.videos[clip]].frames(np.unique(row))):
            pictures.update(zip(indices, resized, strict=True))
        return [pictures[index] if index in pictures else self.black() for index in row.tolist()]

    @property
    def size(self) -> int:
        """Bytes of all resized frames that the clips need, about."""
        side = self.graph.frame_config.resize
        total = 0
        for number, opened in enumerate(self.opened):
            sides = (1, 1) if opened.recording.crops else (opened.info.height, opened.info.width)
            count = len(np.unique(self.rows[self.videos == number]))
            total += count * 3 * side * side * max(sides) // min(sides)
        return total


class ClipCache(Clips):
    """The clips of a reader, each of their frames decoded and resized once into the file `path`.

    The file is mapped into memory: what is used often stays there, and what does not fit comes from the disk. Missing
    frames are black, and a recording that cannot be decoded is passed over with a warning. Raises DataError when no
    clip is left, JMTError when the disk is full.
    """

    workers = 1

    def __init__(self, path: Path, reader: ClipReader, progress: Progress | None = None) -> None:
        super().__init__(reader.graph)
        self._starts: list[int] = []  # of each frame, its first byte in the file
        self._sizes: list[tuple[int, ...]] = []  # and its shape
        self._rows = np.full(reader.rows.shape, _BLACK)  # of each clip, its frames' numbers in the file
        kept = np.zeros(len(reader), bool)
        try:
            with path.open("wb") as file:
                for number, opened in enumerate(reader.opened):
                    mine = reader.videos == number
                    try:
                        self._rows[mine], kept[mine] = self._add(file, opened, reader.rows[mine])
                    except MediaError as error:
                        warnings.warn(f"{error}; training goes on without it", stacklevel=2)
                    if progress:
                        progress(number + 1, len(reader.opened), f"frames of {opened.recording.name}")
        except OSError as error:
            raise JMTError(f"{path}: cannot keep resized frames ({error.strerror}); free some space there") from error
        self.targets, self._rows = reader.targets[kept], self._rows[kept]
        if not len(self):
            raise DataError(f"none of the {len(reader)} labelled clips can be decoded; check the videos")
        self._data = np.memmap(path, np.uint8, "r") if self._starts else np.zeros(0, np.uint8)

    def frames(self, clip: int) -> list[np.ndarray]:
        """As in `Clips`; not copied."""
        return [self.black() if frame == _BLACK else self._frame(frame) for frame in self._rows[clip]]

    def _frame(self, index: int) -> np.ndarray:
        start, size = self._starts[index], self._sizes[index]
        return np.asarray(self._data[start : start + int(np.prod(size))]).reshape(size)

    def _add(self, file: BinaryIO, opened: OpenRecording, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Write the frames of these clips; rows of their positions, and whether the stream reaches to a clip's end."""
        place = np.full(len(opened.timestamps), _BLACK)  # of each of the video's frames
        last = -1
        for chunk in _chunks(opened.frames(np.unique(rows))):
            last = chunk[-1][0]
            for indices, pictures in self.resized(chunk):
                place[indices] = np.arange(len(self._starts), len(self._starts) + len(indices))
                for picture in pictures:
                    self._starts.append(self._starts[-1] + int(np.prod(self._sizes[-1])) if self._starts else 0)
                    self._sizes.append(picture.shape)
                file.write(np.ascontiguousarray(pictures).data)
        return place[rows], rows.max(1) <= last  # the stream may end before its index says


def open_clips(path: Path, reader: ClipReader, progress: Progress | None = None) -> Clips:
    """The clips of a reader in a cache at `path`; the reader itself where the free disk space is too small for one."""
    if reader.size < _ROOM * shutil.disk_usage(path.parent).free:
        return ClipCache(path, reader, progress)
    return reader


def _chunks(frames: Iterator[Frame]) -> Iterator[list[Frame]]:
    while chunk := list(islice(frames, _CHUNK)):
        yield chunk


class ClipLoader:
    """Batches of augmented clips, drawn at random over all videos, each clip once an epoch at most.

    What a step holds depends on (seed, epoch, step) alone: threads make the next batches ahead, as many as `clips` can
    use, or `workers`. With several `ranks` each gets its own part of a step: `batch` clips. The parts of all ranks are
    the step that one rank would get with their batches together. Only what does not fill a last step is left out.
    """

    def __init__(
        self, clips: Clips, batch: int, seed: int, rank: int = 0, ranks: int = 1, workers: int | None = None
    ) -> None:
        if len(clips) < ranks:
            raise DataError(f"{len(clips)} labelled clips are too few for {ranks} processes; use fewer")
        self._clips = clips
        self._batch = min(batch, len(clips) // ranks)
        self._seed = seed
        self._part = slice(rank * self._batch, (rank + 1) * self._batch)
        self._step = ranks * self._batch
        self._workers = workers or clips.workers

    def __len__(self) -> int:
        return len(self._clips) // self._step

    def epoch(self, epoch: int) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """All steps: a name, and pictures uint8 (batch, 8, crop, crop, 3) with targets float32 (batch, 2)."""
        draw = np.random.default_rng((self._seed, epoch))
        order, state = draw.permutation(len(self._clips)), draw.bit_generator.state

        def make(step: int) -> tuple[str, tuple[Tensor, Tensor]]:
            chosen = order[step * self._step : (step + 1) * self._step][self._part]
            x, y, flip = _numbers(state, 3 * step * self._step, self._step)[:, self._part]
            pictures = self._clips.inputs(chosen, x, y, flip < 0.5)
            return f"clips {chosen[0]}, ...", (pictures, torch.from_numpy(self._clips.targets[chosen]))

        return self._ahead(make)

    def _ahead(self, make: Callable[[int], tuple[str, tuple[Tensor, Tensor]]]) -> Iterator:
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="clips")
        try:
            steps = iter(range(len(self)))
            made = deque(pool.submit(make, step) for step in islice(steps, self._workers))
            while made:
                ready = made.popleft().result()
                made.extend(pool.submit(make, step) for step in islice(steps, 1))
                yield ready
        finally:
            pool.shutdown(cancel_futures=True)


def _numbers(state: Any, skipped: int, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), (3, count), `skipped` of them further on than a generator in this state."""
    generator = np.random.PCG64()
    generator.state = state
    generator.advance(skipped)
    return np.random.Generator(generator).random((3, count))
