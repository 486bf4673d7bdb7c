"""From what a user names - files, folders, patterns, tables, a list - to the videos meant, each one once."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jmt_fast.errors import DataError

# What a folder is searched for; a file that is named itself may be called anything.
VIDEOS = (
    ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
TABLES = (".csv", ".parquet")


@dataclass
class Found:
    """`videos` in the order in which they were named, a folder's by name. `unusable`: why something that was named
    gives no video, by what was named. `others`: how many files of a folder are not called like videos, by suffix."""

    videos: list[Path] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)


def find_videos(named: Iterable[str | Path], listing: BinaryIO | None = None) -> Found:
    """Look up what was named: a file; a folder, searched to its bottom; a pattern (`*`, `?`, `[...]`, `**`); a table
    (CSV or Parquet) with a column `video`, its paths relative to the table; `-`, a list of names in `listing`, one a
    line, or each ended by a NUL (`find -print0`) where names may hold newlines.

    A file that cannot be used, or is not there, is among the videos: reading it tells why. A folder, a pattern or a
    list without videos is unusable. Raises DataError for a table without such a column or one that cannot be read.
    """
    found = Found()
    for name in named:
        if str(name) == "-" and listing is not None:
            lines = list(_lines(listing.read()))
            for each in lines:
                _add(found, Path(each))
            if not lines:
                found.unusable["-"] = "the list on standard input is empty; check what writes it"
        else:
            _add(found, Path(name))
    once: dict[str, Path] = {}
    for video in found.videos:
        once.setdefault(os.path.abspath(video), video)
    found.videos = list(once.values())
    return found


def _lines(data: bytes) -> Iterator[str]:
    for line in data.split(b"\0" if b"\0" in data else b"\n"):
        if line := line.removesuffix(b"\r"):
            yield os.fsdecode(line)


def _add(found: Found, path: Path) -> None:
    if path.is_dir():
        _add_folder(found, path)
    elif path.suffix.lower() in TABLES:
        found.videos += [path.parent / video for video in _column(path)]
    elif glob.has_magic(str(path)) and not os.path.lexists(path):
        matches = sorted(glob.glob(str(path), recursive=True))
        # `**` names every folder on its way too
        files = [Path(match) for match in matches if not os.path.isdir(match)]
        found.videos += files
        if not files:
            found.unusable[str(path)] = "matches no file; check the pattern"
    else:
        found.videos.append(path)


def _add_folder(found: Found, folder: Path) -> None:
    before = len(found.videos)
    seen: set[tuple[int, int]] = set()

    def refused(error: OSError) -> None:
        found.unusable[str(error.filename)] = f"the folder cannot be read: {error.strerror}; change its permissions"

    for place, inside, files in os.walk(folder, onerror=refused, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above, or a second one to this
            inside.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inside.sort()
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if suffix in VIDEOS:
                found.videos.append(Path(place, name))
            else:
                found.others[suffix] += 1
    if len(found.videos) == before and str(folder) not in found.unusable:
        found.unusable[str(folder)] = "no video in this folder; name files themselves where they are called otherwise"


def _column(path: Path) -> list[str]:
    try:
        if path.suffix.lower() == ".parquet":
            table = pa.parquet.read_table(path, columns=["video"])
        else:
            options = pa.csv.ConvertOptions(include_columns=["video"], column_types={"video": pa.string()})
            table = pa.csv.read_csv(path, convert_options=options)
        rows = table["video"].cast(pa.string()).to_pylist()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (OSError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a table with a column `video` ({reason}); write it anew") from error
    if not rows:
        raise DataError(f"{path}: the table has no rows; add one per video")
    if None in rows or "" in rows:
        raise DataError(
            f"{path}: row {[not row for row in rows].index(True) + 1}: `video` is empty; every row needs one"
        )
    return rows
