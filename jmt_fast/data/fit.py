"""Labels of frames from rows of annotation: by number, or by time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jmt_fast.config import UNANNOTATED
from jmt_fast.data.windows import TOLERANCE

Labels = NDArray[np.float32]


def labelled(labels: ArrayLike) -> NDArray[np.bool_]:
    """Which rows are annotated: (..., 2) -> (...) bool, true where neither dimension is -5."""
    values = np.asarray(labels)
    if values.ndim < 1 or values.shape[-1] != 2:
        raise ValueError(f"labels must have shape (..., 2), not {values.shape}")
    return (values != UNANNOTATED).all(axis=-1)


def reconcile(labels: ArrayLike, frames: int, name: str) -> tuple[Labels, str | None]:
    """Labels for exactly `frames` frames: row i stays with frame i, surplus rows are cut, missing ones are -5.

    Args:
        labels: (rows, 2).
        frames: frames that can be decoded.
        name: what the warning calls the recording.

    Returns:
        (frames, 2) float32, and the text of a warning with both counts, or None where they agree.
    """
    values = np.asarray(labels, np.float32)
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"labels must have shape (rows, 2), not {values.shape}")
    rows = len(values)
    if rows == frames:
        return values, None
    kept = min(rows, frames)
    fitted = np.full((frames, 2), UNANNOTATED, np.float32)
    fitted[:kept] = values[:kept]
    end = (
        f"the last {rows - kept} rows are not used"
        if rows > frames
        else f"the last {frames - kept} frames count as not annotated"
    )
    return fitted, f"{name}: {rows} annotation rows for {frames} frames; {end}"


def resample(labels: ArrayLike, times: ArrayLike, timestamps: ArrayLike, name: str) -> tuple[Labels, str | None]:
    """Labels at times of any rate -> labels of frames, linear between two neighbouring rows that are both annotated.

    Next to a row that is not annotated only the frames at an annotated row's own time are. The first and the last row
    hold for half a (median) step beyond; further out nothing is annotated.

    Args:
        labels: (rows, 2).
        times: (rows,) seconds, increasing.
        timestamps: (F,) seconds on the same clock.
        name: what the warning calls the recording.

    Returns:
        (F, 2) float32, and the text of a warning where rows or frames lie outside of the other's span, or None.
    """
    values, at, stamps = np.asarray(labels, np.float64), np.asarray(times, np.float64), np.asarray(timestamps, float)
    if values.shape != (len(at), 2) or at.ndim != 1 or (np.diff(at) <= 0).any():
        raise ValueError(f"need labels (rows, 2) with increasing times (rows,), not {values.shape} and {at.shape}")
    fitted = np.full((len(stamps), 2), UNANNOTATED, np.float32)
    if not len(at) or not len(stamps):
        return fitted, f"{name}: {len(at)} annotation rows for {len(stamps)} frames; no frame is annotated"
    step, frame = (float(np.median(np.diff(each))) if len(each) > 1 else 0.0 for each in (at, stamps))
    reach = step / 2
    inside = (stamps >= at[0] - reach - TOLERANCE) & (stamps <= at[-1] + reach + TOLERANCE)
    before = np.maximum(np.searchsorted(at, stamps, side="right") - 1, 0)
    after = np.minimum(before + (stamps > at[before]), len(at) - 1)
    known = labelled(values)
    share = np.clip((stamps - at[before]) / np.where(after > before, at[after] - at[before], 1.0), 0, 1)
    # beside a row that is not annotated, a frame takes the other one's value if it is at its time
    share = np.where(~known[after] & (stamps - at[before] <= TOLERANCE), 0.0, share)
    share = np.where(~known[before] & (at[after] - stamps <= TOLERANCE), 1.0, share)
    reached = inside & (known[before] | (share == 1)) & (known[after] | (share == 0))
    fitted[reached] = ((1 - share[:, None]) * values[before] + share[:, None] * values[after])[reached]
    slack = step + frame + TOLERANCE  # the last frame lasts until the video's end, and the last row may close it
    outside = int(((at < stamps[0] - slack) | (at > stamps[-1] + slack)).sum())
    if not outside and inside.all():
        return fitted, None
    return fitted, (
        f"{name}: annotation from {at[0]:.2f} to {at[-1]:.2f} s, frames from {stamps[0]:.2f} to {stamps[-1]:.2f} s; "
        f"{outside} of {len(at)} rows are not used, {int((~inside).sum())} frames outside count as not annotated"
    )
