"""The frames of a video in RGB, with their exact indices (`decode.py`).

Colour follows the rule in `colour.py`. Pixels are taken as square. The display matrix turns a frame, to the nearest
quarter turn, and never mirrors it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path

import av
import numpy as np

from jmt_fast.errors import MediaError
from jmt_fast.media.colour import ToRGB
from jmt_fast.media.decode import Wanted, decode
from jmt_fast.media.probe import MediaInfo, probe
from jmt_fast.threads import threads

AHEAD = 2  # frames that are decoded while an earlier one is converted


def frames(
    path: str | os.PathLike[str], start: int = 0, stop: int | None = None, step: int = 1
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield (index, seconds, frame) for the indices start, start + step, ... below stop; frame (H, W, 3) uint8 RGB.

    Frames that cannot be decoded are left out. Raises MediaError as `select` does, ValueError for a negative `start` or
    `stop` or a step below 1.
    """
    if start < 0 or step < 1 or (stop is not None and stop < 0):
        raise ValueError(f"start={start}, stop={stop}, step={step}: start and stop must be >= 0, step >= 1")
    return _frames(Path(path), start, stop, step)


def _frames(path: Path, start: int, stop: int | None, step: int) -> Iterator[tuple[int, float, np.ndarray]]:
    info = probe(path)
    yield from select(path, range(start, info.frames if stop is None else min(stop, info.frames), step), info)


def select(
    path: str | os.PathLike[str],
    indices: Iterable[int],
    info: MediaInfo | None = None,
    shorter: int | None = None,
) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yield (index, seconds, frame) for the wanted frames of a video; frame (H, W, 3) uint8 RGB, rotation applied.

    Frames whose shorter side is longer than `shorter` are shrunk to it (`ToRGB`), which costs less here than later.
    `indices` must ascend strictly (else ValueError) and are read lazily. Decoding is linear, from the last keyframe
    before the first wanted frame; only wanted frames are converted, and of H.264 and HEVC those are not decoded that
    are neither wanted nor referred to. Frames that cannot be decoded are left out, and the iteration ends with the
    stream. Raises MediaError if the file cannot be opened or none of its frames can be decoded.
    """
    path = Path(path)
    wanted = Wanted(indices)
    if wanted.first is None:
        return
    info = info or probe(path)
    if wanted.first >= info.frames:
        return
    to_rgb = ToRGB(shorter)
    turns = -info.rotation // 90  # numpy turns counter-clockwise
    width, height = (info.height, info.width) if turns % 2 else (info.width, info.height)

    def converted(frame: av.VideoFrame) -> np.ndarray:
        # A stream may change its size on the way: every frame comes out in the size that `probe` tells.
        return np.ascontiguousarray(np.rot90(to_rgb(frame, width, height), turns))

    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
    with threads(1, "to-rgb") as pool:  # while this thread decodes the next frames
        for index, frame in _shown(path, info, wanted):
            waiting.append((index, pool.submit(converted, frame)))
            if len(waiting) > AHEAD:
                index, ready = waiting.popleft()
                yield index, float(info.timestamps[index]), ready.result()
        for index, ready in waiting:
            yield index, float(info.timestamps[index]), ready.result()


def _shown(path: Path, info: MediaInfo, wanted: Wanted) -> Iterator[tuple[int, av.VideoFrame]]:
    """(index, frame) of the wanted frames. Raises MediaError if none of the video's frames can be decoded."""
    decoded = False
    for index, frame in decode(path, info, wanted):
        decoded = True
        wanted.pass_by(index)
        if wanted.first == index:
            yield index, frame
            wanted.pass_by(index + 1)
        if wanted.first is None:
            return
    if not decoded:
        raise MediaError(f"{path}: none of its {info.codec} frames can be decoded; convert or record the file again")
