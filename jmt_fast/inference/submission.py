"""The VA Estimation Challenge's submission: one text file over all trials, a row a frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from jmt_fast.errors import DataError
from jmt_fast.inference.formats import READABLE, read_traces, whole

HEADER = "image_location,valence,arousal"
LISTED = 5  # trials that a message names

Values = Mapping[str, np.ndarray]  # of each trial, (F, 2): valence, arousal


@dataclass(frozen=True)
class Submitted:
    """What was written, and where the traces and the sample did not fit each other."""

    rows: int
    trials: int
    warnings: list[str] = field(default_factory=list)


def trace_files(folder: str | Path) -> list[Path]:
    """The trace files in a folder, by name; of one stem in several formats the first of READABLE.

    Names that begin with `_` or `.` are not traces: ledgers, and files being written. Raises DataError for a folder
    without traces.
    """
    folder = Path(folder)
    try:
        names = sorted(path for path in folder.iterdir() if path.suffix.removeprefix(".") in READABLE)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}; give a folder of traces") from error
    found: dict[str, Path] = {}
    for path in sorted(names, key=lambda path: READABLE.index(path.suffix.removeprefix("."))):
        if not path.name.startswith(("_", ".")) and not path.name.endswith("_timeseries.csv") and path.is_file():
            found.setdefault(path.stem, path)
    if not found:
        endings = ", ".join(f".{each}" for each in READABLE)
        raise DataError(f"{folder}: no traces ({endings}) in it; `jmt-fast predict` writes them")
    return [found[stem] for stem in sorted(found)]


def write_submission(folder: str | Path, out: str | Path, sample: str | Path | None = None) -> Submitted:
    """Write the traces of a folder, one file a trial named like it, as `<trial>/00001.jpg,valence,arousal` rows.

    With the challenge's `sample`, exactly its rows in its order; frames behind the end of a trace repeat its last
    value, with a warning. Raises DataError, and writes nothing, when a trial of the sample has no trace or a trace or
    the sample is damaged.
    """
    values: dict[str, np.ndarray] = {}
    for path in trace_files(folder):
        traces = read_traces(path)
        if len(traces) > 1:
            raise DataError(f"{path}: {len(traces)} people in one trace; a trial is one person: give a file for each")
        values[path.stem] = np.clip(traces[0].values, -1, 1)
    rows = list(_every_row(values) if sample is None else _sample_rows(Path(sample)))
    warnings = [] if sample is None else _compare(Path(sample), rows, values)
    out = Path(out)
    with whole(out) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{HEADER}\n")
        for location, trial, frame in rows:
            valence, arousal = values[trial][min(frame, len(values[trial]) - 1)]
            file.write(f"{location},{valence:.6f},{arousal:.6f}\n")
    return Submitted(len(rows), len({trial for _, trial, _ in rows}), warnings)


Row = tuple[str, str, int]  # image location, trial, frame from 0


def _every_row(values: Values) -> Iterator[Row]:
    for trial, each in values.items():
        for frame in range(len(each)):
            yield f"{trial}/{frame + 1:05d}.jpg", trial, frame


def _sample_rows(sample: Path) -> Iterator[Row]:
    try:
        lines = sample.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{sample}: the sample cannot be read ({error}); check the path") from error
    if lines[0].strip() != HEADER:
        raise DataError(f"{sample}:1: found {lines[0][:60]!r} in place of the header {HEADER}; give the official file")
    seen: set[str] = set()
    for number, line in enumerate(lines[1:], start=2):
        location = line.split(",")[0].strip()
        path = PurePosixPath(location)
        if len(path.parts) != 2 or path.suffix != ".jpg" or not path.stem.isdecimal() or int(path.stem) < 1:
            raise DataError(f"{sample}:{number}: expected <trial>/00001.jpg, found {location[:60]!r}; correct the row")
        if location in seen:
            raise DataError(f"{sample}:{number}: {location} comes a second time; give the official file")
        seen.add(location)
        yield location, path.parts[0], int(path.stem) - 1
    if not seen:
        raise DataError(f"{sample}: no rows behind the header; give the official file")


def _compare(sample: Path, rows: list[Row], values: Values) -> list[str]:
    """Warnings with the counts; DataError for trials without a trace."""
    asked: dict[str, int] = {}
    for _, trial, frame in rows:
        asked[trial] = max(asked.get(trial, 0), frame + 1)
    if missing := [trial for trial in asked if trial not in values]:
        raise DataError(
            f"{sample}: {len(missing)} of its {len(asked)} trials have no trace: {_some(missing)}; predict them"
        )
    warnings = [
        f"{trial}: {len(values[trial])} frames in the trace, {count} in the sample: the last value is repeated"
        if count > len(values[trial])
        else f"{trial}: {len(values[trial])} frames in the trace, {count} in the sample: the rest is left out"
        for trial, count in asked.items()
        if count != len(values[trial])
    ]
    if others := [trial for trial in values if trial not in asked]:
        warnings.append(f"{len(others)} traces are not in the sample and are left out: {_some(others)}")
    return warnings


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
