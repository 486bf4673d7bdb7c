"""What was done in an output folder: a table of one row a video, and a journal that a run adds to."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from jmt_fast.errors import JMTError

TABLE, JOURNAL = "_index.parquet", "_index.journal"
DONE, FAILED, QUARANTINED = "done", "failed", "quarantined"


@dataclass(frozen=True)
class Row:
    """What became of one video. `path`: absolute, as `as_text` writes it. `name`: what its output files begin with;
    `outputs` are those, in the ledger's folder. `size` (bytes) and `mtime_ns` of the video when it was read, -1 where
    there was none. `settings`: a digest of all that changes its result. `status`: done, failed (it cannot be used) or
    quarantined (it took down the process that read it), with the reason in `error`. `rows` of all outputs; `duration`:
    seconds of video; `seconds`: of work; `finished`: UTC, of this machine's clock."""

    path: str
    name: str
    size: int
    mtime_ns: int
    settings: str
    status: str
    error: str = ""
    warnings: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    rows: int = 0
    duration: float = 0.0
    seconds: float = 0.0
    finished: str = ""
    versions: str = ""


TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "tuple[str, ...]": pa.list_(pa.string())}
SCHEMA = pa.schema([(each.name, TYPES[str(each.type)]) for each in fields(Row)])


def as_text(path: str | os.PathLike[str]) -> str:
    """A path as valid Unicode, another text for every path: bytes that are no UTF-8 become `\\xNN`, `\\` is doubled."""
    return _unicode(os.fspath(path).replace("\\", "\\\\"))


def as_line(text: str) -> str:
    """A message on one line that can be printed, whatever file names it holds."""
    return _unicode(text.replace("\n", "\\n").replace("\r", "\\r"))


def _unicode(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Ledger:
    """The rows of a folder, in the hands of one process at a time.

    `_index.parquet` holds the rows of earlier runs. A run appends each row to `_index.journal`, a line of JSON, which
    costs the same however many there are; at its end, or at the next start if it was killed, the table is written anew
    with them and the journal goes. A context: leaving it ends the run.

    Raises JMTError where the folder cannot be written, where another run has it, and for a table that is not a ledger.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._journal = self._claim()
        except OSError as error:
            raise JMTError(
                f"{folder}: the output folder cannot be written: {error.strerror}; pass another --out"
            ) from error
        try:
            self.rows = self._table()
            left = self._left()
            self.rows |= {row.path: row for row in left}
            if left:
                self._compact()
            os.truncate(self._journal, 0)
            self._append({"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
        except JMTError:
            os.close(self._journal)
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._close()
        except JMTError:
            if kind is None:  # else what stopped the run is the message; the journal is kept
                raise

    def _claim(self) -> int:
        path = self.folder / JOURNAL
        while True:
            journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(journal, 1000, 0).partition(b"\n")[0]
                os.close(journal)
                raise JMTError(f"{self.folder}: {_who(holder)}; wait for it, or pass another --out") from None
            if path.exists() and os.path.samestat(os.fstat(journal), path.stat()):
                return journal
            os.close(journal)  # the run before took it away between our opening and locking

    def _table(self) -> dict[str, Row]:
        path = self.folder / TABLE
        if not path.exists():
            return {}
        try:
            table = pa.parquet.read_table(path).select(SCHEMA.names).cast(SCHEMA)
        except (OSError, KeyError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise JMTError(
                f"{path}: not a ledger of this version ({reason}); move it away, and all is predicted anew"
            ) from error
        return {row["path"]: _row(row) for row in table.to_pylist()}

    def _left(self) -> list[Row]:
        """The rows of a run that was killed. A line that was being written then, or of another version, is no row."""
        with open(os.dup(self._journal), "rb") as file:
            file.seek(0)
            lines = file.read().split(b"\n")[1:-1]
        rows = []
        for line in lines:
            try:
                rows.append(_row(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                continue
        return rows

    def _append(self, value: dict[str, Any]) -> None:
        line = json.dumps(value).encode() + b"\n"
        try:
            if os.write(self._journal, line) < len(line):
                raise OSError(0, "no space left")
        except OSError as error:
            raise JMTError(
                f"{self.folder / JOURNAL}: cannot be written: {error.strerror}; free some space and run again"
            ) from error

    def add(self, row: Row) -> None:
        """Note what became of a video; on disk on return. Raises JMTError when the disk is full."""
        self._append(vars(row))
        self.rows[row.path] = row

    def _compact(self) -> None:
        path = self.folder / TABLE
        temporary = path.with_name(f".{TABLE}.part")
        try:
            columns = {name: [getattr(row, name) for row in self.rows.values()] for name in SCHEMA.names}
            pa.parquet.write_table(pa.table(columns, SCHEMA), temporary)
            temporary.replace(path)
        except OSError as error:
            raise JMTError(
                f"{path}: cannot be written: {error.strerror or error}; its rows are kept in {JOURNAL}: free some "
                "space and run again"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        try:
            if self.rows:
                self._compact()
            (self.folder / JOURNAL).unlink()
        finally:
            os.close(self._journal)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _row(values: dict[str, Any]) -> Row:
    listed = {key: tuple(values[key]) for key in ("warnings", "outputs")}
    return Row(**values | listed)


def _who(holder: bytes) -> str:
    try:
        facts = json.loads(holder)
        return f"another run is at work here (process {facts['pid']} on {facts['host']} since {facts['since']})"
    except (ValueError, KeyError):
        return "another run has just begun here"
