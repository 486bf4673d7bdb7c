"""Annotation files: one row a frame (Aff-Wild2), one entry a frame (AFEW-VA), or values at times of any rate (CSV)."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jmt_fast.config import UNANNOTATED
from jmt_fast.data.fit import Labels, reconcile, resample
from jmt_fast.errors import DataError

HEADER = ("valence", "arousal")
TIME = "time"
AFEW_VA_RANGE = 10  # whole numbers from -10 to 10
FRAME_DIGITS = 7  # of a frame's number
LISTED = 10  # wrong lines that a message names

Pair = tuple[float, float]


@dataclass(frozen=True)
class Annotation:
    """Valence and arousal, `values` (N, 2) float32 with -5 where not annotated, in the order of the file.

    `times` None: row i belongs to frame i. Else (N,) float64, increasing: seconds from where the video file begins.
    """

    values: Labels
    times: NDArray[np.float64] | None = None

    def fit(self, timestamps: ArrayLike, name: str) -> tuple[Labels, str | None]:
        """Labels of the frames shown at `timestamps` (F,) seconds: (F, 2) float32, and a warning or None.

        Rows of frames stay with their frames (`reconcile`), rows with times are interpolated (`resample`). The warning
        tells, with the counts, what of the annotation or of the frames is left over; `name` begins it.
        """
        if self.times is None:
            return reconcile(self.values, len(np.asarray(timestamps)), name)
        return resample(self.values, self.times, timestamps, name)


def read_annotation(path: str | Path) -> Annotation:
    """An annotation of any known kind: `.json` is AFEW-VA's; a table with a column `time` has values at times, one with
    the header `valence,arousal` has a row for each frame. Raises DataError naming file and line."""
    path = Path(path)
    if path.suffix.lower() == ".json":
        return Annotation(read_afew_va(path))
    head = _fields(_lines(path)[0])
    return read_timed(path) if TIME in head else Annotation(read_affwild2(path))


def read_affwild2(path: str | Path) -> Labels:
    """Rows of one `<trial>.txt` of the VA Estimation Challenge, in file order; -5 is kept.

    Windows line ends, a byte-order mark and blank lines at the end are accepted.

    Returns:
        (rows, 2) float32: valence, arousal.

    Raises:
        DataError: naming file and line, and the other wrong lines, for a missing header, a wrong number of columns, a
            field that is not a number, or a value that is neither in [-1, 1] nor -5. A blank line between rows counts
            as a wrong row: to skip it would shift the rest.
    """
    path = Path(path)
    lines = _lines(path)
    if _fields(lines[0]) != HEADER:
        raise DataError(
            f"{path}:1: found {lines[0][:60]!r} in place of the header valence,arousal; add it, or check that this is "
            "an annotation of the VA Estimation Challenge"
        )

    def row(line: str) -> Pair:
        fields = line.split(",")
        if len(fields) != len(HEADER):
            raise _Wrong(f"expected 2 columns (valence,arousal), found {line[:60]!r}; correct the row")
        return _pair(fields)

    return _labels(_each(path, lines[1:], row))


def read_timed(path: str | Path) -> Annotation:
    """A CSV table with the columns `time` (seconds, increasing), `valence` and `arousal`; others are ignored.

    An empty field is -5: not annotated. Blank lines are passed over. Raises DataError naming file and line for a
    missing column, a field that is not a number, a value outside of [-1, 1], or a time that is not behind the last.
    """
    path = Path(path)
    lines = _lines(path)
    head = _fields(lines[0])
    missing = [column for column in (TIME, *HEADER) if head.count(column) != 1]
    if missing:
        raise DataError(
            f"{path}:1: expected one column `{missing[0]}`; there are: {', '.join(head)}; correct the header"
        )
    columns = [head.index(column) for column in (TIME, *HEADER)]
    last = -math.inf

    def row(line: str) -> tuple[float, Pair] | None:
        nonlocal last
        if not line.strip():
            return None
        fields = _split(line)
        if len(fields) != len(head):
            raise _Wrong(f"expected {len(head)} columns, found {line[:60]!r}; correct the row")
        time, *pair = (fields[column] for column in columns)
        seconds = _number(TIME, time)
        if not last < seconds < math.inf:
            raise _Wrong(f"time {time.strip()[:40]} does not come after {last:g}; sort the rows by time")
        last = seconds
        return seconds, _pair([field.strip() or str(UNANNOTATED) for field in pair])

    rows = [found for found in _each(path, lines[1:], row) if found is not None]
    return Annotation(_labels([pair for _, pair in rows]), np.array([seconds for seconds, _ in rows], np.float64))


def read_afew_va(path: str | Path) -> Labels:
    """One clip of AFEW-VA: `{"frames": {"00000": {"valence": 3, "arousal": -1, ...}, ...}, ...}`, values / 10.

    Returns:
        (frames, 2) float32, row i for the frame whose key is the number i; -5 where there is no such key.

    Raises:
        DataError: naming the file and the line or the frame, for what is not such JSON or lies outside of [-10, 10].
    """
    path = Path(path)
    frames = afew_va_clip(path)["frames"]
    rows: dict[int, Pair] = {}
    for key, entry in frames.items():
        where = f"{path}: frame {key!r}"
        if not key.isdecimal() or len(key) > FRAME_DIGITS or int(key) in rows:
            raise DataError(f"{where}: expected one entry for each number of a frame; correct the key")
        found = [entry.get(column) if isinstance(entry, dict) else None for column in HEADER]
        valence, arousal = (_tenth(where, column, value) for column, value in zip(HEADER, found, strict=True))
        rows[int(key)] = (valence, arousal)
    labels = np.full((max(rows) + 1 if rows else 0, 2), UNANNOTATED, np.float32)
    for number, pair in rows.items():
        labels[number] = pair
    return labels


def _tenth(where: str, column: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= AFEW_VA_RANGE:
        raise DataError(f"{where}: {column} {value!r} is not a number from -10 to 10; correct the entry")
    return value / AFEW_VA_RANGE


def afew_va_clip(path: Path) -> dict[str, Any]:
    """The JSON of one clip of AFEW-VA, with a dictionary under `frames`. Raises DataError naming file and line."""
    try:
        clip = json.loads("\n".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}); restore the file") from error
    if not isinstance(clip, dict) or not isinstance(clip.get("frames"), dict):
        raise DataError(f"{path}: no `frames` with an entry for each frame; expected a clip of AFEW-VA")
    return clip


class _Wrong(Exception):
    """What is wrong with a line."""


def _each(path: Path, lines: Sequence[str], row: Callable[[str], Any]) -> list[Any]:
    """`row` of each line behind the header; DataError for the first wrong one, naming the others."""
    rows, wrong = [], []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append(row(line))
        except _Wrong as error:
            wrong.append((number, str(error)))
    if wrong:
        (number, reason), *others = wrong
        more = ", ".join(str(other) for other, _ in others[:LISTED]) + (", ..." if len(others) > LISTED else "")
        also = f"; {len(others)} more rows are wrong, lines {more}" if others else ""
        raise DataError(f"{path}:{number}: {reason}{also}")
    return rows


def _lines(path: Path) -> list[str]:
    """The lines of a text file, without blank ones at the end; one line at least."""
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotation ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not a text file (byte {error.start} is not UTF-8); expected valence,arousal rows"
        ) from error


def _fields(line: str) -> tuple[str, ...]:
    return tuple(field.strip().lower() for field in _split(line))


def _split(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # a field of more than 131,072 characters
        return [line]


def _pair(fields: Sequence[str]) -> Pair:
    valence, arousal = (_value(*column) for column in zip(HEADER, fields, strict=True))
    return valence, arousal


def _value(column: str, text: str) -> float:
    value = _number(column, text)
    if value != UNANNOTATED and not -1 <= value <= 1:
        raise _Wrong(f"{column} {text.strip()[:40]} lies outside [-1, 1]; use -5 for a frame without annotation")
    return value


def _number(column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        hint = "" if column == TIME else "; use -5 for a frame without annotation"
        raise _Wrong(f"{column} {text.strip()[:40]!r} is not a number{hint}")
    return value


def _labels(pairs: Sequence[Pair]) -> Labels:
    return np.asarray(pairs, np.float32).reshape(-1, 2)
