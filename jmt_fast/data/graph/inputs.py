"""What callers hand to the media graph: checked, and shared out to runs of a pipeline."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jmt_fast.media.images import Jpeg

BATCH = 256  # samples a run: a call with fewer needs no copy
BATCH_BYTES = 2**30  # of decoded input a run, which bounds the memory of calls with large frames

Frame = np.ndarray | Jpeg
FrameSequence = np.ndarray | Sequence[Frame]


def checked(sequence: FrameSequence) -> list[Frame]:
    """The frames of a sequence, each a Jpeg, or (H, W, 3) uint8 and contiguous."""
    for frame in sequence[:1] if isinstance(sequence, np.ndarray) else sequence:
        if isinstance(frame, Jpeg):
            continue
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
            raise ValueError(f"sequences: need uint8 arrays, got {getattr(frame, 'dtype', type(frame).__name__)}")
        if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise ValueError(f"sequences: need frames of shape (H, W, 3), got {frame.shape}")
    return [frame if isinstance(frame, Jpeg) else np.ascontiguousarray(frame) for frame in sequence]


def data_of(frames: list[Frame]) -> tuple[list[np.ndarray], bool]:
    """What is fed to the graph, and whether it is encoded."""
    encoded = {isinstance(frame, Jpeg) for frame in frames}
    if len(encoded) > 1:
        raise ValueError("sequences: some frames are Jpegs and some are arrays")
    return [frame.data if isinstance(frame, Jpeg) else frame for frame in frames], encoded == {True}


def part_of(frame: np.ndarray, start: list[float], end: list[float]) -> np.ndarray:
    rows, columns = (slice(int(first), int(last)) for first, last in zip(start, end, strict=True))
    return np.ascontiguousarray(frame[rows, columns])


def per_sequence(name: str, values: Sequence[Any] | np.ndarray | None, count: int, default: float) -> np.ndarray:
    array = np.full(count, default) if values is None else np.asarray(values, dtype=np.float64)
    if array.shape != (count,):
        raise ValueError(f"{name}: need one value per sequence, {count}, got shape {array.shape}")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"{name}: need values in [0, 1]")
    return array


def parts_of(samples: Sequence[Frame]) -> Iterator[slice]:
    """Consecutive slices of at most BATCH samples and, unless one sample alone is larger, BATCH_BYTES."""
    first, size = 0, 0
    for index, sample in enumerate(samples):
        if index > first and (index - first == BATCH or size + sample.nbytes > BATCH_BYTES):
            yield slice(first, index)
            first, size = index, 0
        size += sample.nbytes
    if first < len(samples):
        yield slice(first, len(samples))


def sound_jpeg() -> Jpeg:
    """A small one that every decoder can read."""
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "JPEG")
    jpeg = Jpeg.of(data.getvalue())
    assert jpeg is not None
    return jpeg
