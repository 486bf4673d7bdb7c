"""The faces of a video: found once, then cut out of its frames as the networks want them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice

import numpy as np
import torch

from jmt_fast.config import TICK, FrameConfig
from jmt_fast.faces.align import letterbox, similarity, template, warp
from jmt_fast.faces.detector import Detector, Faces
from jmt_fast.faces.track import Person, people

EVERY = 8 * TICK  # seconds between the frames that are looked at
BATCH = 8  # pictures a call of the detector: 50 MB at 1920 x 1080


def looked_at(timestamps: np.ndarray) -> np.ndarray:
    """int64, ascending: the frames to look for faces on. The first, one each `EVERY` seconds, the last."""
    times = np.arange(timestamps[0], timestamps[-1], EVERY)
    return np.unique(np.append(np.searchsorted(timestamps, times - TICK / 100), len(timestamps) - 1))


def find_people(
    frames: Iterable[tuple[int, np.ndarray | None]],
    timestamps: np.ndarray,
    detector: Detector,
    progress: Callable[[int], None] | None = None,
) -> list[Person]:
    """Everybody in a video, the largest first.

    `frames`: index and picture (H, W, 3) uint8 of the frames `looked_at`, None or nothing for one that cannot be
    decoded. `timestamps` float64 (F,): of all frames, seconds. `progress` is told the index of the last frame seen.
    """
    there = ((index, picture) for index, picture in frames if picture is not None)

    def found() -> Iterator[tuple[float, Faces]]:
        for _, same in groupby(there, lambda frame: frame[1].shape):
            while part := list(islice(same, BATCH)):
                faces = detector([picture for _, picture in part])
                yield from zip((float(timestamps[index]) for index, _ in part), faces, strict=True)
                if progress:
                    progress(part[-1][0])

    return people(found(), timestamps)


class Cropper:
    """Frames of a video -> the networks' input: one person's aligned face, or with no person the whole picture.

    Both are black outside of the picture, and a face is black where its person is not valid.
    """

    def __init__(self, config: FrameConfig, device: torch.device, person: Person | None = None) -> None:
        self._config = config
        self._device = device
        self._valid = person.valid if person else None
        self._points = person.points if person else None
        self._template = template(config.resize, config.crop)
        self._mean, self._std = (
            torch.tensor(values, device=device)[:, None, None] for values in (config.mean, config.std)
        )

    def __call__(self, frames: Sequence[tuple[int, np.ndarray | None]]) -> torch.Tensor:
        """`cut`, normalised."""
        return (self.cut(frames) / 255 - self._mean) / self._std

    def cut(self, frames: Sequence[tuple[int, np.ndarray | None]]) -> torch.Tensor:
        """float32 (n, 3, crop, crop), grey levels, of n frames: index and picture (H, W, 3) uint8, None if lost."""
        return torch.stack([self._cut(index, picture, self._config.crop) for index, picture in frames])

    def _cut(self, index: int, picture: np.ndarray | None, size: int) -> torch.Tensor:
        if picture is None or (self._valid is not None and not self._valid[index]):
            return torch.zeros(3, size, size, device=self._device)
        if self._points is None:
            matrix = letterbox(picture.shape[0], picture.shape[1], size)
        else:
            matrix = similarity(self._points[index], self._template)
        return warp(picture, matrix, size, self._device)
