"""Traces as files: written whole or not at all, and read back where the format holds all of the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from jmt_fast.errors import DataError, JMTError
from jmt_fast.inference.elan import beside, write_elan
from jmt_fast.inference.trace import SCHEMA, Trace

READABLE = ("parquet", "csv", "jsonl")  # the first is taken where a folder has one trace in several formats
VIDEO = b"video"  # key of the Parquet file's metadata
CUE = 0.5  # seconds that a subtitle shows


def save(trace: Trace, path: str | Path, format: str | None = None) -> Path:
    """Write a trace as one of FORMATS, by default that of the ending; the file appears whole or not at all.

    `eaf` writes two files more beside it: the series and their configuration (`write_elan`). Raises JMTError for
    another format or when the file cannot be written.
    """
    path = Path(path)
    format = format or path.suffix.removeprefix(".")
    if format not in FORMATS:
        endings = ", ".join(f".{each}" for each in FORMATS)
        raise JMTError(f"{path}: cannot write a trace as {format or 'a file without ending'}; use one of {endings}")
    FORMATS[format](trace, path)
    return path


def files(path: Path) -> tuple[Path, ...]:
    """All that `save` writes for a path."""
    return (path, *beside(path)) if path.suffix == ".eaf" else (path,)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path that is renamed to `path` on leaving, and removed when writing failed.

    Raises JMTError in place of OSError.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise JMTError(f"{path}: cannot be written: {reason}; free some space or pass another --out") from error
    finally:
        temporary.unlink(missing_ok=True)


def _parquet(trace: Trace, path: Path) -> None:
    video = str(trace.source.absolute()).encode(errors="surrogateescape")
    with whole(path) as temporary, temporary.open("wb") as file:  # pyarrow itself opens no name that is not UTF-8
        pa.parquet.write_table(trace.table.replace_schema_metadata({VIDEO: video}), file)


def _csv(trace: Trace, path: Path) -> None:
    with whole(path) as temporary, temporary.open("wb") as file:
        pa.csv.write_csv(trace.table, file)


def _jsonl(trace: Trace, path: Path) -> None:
    with whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for batch in trace.table.to_batches(max_chunksize=10_000):  # objects of two hours' rows take 120 MB
            # the shortest digits that give the float32 back, where its float64 would have 17
            digits = {name: pa.compute.cast(batch[name], pa.string()).to_pylist() for name in ("valence", "arousal")}
            for row, valence, arousal in zip(batch.to_pylist(), *digits.values(), strict=True):
                row |= {"valence": float(valence), "arousal": float(arousal)}
                file.write(json.dumps(row) + "\n")


def _elan(trace: Trace, path: Path) -> None:
    write_elan(trace, path, whole)


def _vtt(trace: Trace, path: Path) -> None:
    """WebVTT: one cue for each half second, with the mean over its valid frames."""
    times, ends, values, valid = trace.times, trace.ends, trace.values, trace.valid
    number = np.floor(times / CUE).astype(np.int64)
    starts = np.flatnonzero(np.diff(number, prepend=number[:1] - 1))
    with whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("WEBVTT\n")
        for begin, end in zip(starts, [*starts[1:], len(number)], strict=True):
            rows = slice(begin, end)
            text = "no face"
            if valid[rows].any():
                valence, arousal = values[rows][valid[rows]].mean(axis=0)
                text = f"valence {valence:+.2f}  arousal {arousal:+.2f}"
            first = max(float(times[begin]), 0.0)
            last = max(float(ends[end - 1]), first + 0.001)
            file.write(f"\n{_clock(first)} --> {_clock(last)}\n{text}\n")


def _clock(seconds: float) -> str:
    whole_seconds, milliseconds = divmod(round(1000 * seconds), 1000)
    return f"{whole_seconds // 3600:02}:{whole_seconds // 60 % 60:02}:{whole_seconds % 60:02}.{milliseconds:03}"


FORMATS: dict[str, Callable[[Trace, Path], None]] = {
    "parquet": _parquet,
    "csv": _csv,
    "jsonl": _jsonl,
    "eaf": _elan,
    "vtt": _vtt,
}


def read_traces(path: str | Path) -> list[Trace]:
    """The traces in a Parquet, CSV or JSON Lines file, one a person in the order of their first rows.

    Their `source` is the video, where the file tells it (Parquet does), else the file itself. Raises DataError for a
    file that cannot be read, lacks a column of `Trace`, has no rows, goes back in time, or holds what is not a finite
    number.
    """
    path = Path(path)
    table = _columns(path, _read(path))
    source = (table.schema.metadata or {}).get(VIDEO)
    video = Path(source.decode(errors="surrogateescape")) if source else path
    people = pa.compute.unique(table["person"]).to_pylist()
    if not people:
        raise DataError(f"{path}: the trace has no rows; predict the video again")
    traces = [Trace(table.filter(pa.compute.equal(table["person"], person)), video) for person in people]
    if any((np.diff(trace.times) < 0).any() for trace in traces):
        raise DataError(f"{path}: column `time` goes back; sort the rows by person and time")
    return traces


def _read(path: Path) -> pa.Table:
    kind = path.suffix.removeprefix(".")
    if kind not in READABLE:
        endings = ", ".join(f".{each}" for each in READABLE)
        raise DataError(f"{path}: a trace is read from {endings}; write it with `predict --format parquet`")
    try:
        with path.open("rb") as file:
            if kind == "parquet":
                return pa.parquet.read_table(file)
            if kind == "csv":
                return pa.csv.read_csv(file, convert_options=pa.csv.ConvertOptions(column_types={"person": "string"}))
            return pa.json.read_json(file)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error.strerror if isinstance(error, OSError) and error.strerror else error).split())
        raise DataError(f"{path}: cannot be read as a trace ({reason[:200]}); predict the video again") from error


def _columns(path: Path, table: pa.Table) -> pa.Table:
    if missing := [name for name in SCHEMA.names if table.schema.get_field_index(name) < 0]:
        raise DataError(f"{path}: not a trace: no column `{missing[0]}`; there are {', '.join(table.column_names)}")
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA.with_metadata(table.schema.metadata)).combine_chunks()
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a trace: {reason}; predict the video again") from error
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count or (pa.types.is_floating(column.type) and not np.isfinite(column.to_numpy()).all()):
            raise DataError(f"{path}: column `{name}` has a field that is empty or no number; predict the video again")
    return table
