"""The label of a clip, from the labels of its frames."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jmt_fast.config import CLIP_SECONDS, UNANNOTATED
from jmt_fast.data.fit import Labels, labelled
from jmt_fast.data.windows import TOLERANCE, checked_timestamps, shown


def clip_labels(
    labels: ArrayLike, timestamps: ArrayLike, times: ArrayLike, mode: Literal["end", "mean"] = "end", lag: float = 0.0
) -> tuple[Labels, NDArray[np.bool_]]:
    """Labels of the clips that end at `times`.

    `end` takes the frame shown at t; `mean` averages the labelled frames of the window (t - 32/30 s, t], which always
    holds the frame shown at t, however low the frame rate. Annotators react late: with `lag` seconds the label of time
    t is read at t + lag. A clip whose t + lag lies outside the video is not labelled.

    Args:
        labels: (F, 2) valence and arousal per frame, -5 where not annotated.
        timestamps: (F,) seconds, not decreasing.
        times: (N,) seconds, ends of the clips.

    Returns:
        (N, 2) float32, -5 where not labelled, and (N,) bool: the clip is labelled.
    """
    stamps = checked_timestamps(timestamps)
    values = np.asarray(labels, np.float32)
    if values.shape != (len(stamps), 2):
        raise ValueError(f"labels must have shape ({len(stamps)}, 2), one row per timestamp, not {values.shape}")
    ends = np.asarray(times, np.float64) + lag
    last = shown(stamps, ends)
    if mode == "end":
        result, valid = values[last], labelled(values)[last]
    elif mode == "mean":
        result, valid = _window_means(values, stamps, ends, last)
    else:
        raise ValueError(f"mode must be 'end' or 'mean', not {mode!r}")
    valid = valid & (ends >= stamps[0] - TOLERANCE) & (ends <= stamps[-1] + TOLERANCE)
    return np.where(valid[:, None], result, np.float32(UNANNOTATED)), valid


def _window_means(
    values: Labels, stamps: NDArray[np.float64], ends: NDArray[np.float64], last: NDArray[np.int64]
) -> tuple[Labels, NDArray[np.bool_]]:
    """Means over the labelled frames of [start, last], from running sums in float64."""
    start = np.searchsorted(stamps, ends - CLIP_SECONDS + TOLERANCE, side="right")
    start = np.minimum(start, last)
    mask = labelled(values)
    sums = np.zeros((len(values) + 1, 3))  # valence, arousal, number of labelled frames
    np.cumsum(np.column_stack([values, np.ones(len(values))]) * mask[:, None], axis=0, out=sums[1:])
    window = sums[last + 1] - sums[start]
    count = window[:, 2:]
    return (window[:, :2] / np.maximum(count, 1)).astype(np.float32), count[:, 0] > 0
