"""When clips end, which frames they show, and how they are grouped in sequences: pure index arithmetic.

All times are seconds on the container's clock (float64), at any frame rate, constant or not. A frame is shown from its
timestamp until the next one's; the last frame is shown for ever, and so is the first one backwards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jmt_fast.config import CLIP_FRAMES, CLIP_STEP, FRAME_STEP, STRIDES

TICKS_PER_SECOND = 30
TOLERANCE = 6.1e-4
"""Seconds by which a frame may come late and still count as on time: above the half millisecond by which the clocks of
Matroska and WebM round (at 30 fps every third frame is stamped 0.33 ms late), far below a frame at 240 fps (4 ms)."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def clip_times(timestamps: ArrayLike, stride: int) -> FloatArray:
    """Ends of a video's clips: t_first + n * stride/30 s up to the last frame, plus one at the last frame.

    The closing clip is left out where the last clip of the grid lies within `TOLERANCE` of the last frame.

    Args:
        timestamps: (F,) seconds, not decreasing, F >= 1.
        stride: thirtieths of a second, one of 1, 2, 4, 8, 16, 32.

    Returns:
        (N,) float64, increasing, N >= 1.
    """
    stamps = checked_timestamps(timestamps)
    _phases(stride)
    first, last = stamps[0], stamps[-1]
    count = int(np.floor((last - first + TOLERANCE) * TICKS_PER_SECOND / stride)) + 1
    times = first + np.arange(count, dtype=np.float64) * stride / TICKS_PER_SECOND
    if last - times[-1] > TOLERANCE:
        times = np.append(times, last)
    return times


def shown(timestamps: ArrayLike, at: ArrayLike) -> IntArray:
    """The frame shown at each time: the last one with timestamp <= time + `TOLERANCE`; before the first frame, 0.

    Args:
        timestamps: (F,) seconds, not decreasing, F >= 1.
        at: seconds, any shape.

    Returns:
        int64 frame indices in the shape of `at`.
    """
    stamps = checked_timestamps(timestamps)
    after = np.searchsorted(stamps, np.asarray(at, np.float64) + TOLERANCE, side="right")
    return np.maximum(after - 1, 0).astype(np.int64)


def clip_frames(timestamps: ArrayLike, times: ArrayLike) -> IntArray:
    """The eight frames of each clip: those shown at t - 4k/30 s, k = 7..0 (at 30 fps: dilation 4 over 32 frames).

    Args:
        timestamps: (F,) seconds, not decreasing, F >= 1.
        times: (N,) seconds, ends of the clips.

    Returns:
        (N, 8) int64 frame indices, not decreasing along a row; 0 before the first frame.
    """
    ends = np.asarray(times, np.float64)
    if ends.ndim != 1:
        raise ValueError(f"times must have shape (N,), not {ends.shape}")
    before = FRAME_STEP * np.arange(CLIP_FRAMES - 1, -1, -1) / TICKS_PER_SECOND
    return shown(timestamps, ends[:, None] - before)


def chains(count: int, stride: int) -> list[IntArray]:
    """The 32/stride phases of `count` clips: phase p holds the clips n with n % (32/stride) == p.

    Neighbours in a chain lie 32/30 s apart; the closing clip of `clip_times` takes the next index, so only the step to
    it is shorter.
    """
    phases = _phases(stride)
    return [np.arange(phase, count, phases, dtype=np.int64) for phase in range(phases)]


def sequences(count: int, stride: int, length: int) -> IntArray:
    """Clips cut in sequences: every clip in exactly one row, a row within one chain, the last rows padded.

    With P = 32/stride phases, row r holds clips of phase r % P, and the rows b*P .. b*P + P-1 hold exactly the clips
    b*P*length .. (b+1)*P*length - 1: a stream of clips can be served block by block.

    Returns:
        (S, length) int64 clip indices; -1 is padding, at the end of a row only. No row is empty.
    """
    phases = _phases(stride)
    if count < 0:
        raise ValueError(f"count must not be negative, not {count}")
    if length < 1:
        raise ValueError(f"length must be at least 1, not {length}")
    blocks = -(-count // (phases * length))
    clips = np.arange(blocks * phases * length, dtype=np.int64).reshape(blocks, length, phases)
    clips[clips >= count] = -1
    rows = clips.swapaxes(1, 2).reshape(-1, length)
    return rows[rows[:, 0] >= 0]


def checked_timestamps(timestamps: ArrayLike) -> FloatArray:
    """`timestamps` as float64 (F,). Raises ValueError unless they are one-dimensional, filled, finite and sorted."""
    stamps = np.asarray(timestamps, np.float64)
    if stamps.ndim != 1 or not stamps.size:
        raise ValueError(f"timestamps must have shape (F,) with F >= 1, not {stamps.shape}")
    if not np.isfinite(stamps).all() or (np.diff(stamps) < 0).any():
        raise ValueError("timestamps must be finite and must not decrease")
    return stamps


def _phases(stride: int) -> int:
    if stride not in STRIDES:
        raise ValueError(f"stride must be one of {', '.join(map(str, STRIDES))} thirtieths of a second, not {stride}")
    return CLIP_STEP // stride
