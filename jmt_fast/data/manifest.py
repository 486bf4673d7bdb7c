"""Recordings, and the manifests (CSV or Parquet) that list them."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jmt_fast.errors import DataError

Number = TypeVar("Number", int, float)

SPLITS = ("train", "validation", "test")
REQUIRED = ("video", "annotation", "split")
FILES = ("video", "annotation", "sound", "crops")
COLUMNS = ("name", *REQUIRED, "sound", "person", "fold", "crops", "subject", "fps")
NUMBERS = {"fold": pa.int64(), "fps": pa.float64()}  # the other columns are text


@dataclass(frozen=True)
class Recording:
    """One person in one video, and what belongs to it.

    `name` is unique in a collection (Aff-Wild2's trial). `video` is a file, or a folder of numbered pictures
    (`media.stills`) that are shown at `fps`. `annotation` is a file of any kind that `read_annotation` knows. `sound`
    replaces the video's own sound. `crops` is a folder of face crops, `00001.jpg` for the first frame. `person` tells
    the people of one video apart, `subject` says who it is, where that is known. `fold` is the number of the
    cross-validation fold, from 0, where the collection fixes it.
    """

    name: str
    video: Path
    annotation: Path | None = None
    split: str | None = None
    sound: Path | None = None
    person: str = "0"
    fold: int | None = None
    crops: Path | None = None
    subject: str | None = None
    fps: float | None = None


def read_manifest(path: str | Path) -> list[Recording]:
    """Recordings of a CSV or Parquet table, in its order.

    Columns `video`, `annotation` and `split` (train, validation, test) must be there, the last two may hold empty
    fields; `name` (default: the video's stem) and the other fields of `Recording` are optional, further columns are
    ignored. Paths are relative to the manifest's folder.

    Raises:
        DataError: naming the manifest and the row or column, for an unreadable or empty table, a missing column, an
            unknown split, a wrong fold or rate, a missing or repeated name, or files that are not there.
    """
    path = Path(path)
    rows = _read_rows(path)
    if not rows:
        raise DataError(f"{path}: the manifest has no rows; add one per recording")
    recordings = [_recording(path, number, row) for number, row in enumerate(rows, start=1)]
    repeated = [name for name, times in Counter(item.name for item in recordings).items() if times > 1]
    if repeated:
        raise DataError(f"{path}: names must be unique, these are not: {some(repeated)}; give each row its own `name`")
    files = [file for item in recordings for kind in FILES if (file := getattr(item, kind)) is not None]
    missing = [str(file) for file in dict.fromkeys(files) if not os.path.exists(file)]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} files are missing: {some(missing)}; correct the paths, which are "
            "relative to the manifest's folder"
        )
    return recordings


def write_manifest(recordings: Sequence[Recording], path: str | Path) -> None:
    """Write a CSV or Parquet table (by suffix) that `read_manifest` turns back into `recordings`; paths are relative.

    The file is there whole or not at all. Raises DataError when it cannot be written.
    """
    path = Path(path)
    kind = manifest_kind(path)
    folder = path.parent.resolve()
    columns: dict[str, list[Any]] = {name: [getattr(item, name) for item in recordings] for name in COLUMNS}
    for name in FILES:
        columns[name] = [None if file is None else _relative(file, folder) for file in columns[name]]
    table = pa.table({name: pa.array(values, NUMBERS.get(name, pa.string())) for name, values in columns.items()})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if kind == "csv":
            pa.csv.write_csv(table, temporary)
        else:
            pa.parquet.write_table(table, temporary)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot write the manifest ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def manifest_kind(path: str | Path) -> str:
    """csv or parquet, by the suffix. Raises DataError for another."""
    kind = Path(path).suffix.lower().lstrip(".")
    if kind not in ("csv", "parquet"):
        raise DataError(f"{path}: a manifest is a .csv or .parquet file")
    return kind


def _recording(path: Path, number: int, row: dict[str, str | None]) -> Recording:
    where = f"{path}: row {number}"
    files = {kind: path.parent / value if (value := row.get(kind)) else None for kind in FILES}
    video = files.pop("video")
    if video is None:
        raise DataError(f"{where}: `video` is empty; every row needs one")
    name = row.get("name") or video.stem
    if "/" in name or "\0" in name:
        raise DataError(f"{where}: name {name!r} cannot be the name of a file; leave out the slash")
    split = row.get("split") or None
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: unknown split {split!r}; use {', '.join(SPLITS)}, or leave it empty")
    fold = _number(where, "fold", row, int)
    fps = _number(where, "fps", row, float)
    if fps is not None and not 0 < fps < math.inf:
        raise DataError(f"{where}: fps {row['fps']!r} is not a rate; give pictures a second")
    if fps is None and video.is_dir():
        raise DataError(f"{where}: {video} is a folder of pictures; give their rate in the column `fps`")
    return Recording(
        name,
        video,
        split=split,
        person=row.get("person") or "0",
        fold=fold,
        subject=row.get("subject") or None,
        fps=fps,
        **files,
    )


def _number(where: str, column: str, row: dict[str, str | None], kind: Callable[[str], Number]) -> Number | None:
    text = row.get(column)
    if not text:
        return None
    try:
        return kind(text.removesuffix(".0"))  # pandas writes 1.0 beside empty fields
    except ValueError:
        raise DataError(f"{where}: {column} {text!r} is not a {'whole ' * (kind is int)}number") from None


def _read_rows(path: Path) -> list[dict[str, str | None]]:
    kind = manifest_kind(path)
    try:
        if kind == "csv":
            texts = dict.fromkeys(COLUMNS, pa.string())  # else a name like 001 becomes the number 1
            convert = pa.csv.ConvertOptions(column_types=texts, strings_can_be_null=True, null_values=[""])
            table = pa.csv.read_csv(path, convert_options=convert)
        else:
            table = pa.parquet.read_table(path)
        present = Counter(table.column_names)
        for column in COLUMNS:
            if present[column] > 1 or (column in REQUIRED and not present[column]):
                raise DataError(
                    f"{path}: {present[column] or 'no'} columns `{column}`, expected one; there are: "
                    f"{', '.join(table.column_names)}"
                )
        table = table.select([column for column in COLUMNS if present[column]])
        return table.cast(pa.schema([(column, pa.string()) for column in table.column_names])).to_pylist()
    except OSError as error:
        raise DataError(f"{path}: cannot read the manifest ({error.strerror or error}); check the path") from error
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable {kind} table ({reason}); write it anew") from error


def _relative(file: Path, folder: Path) -> str:
    """Links among the folders are followed, so that `..` means the same on reading; the file's own name is kept."""
    return os.path.relpath(file.parent.resolve() / file.name, folder)


def some(items: Iterable[str], most: int = 3) -> str:
    """The first few of a list, and how many more there are, for a message."""
    listed = list(items)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
