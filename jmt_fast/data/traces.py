"""From the values of clips to a trace per frame, and its smoothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray


def to_frames(times: ArrayLike, values: ArrayLike, timestamps: ArrayLike) -> NDArray[np.float32]:
    """Values at the frames: linear between clips by timestamp, held before the first and after the last clip.

    Args:
        times: (N,) seconds, increasing, N >= 1.
        values: (N, 2) valence and arousal; clipped to [-1, 1] first.
        timestamps: (F,) seconds.

    Returns:
        (F, 2) float32 in [-1, 1].
    """
    clips, stamps = np.asarray(times, np.float64), np.asarray(timestamps, np.float64)
    points = np.clip(np.asarray(values, np.float64), -1, 1)
    if clips.ndim != 1 or not clips.size or (np.diff(clips) <= 0).any():
        raise ValueError("times must have shape (N,) with N >= 1 and must increase")
    if points.shape != (len(clips), 2):
        raise ValueError(f"values must have shape ({len(clips)}, 2), one row per time, not {points.shape}")
    columns = [np.interp(stamps, clips, points[:, dimension]) for dimension in range(2)]
    return np.stack(columns, axis=-1).astype(np.float32)


def smooth(values: ArrayLike, windows: Sequence[int], kind: str = "uniform") -> NDArray[np.float32]:
    """Running mean (`uniform`) or `median` over `windows` = (valence, arousal) frames; a window of 1 changes nothing.

    The window of frame i holds the w frames from i - w//2 on (scipy.ndimage's placing of even windows). Beyond the
    ends the edge value is repeated: padding with zeros, as the authors do, pulls both ends of a trace towards 0.

    Args:
        values: (F, 2).

    Returns:
        (F, 2) float32.
    """
    trace = np.asarray(values, np.float32)
    if trace.ndim != 2 or trace.shape[1] != 2:
        raise ValueError(f"values must have shape (F, 2), not {trace.shape}")
    if len(windows) != 2 or min(windows) < 1:
        raise ValueError(f"windows must be two numbers of frames, each at least 1, not {tuple(windows)}")
    if kind not in ("uniform", "median"):
        raise ValueError(f"kind must be 'uniform' or 'median', not {kind!r}")
    if not len(trace):
        return trace
    reduce = np.mean if kind == "uniform" else np.median
    columns = []
    for column, window in zip(trace.T.astype(np.float64), windows, strict=True):
        padded = np.pad(column, (window // 2, window - 1 - window // 2), mode="edge")
        columns.append(reduce(sliding_window_view(padded, window), axis=-1))
    return np.stack(columns, axis=-1).astype(np.float32)
