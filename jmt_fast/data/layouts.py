"""Data sets as they lie on disk: Aff-Wild2 and AFEW-VA."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jmt_fast.data.annotations import afew_va_clip
from jmt_fast.data.manifest import Recording, read_manifest, some
from jmt_fast.errors import DataError

CHALLENGE = "VA_Estimation_Challenge"
SPLIT_FOLDERS = {"Train_Set": "train", "Validation_Set": "validation", "Test_Set": "test"}
CROPS = "cropped_aligned"
VIDEO_SUFFIXES = (".mp4", ".avi")
PERSONS = ("left", "right", "main")
AFEW_VA_FPS = 25.0


@dataclass
class Found:
    """Recordings of a folder, and why others cannot be used, by name."""

    recordings: list[Recording] = field(default_factory=list)
    failed: dict[str, DataError] = field(default_factory=dict)


def load(path: str | Path) -> list[Recording]:
    """Recordings of a collection: a folder in Aff-Wild2's layout or a manifest file. Raises DataError as these do."""
    path = Path(path)
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file or folder; give a manifest or an Aff-Wild2 folder")
    return affwild2(path) if path.is_dir() else read_manifest(path)


def affwild2(root: str | Path) -> list[Recording]:
    """`find_affwild2`, all of it: a trial that cannot be used is a DataError too, and names what was looked for."""
    found = find_affwild2(root)
    if found.failed:
        reasons = some(map(str, found.failed.values()))
        raise DataError(f"{root}: {len(found.failed)} trials cannot be used: {reasons}")
    return found.recordings


def find_affwild2(root: str | Path) -> Found:
    """Recordings of an Aff-Wild2 folder, by split and trial.

    Annotations: `VA_Estimation_Challenge/{Train_Set,Validation_Set,Test_Set}/<trial>.txt`, below `annotations` or
    elsewhere below `root`. Videos: .mp4 or .avi anywhere below `root`; a trial is a video's stem, or where no such
    video exists, the stem plus _left, _right or _main. Face crops are used where `cropped_aligned/<trial>` exists.
    A trial fails when it has no video or several, or is in two splits.

    Raises:
        DataError: naming what was looked for, when there are no annotations, or several folders of them.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; give the folder that holds the videos and {CHALLENGE}")
    survey = _survey(root)
    found = Found()
    for trial, files in _trials(root, survey.annotations).items():
        stem, person = _video_stem(trial, survey.videos)
        crops = next((folder / trial for folder in survey.crops if (folder / trial).is_dir()), None)
        videos = survey.videos.get(stem, [])
        reason = _refused(trial, files, videos, crops)
        if reason:
            found.failed[trial] = DataError(reason)
        else:
            split = SPLIT_FOLDERS[files[0].parent.name]
            found.recordings.append(Recording(trial, videos[0], files[0], split, person=person, crops=crops))
    return found


def find_afew_va(root: str | Path, fps: float = AFEW_VA_FPS) -> Found:
    """Recordings of AFEW-VA: clips `<clip>/<clip>.json` with pictures `<clip>/00000.png`, ..., anywhere below `root`.

    The data set has no splits and no sound; `subject` is the JSON's `actor`. `fps` is the rate of the pictures, which
    the data set does not tell. A clip fails when its JSON cannot be read, or another clip has its name.

    Raises:
        DataError: when there is no clip below `root`.
    """
    root = Path(root)
    found = Found()
    for file in sorted(root.rglob("*.json")):
        name = file.stem
        if file.parent.name != name:
            continue
        try:
            actor = afew_va_clip(file).get("actor")
            if any(name == other.name for other in found.recordings):
                raise DataError(f"{file}: a second clip {name}; keep one")
        except DataError as error:
            found.failed[str(file.relative_to(root).parent)] = error
            continue
        subject = str(actor).strip() or None if actor is not None else None
        found.recordings.append(Recording(name, file.parent, file, subject=subject, fps=fps))
    if not found.recordings and not found.failed:
        raise DataError(f"{root}: no clips of AFEW-VA; looked for <clip>/<clip>.json there and in the folders below")
    return found


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
        subfolders[:] = sorted(
            item for item in subfolders if item not in (CHALLENGE, CROPS) and not item.startswith((".", "__MACOSX"))
        )
        for file in sorted(files):
            video = folder / file
            if video.suffix.lower() in VIDEO_SUFFIXES and not file.startswith("."):
                found.videos.setdefault(video.stem, []).append(video)
    return found


def _trials(root: Path, candidates: list[Path]) -> dict[str, list[Path]]:
    """Annotation files of each trial, one if all is well, in the order of the splits and then of the names."""
    usual = [folder for folder in (root / "annotations" / CHALLENGE, root / CHALLENGE) if folder in candidates]
    chosen = usual[:1] or candidates
    if len(chosen) > 1:
        raise DataError(f"{root}: several annotation folders: {some(map(str, chosen))}; keep one")
    trials: dict[str, list[Path]] = {}
    for subfolder in SPLIT_FOLDERS:
        for file in sorted(file for folder in chosen for file in (folder / subfolder).glob("[!.]*.txt")):
            trials.setdefault(file.stem, []).append(file)
    if not trials:
        raise DataError(
            f"{root}: no annotations; looked for {CHALLENGE}/{{{','.join(SPLIT_FOLDERS)}}}/*.txt there and "
            "in the folders below"
        )
    return trials


def _video_stem(trial: str, videos: dict[str, list[Path]]) -> tuple[str, str]:
    """Stem of a trial's video, and the person in it."""
    stem, _, person = trial.rpartition("_")
    if trial not in videos and person in PERSONS and stem in videos:
        return stem, person
    return trial, "0"


def _refused(trial: str, files: Sequence[Path], videos: Sequence[Path], crops: Path | None) -> str | None:
    """Why a trial cannot be used."""
    if len(files) > 1:
        folders = " and ".join(file.parent.name for file in files)
        return f"{files[0]}: trial {trial} is in {folders}; remove one"
    if len(videos) > 1:
        return f"{files[0]}: trial {trial} has {len(videos)} videos: {some(map(str, videos))}; keep one"
    if not videos:
        has = "face crops but no video, which is needed for clock and sound" if crops else "no video"
        return f"{files[0]}: trial {trial} has {has}; add {trial}.mp4 or .avi, or remove the annotation"
    return None
