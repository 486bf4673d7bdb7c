"""Clips of video in a file of resized frames, from which they come at the speed of the disk."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jmt_fast.errors import DataError, JMTError, MediaError
from jmt_fast.training.clips import ClipReader, Clips, Progress
from jmt_fast.training.distributed import host, of_all, own_here

_BLACK = -1
_ROOM = 0.8  # of the free disk space, at most, for resized frames


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
        self.opened, self.labels = reader.opened, reader.labels
        self.targets, self.times, self.videos = reader.targets[kept], reader.times[kept], reader.videos[kept]
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
                rows[mine], kept[mine] = _add(file, shapes, reader, number)
            except MediaError as error:
                warnings.warn(f"{error}; training goes on without it", stacklevel=2)
            if progress:
                progress(done + 1, len(numbers), f"frames of {opened.recording.name}")
    sizes = np.array(shapes, np.int64).reshape(-1, 3)
    ends = sizes.prod(1).cumsum()
    return _Part(path, ends - sizes.prod(1), sizes, rows, kept)


def _add(
    file: BinaryIO, shapes: list[tuple[int, ...]], reader: ClipReader, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Write the frames of a recording's clips; rows of their positions, and whether the stream reaches a clip's end."""
    rows = reader.rows[reader.videos == number]
    place = np.full(len(reader.opened[number].timestamps), _BLACK)  # of each of the video's frames
    last = -1
    for indices, pictures in reader.pictures(number, np.unique(rows)):
        last = indices[-1]
        if pictures is not None:
            place[indices] = np.arange(len(shapes), len(shapes) + len(indices))
            shapes += [picture.shape for picture in pictures]
            file.write(np.ascontiguousarray(pictures).data)
    return place[rows], rows.max(1) <= last  # the stream may end before its index says


def open_clips(path: Path, reader: ClipReader, progress: Progress | None = None) -> Clips:
    """The clips of a reader in a cache at `path`; the reader itself where the free disk space is too small for one."""
    if all(of_all(reader.size < _ROOM * shutil.disk_usage(path.parent).free)):
        return ClipCache(path, reader, progress)
    return reader
