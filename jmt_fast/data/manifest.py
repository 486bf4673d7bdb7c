"""Collections of recordings: manifests (CSV or Parquet), and the folders of Aff-Wild2."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jmt_fast.errors import DataError

SPLITS = ("train", "validation", "test")
REQUIRED = ("video", "annotation", "split")
FILES = ("video", "annotation", "sound", "crops")
COLUMNS = ("name", *REQUIRED, "sound", "person", "fold", "crops")

CHALLENGE = "VA_Estimation_Challenge"
SPLIT_FOLDERS = {"Train_Set": "train", "Validation_Set": "validation", "Test_Set": "test"}
CROPS = "cropped_aligned"
VIDEO_SUFFIXES = (".mp4", ".avi")
PERSONS = ("left", "right", "main")


@dataclass(frozen=True)
class Recording:
    """One person in one video, and what belongs to it.

    `name` is unique in a collection (Aff-Wild2's trial). `sound` replaces the video's own sound. `crops` is a folder of
    face crops, `00001.jpg` for the first frame. `person` tells the people of one video apart. `fold` is the number of
    the cross-validation fold, where the collection fixes it.
    """

    name: str
    video: Path
    annotation: Path | None = None
    split: str | None = None
    sound: Path | None = None
    person: str = "0"
    fold: int | None = None
    crops: Path | None = None


def load(path: str | Path) -> list[Recording]:
    """Recordings of a collection: a folder in Aff-Wild2's layout or a manifest file. Raises DataError as these do."""
    path = Path(path)
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file or folder; give a manifest or an Aff-Wild2 folder")
    return affwild2(path) if path.is_dir() else read_manifest(path)


def read_manifest(path: str | Path) -> list[Recording]:
    """Recordings of a CSV or Parquet table, in its order.

    Columns `video`, `annotation` and `split` (train, validation, test) must be there, the last two may hold empty
    fields; `name` (default: the video's stem), `sound`, `person`, `fold` and `crops` are optional, others are ignored.
    Paths are relative to the manifest's folder.

    Raises:
        DataError: naming the manifest and the row or column, for an unreadable or empty table, a missing column, an
            unknown split, a wrong fold, a missing or repeated name, or files that are not there.
    """
    path = Path(path)
    rows = _read_rows(path)
    if not rows:
        raise DataError(f"{path}: the manifest has no rows; add one per recording")
    recordings = [_recording(path, number, row) for number, row in enumerate(rows, start=1)]
    repeated = [name for name, times in Counter(item.name for item in recordings).items() if times > 1]
    if repeated:
        raise DataError(f"{path}: names must be unique, these are not: {_some(repeated)}; give each row its own `name`")
    files = [file for item in recordings for kind in FILES if (file := getattr(item, kind)) is not None]
    missing = [str(file) for file in dict.fromkeys(files) if not os.path.exists(file)]
    if missing:
        raise DataError(f"{path}: {len(missing)} files are missing: {_some(missing)}; correct the paths, which are "
                        "relative to the manifest's folder")
    return recordings


def write_manifest(recordings: Sequence[Recording], path: str | Path) -> None:
    """Write a CSV or Parquet table (by suffix) that `read_manifest` turns back into `recordings`; paths are relative.

    Raises DataError when the file cannot be written.
    """
    path = Path(path)
    kind = _kind(path)
    folder = path.parent.resolve()
    columns: dict[str, list[Any]] = {name: [getattr(item, name) for item in recordings] for name in COLUMNS}
    for name in FILES:
        columns[name] = [None if file is None else _relative(file, folder) for file in columns[name]]
    types = {name: pa.int64() if name == "fold" else pa.string() for name in COLUMNS}
    table = pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})
    try:
        if kind == "csv":
            pa.csv.write_csv(table, path)
        else:
            pa.parquet.write_table(table, path)
    except OSError as error:
        raise DataError(f"{path}: cannot write the manifest ({error.strerror or error})") from error


def affwild2(root: str | Path) -> list[Recording]:
    """Recordings of an Aff-Wild2 folder, by split and trial.

    Annotations: `VA_Estimation_Challenge/{Train_Set,Validation_Set,Test_Set}/<trial>.txt`, below `annotations` or
    elsewhere below `root`. Videos: .mp4 or .avi anywhere below `root`; a trial is a video's stem, or where no such
    video exists, the stem plus _left, _right or _main. Face crops are used where `cropped_aligned/<trial>` exists.

    Raises:
        DataError: naming what was looked for, when there are no annotations, a trial has no video or several, or a
            trial is in two splits.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; give the folder that holds the videos and {CHALLENGE}")
    found = _survey(root)
    trials = _trials(root, found.annotations)
    recordings, without = [], []
    for trial, (annotation, split) in trials.items():
        stem, person = _video_stem(trial, found.videos)
        crops = next((folder / trial for folder in found.crops if (folder / trial).is_dir()), None)
        videos = found.videos.get(stem, [])
        if len(videos) > 1:
            raise DataError(f"{root}: trial {trial} has {len(videos)} videos: {_some(map(str, videos))}; keep one")
        if videos:
            recordings.append(Recording(trial, videos[0], annotation, split, person=person, crops=crops))
        else:
            without.append((trial, crops))
    if without:
        raise DataError(_without_video(root, without))
    return recordings


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
    fold = row.get("fold") or None
    try:
        number_of_fold = None if fold is None else int(fold.removesuffix(".0"))  # pandas writes 1.0 beside empty fields
    except ValueError:
        raise DataError(f"{where}: fold {fold!r} is not a whole number") from None
    return Recording(name, video, split=split, person=row.get("person") or "0", fold=number_of_fold, **files)


def _read_rows(path: Path) -> list[dict[str, str | None]]:
    kind = _kind(path)
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
                raise DataError(f"{path}: {present[column] or 'no'} columns `{column}`, expected one; there are: "
                                f"{', '.join(table.column_names)}")
        table = table.select([column for column in COLUMNS if present[column]])
        return table.cast(pa.schema([(column, pa.string()) for column in table.column_names])).to_pylist()
    except OSError as error:
        raise DataError(f"{path}: cannot read the manifest ({error.strerror or error}); check the path") from error
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable {kind} table ({reason}); write it anew") from error


def _kind(path: Path) -> str:
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("csv", "parquet"):
        raise DataError(f"{path}: a manifest is a .csv or .parquet file")
    return kind


def _relative(file: Path, folder: Path) -> str:
    """Links among the folders are followed, so that `..` means the same on reading; the file's own name is kept."""
    return os.path.relpath(file.parent.resolve() / file.name, folder)


@dataclass
class _Survey:
    videos: dict[str, list[Path]]  # by stem
    annotations: list[Path]
    crops: list[Path]


def _survey(root: Path) -> _Survey:
    """One walk below `root`, links followed, that does not enter the millions of face crops."""
    found = _Survey({}, [], [])
    seen = set()
    for name, subfolders, files in os.walk(root, followlinks=True):
        folder = Path(name)
        if (real := folder.resolve()) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        found.annotations += [folder / CHALLENGE] * (CHALLENGE in subfolders)
        found.crops += [folder / CROPS] * (CROPS in subfolders)
        subfolders[:] = sorted(item for item in subfolders
                               if item not in (CHALLENGE, CROPS) and not item.startswith((".", "__MACOSX")))
        for file in sorted(files):
            video = folder / file
            if video.suffix.lower() in VIDEO_SUFFIXES and not file.startswith("."):
                found.videos.setdefault(video.stem, []).append(video)
    return found


def _trials(root: Path, candidates: list[Path]) -> dict[str, tuple[Path, str]]:
    """Annotation file and split of each trial, in the order of the splits and then of the names."""
    usual = [folder for folder in (root / "annotations" / CHALLENGE, root / CHALLENGE) if folder in candidates]
    chosen = usual[:1] or candidates
    if len(chosen) > 1:
        raise DataError(f"{root}: several annotation folders: {_some(map(str, chosen))}; keep one")
    trials: dict[str, tuple[Path, str]] = {}
    for subfolder, split in SPLIT_FOLDERS.items():
        for file in sorted(file for folder in chosen for file in (folder / subfolder).glob("[!.]*.txt")):
            if file.stem in trials:
                raise DataError(f"{file}: trial {file.stem} is also in {trials[file.stem][0].parent.name}; remove one")
            trials[file.stem] = (file, split)
    if not trials:
        raise DataError(f"{root}: no annotations; looked for {CHALLENGE}/{{{','.join(SPLIT_FOLDERS)}}}/*.txt there and "
                        "in the folders below")
    return trials


def _video_stem(trial: str, videos: dict[str, list[Path]]) -> tuple[str, str]:
    """Stem of a trial's video, and the person in it."""
    stem, _, person = trial.rpartition("_")
    if trial not in videos and person in PERSONS and stem in videos:
        return stem, person
    return trial, "0"


def _without_video(root: Path, trials: list[tuple[str, Path | None]]) -> str:
    cropped = [trial for trial, crops in trials if crops is not None]
    bare = [trial for trial, crops in trials if crops is None]
    parts = []
    if bare:
        parts.append(f"{len(bare)} trials have neither video nor face crops: {_some(bare)}")
    if cropped:
        parts.append(f"{len(cropped)} trials have face crops but no video, which is needed for clock and sound: "
                     f"{_some(cropped)}")
    return f"{root}: {'; '.join(parts)}; looked for <trial>.mp4 and .avi below this folder; add them, or remove the " \
           "annotations"


def _some(items: Iterable[str], most: int = 3) -> str:
    listed = list(items)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
