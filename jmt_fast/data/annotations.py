"""Annotation files of Aff-Wild2: one row per frame, valence and arousal, -5 where a frame is not annotated."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jmt_fast.config import UNANNOTATED
from jmt_fast.errors import DataError

HEADER = ("valence", "arousal")

Labels = NDArray[np.float32]


def read_affwild2(path: str | Path) -> Labels:
    """Rows of one `<trial>.txt` of the VA Estimation Challenge, in file order; -5 is kept.

    Windows line ends, a byte-order mark and blank lines at the end are accepted.

    Returns:
        (rows, 2) float32: valence, arousal.

    Raises:
        DataError: naming file and line, for a missing header, a wrong number of columns, a field that is not a number,
            or a value that is neither in [-1, 1] nor -5. A blank line between rows counts as a wrong row: to skip it
            would shift the rest.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotation ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file (byte {error.start} is not UTF-8); expected valence,arousal rows"
                        ) from error
    if tuple(field.strip().lower() for field in lines[0].split(",")) != HEADER:
        raise DataError(f"{path}:1: found {lines[0][:60]!r} in place of the header valence,arousal; add it, or check "
                        "that this is an annotation of the VA Estimation Challenge")
    rows = [_row(path, number, line) for number, line in enumerate(lines[1:], start=2)]
    return np.asarray(rows, np.float32).reshape(-1, 2)


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
    end = (f"the last {rows - kept} rows are not used" if rows > frames else
           f"the last {frames - kept} frames count as not annotated")
    return fitted, f"{name}: {rows} annotation rows for {frames} frames; {end}"


def _row(path: Path, number: int, line: str) -> tuple[float, float]:
    fields = line.split(",")
    if len(fields) != len(HEADER):
        raise DataError(f"{path}:{number}: expected 2 columns (valence,arousal), found {line[:60]!r}; correct the row")
    valence, arousal = (_value(path, number, *column) for column in zip(HEADER, fields, strict=True))
    return valence, arousal


def _value(path: Path, number: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise DataError(f"{path}:{number}: {column} {text.strip()[:40]!r} is not a number; use -5 for a frame without "
                        "annotation")
    if value != UNANNOTATED and not -1 <= value <= 1:
        raise DataError(f"{path}:{number}: {column} {text.strip()[:40]} lies outside [-1, 1]; use -5 for a frame "
                        "without annotation")
    return value
