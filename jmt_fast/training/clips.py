"""Labelled clips of video for training a visual backbone: where they are, their pictures, and batches of them."""

from __future__ import annotations

import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from jmt_fast.training.distributed import host, of_all, own_here

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
    frames are black, and a recording that cannot be decoded is passed over with a warning. The ranks of a host share
    the work and the files: each has a `path` of its own. Raises DataError when no clip is left, JMTError when the disk
    is full.
    """

    workers = 1

    def __init__(self, path: Path, reader: ClipReader, progress: Progress | None = None) -> None:
        super().__init__(reader.graph)
        try:
            written = of_all((host(), _write(path, reader, progress)))
        except OSError as error:
            raise JMTError(f"{path}: cannot keep resized frames ({error.strerror}); free some space there") from error
        kept = np.ones(len(reader), bool)
        for each in {at for at, _ in written}:  # what one host cannot decode, none draws from
            kept &= np.any([part.kept for at, part in written if at == each], 0)
        self.targets = reader.targets[kept]
        if not len(self):
            raise DataError(f"none of the {len(reader)} labelled clips can be decoded; check the videos")
        self._parts = [part for at, part in written if at == host()]
        self._part = np.argmax([part.kept[kept] for part in self._parts], 0)  # of each clip, which one has its frames
        self._rows = np.max([part.rows[kept] for part in self._parts], 0)  # and their numbers there
        self._data = [
            np.memmap(part.path, np.uint8, "r") if len(part.starts) else np.zeros(0, np.uint8) for part in self._parts
        ]

    def frames(self, clip: int) -> list[np.ndarray]:
        """As in `Clips`; not copied."""
        part = self._part[clip]
        return [self.black() if frame == _BLACK else self._frame(part, frame) for frame in self._rows[clip]]

    def _frame(self, part: int, frame: int) -> np.ndarray:
        start, shape = self._parts[part].starts[frame], self._parts[part].shapes[frame]
        return np.asarray(self._data[part][start : start + int(np.prod(shape))]).reshape(shape)


@dataclass(frozen=True)
class _Part:
    """A file of resized frames, those of some of a reader's clips.

    Of each frame `starts` (n,), its first byte, and `shapes` (n, 3); of each of the reader's clips `rows` (C, 8), its
    frames' numbers in this file, and `kept` (C,): they are here.
    """

    path: Path
    starts: np.ndarray
    shapes: np.ndarray
    rows: np.ndarray
    kept: np.ndarray


def _write(path: Path, reader: ClipReader, progress: Progress | None) -> _Part:
    """Write the frames of this rank's part of the recordings."""
    shapes: list[tuple[int, ...]] = []
    rows, kept = np.full(reader.rows.shape, _BLACK), np.zeros(len(reader), bool)
    numbers = own_here(range(len(reader.opened)))
    with path.open("wb") as file:
        for done, number in enumerate(numbers):
            opened, mine = reader.opened[number], reader.videos == number
            try:
                rows[mine], kept[mine] = _add(file, shapes, reader, opened, reader.rows[mine])
            except MediaError as error:
                warnings.warn(f"{error}; training goes on without it", stacklevel=2)
            if progress:
                progress(done + 1, len(numbers), f"frames of {opened.recording.name}")
    sizes = np.array(shapes, np.int64).reshape(-1, 3)
    ends = sizes.prod(1).cumsum()
    return _Part(path, ends - sizes.prod(1), sizes, rows, kept)


def _add(
    file: BinaryIO, shapes: list[tuple[int, ...]], reader: ClipReader, opened: OpenRecording, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Write the frames of these clips; rows of their positions, and whether the stream reaches to a clip's end."""
    place = np.full(len(opened.timestamps), _BLACK)  # of each of the video's frames
    last = -1
    for chunk in _chunks(opened.frames(np.unique(rows))):
        last = chunk[-1][0]
        for indices, pictures in reader.resized(chunk):
            place[indices] = np.arange(len(shapes), len(shapes) + len(indices))
            shapes += [picture.shape for picture in pictures]
            file.write(np.ascontiguousarray(pictures).data)
    return place[rows], rows.max(1) <= last  # the stream may end before its index says


def open_clips(path: Path, reader: ClipReader, progress: Progress | None = None) -> Clips:
    """The clips of a reader in a cache at `path`; the reader itself where the free disk space is too small for one."""
    if all(of_all(reader.size < _ROOM * shutil.disk_usage(path.parent).free)):
        return ClipCache(path, reader, progress)
    return reader


def _chunks(frames: Iterator[Frame]) -> Iterator[list[Frame]]:
    while chunk := list(islice(frames, _CHUNK)):
        yield chunk


class ClipLoader:
    """Batches of augmented clips, drawn at random over all videos, each clip once an epoch at most.

    What a step of `batch` clips holds depends on (seed, epoch, step) alone: threads make the next ones ahead, as many
    as `clips` can use, or `workers`. With `part` (n, of N) it gives the n-th of N equal parts of each step. Only what
    does not fill a last step is left out. Raises DataError where a step cannot be shared out evenly.
    """

    def __init__(
        self, clips: Clips, batch: int, seed: int, part: tuple[int, int] = (0, 1), workers: int | None = None
    ) -> None:
        number, parts = part
        if len(clips) < parts:
            raise DataError(f"{len(clips)} labelled clips are too few for {parts} processes; use fewer")
        if batch % parts:
            raise DataError(f"batches of {batch} clips cannot be shared evenly by {parts} processes; set another batch")
        self._clips = clips
        size = min(batch, len(clips)) // parts
        self._seed = seed
        self._part = slice(number * size, (number + 1) * size)
        self._step = parts * size
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
