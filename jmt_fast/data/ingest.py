"""A data set on disk becomes a list of checked recordings: counts reconciled, differences told, folds drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jmt_fast.data.annotations import read_annotation
from jmt_fast.data.fit import labelled
from jmt_fast.data.folds import assign_folds, group_names
from jmt_fast.data.layouts import Found
from jmt_fast.data.manifest import Recording
from jmt_fast.data.recording import OpenRecording, crop_numbers
from jmt_fast.errors import DataError, MediaError
from jmt_fast.media import MediaInfo, probe

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Counts:
    """What a recording has: annotation `rows`, of which `labelled` belong to a frame and are annotated; decodable
    `frames`; JPEGs among its face crops, or pictures of a clip that is a folder of them (None for a video without
    crops), and the frames that have `no_jpeg`, which is normal.

    `differences` are lines on counts that should agree and do not. None of them shifts a row: a row, a JPEG and a frame
    of one number belong together, what is left over is not used.
    """

    rows: int
    labelled: int
    frames: int
    jpegs: int | None
    no_jpeg: int | None
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """The recordings that can be used, with folds; their counts, and the reasons why others cannot, by name."""

    recordings: list[Recording]
    counts: dict[str, Counts]
    failed: dict[str, DataError | MediaError]
    warnings: list[str]

    def folds(self) -> list[dict[str, int]]:
        """Of each fold, its number, recordings, videos or subjects (`groups`), and labelled frames."""
        groups = group_names(self.recordings)
        rows = []
        for fold in sorted({each.fold for each in self.recordings if each.fold is not None}):
            inside = [index for index, each in enumerate(self.recordings) if each.fold == fold]
            rows.append(
                {
                    "fold": fold,
                    "trials": len(inside),
                    "groups": len({groups[index] for index in inside}),
                    "labelled": sum(self.counts[self.recordings[index].name].labelled for index in inside),
                }
            )
        return rows

    def splits(self) -> dict[str, dict[str, int]]:
        """Of each split ("" where there is none), recordings, videos, and the sums of the counts."""
        rows: dict[str, dict[str, int]] = {}
        for split in dict.fromkeys(each.split or "" for each in self.recordings):
            inside = [each for each in self.recordings if (each.split or "") == split]
            counts = [self.counts[each.name] for each in inside]
            sums = {key: sum(getattr(each, key) or 0 for each in counts) for key in COUNTED}
            rows[split] = {"trials": len(inside), "videos": len({each.video for each in inside}), **sums}
        return rows

    def as_dict(self) -> dict[str, Any]:
        """All of it as values that JSON can hold."""
        trials = {}
        for each in self.recordings:
            files = {"video": str(each.video), "annotation": str(each.annotation)}
            facts = {"split": each.split, "person": each.person, "subject": each.subject, "fold": each.fold}
            trials[each.name] = {**files, **facts, **asdict(self.counts[each.name])}
        failed = {name: str(error) for name, error in self.failed.items()}
        return {
            "trials": trials,
            "splits": self.splits(),
            "folds": self.folds(),
            "warnings": self.warnings,
            "failed": failed,
        }


COUNTED = ("rows", "labelled", "frames", "jpegs", "no_jpeg")


def prepare(found: Found, folds: int = 5, seed: int = 0, progress: Progress | None = None) -> Prepared:
    """Open every recording, compare its counts, and draw folds over the annotated ones outside of the test split.

    Annotations are read and videos probed (not decoded). A recording whose annotation or video cannot be used joins
    `found.failed`. With fewer videos or subjects than `folds` there are none, and a warning.
    """
    failed: dict[str, DataError | MediaError] = dict(found.failed)
    crops = any(each.crops is not None for each in found.recordings)
    counts: dict[str, Counts] = {}
    probed: dict[Path, MediaInfo] = {}
    for number, recording in enumerate(found.recordings):
        if progress:
            progress(number, len(found.recordings), recording.name)
        try:
            if recording.video not in probed and not recording.video.is_dir():
                probed[recording.video] = probe(recording.video)
            opened = OpenRecording(recording, probed.get(recording.video))
            counts[recording.name] = count(opened, crops)
        except (DataError, MediaError) as error:
            failed[recording.name] = error
    if progress:
        progress(len(found.recordings), len(found.recordings), "")
    usable = [each for each in found.recordings if each.name in counts]
    folded, warnings = _folded(usable, counts, folds, seed)
    return Prepared(folded, counts, failed, warnings)


def count(opened: OpenRecording, crops_expected: bool = False) -> Counts:
    """The counts of one recording. Raises DataError for an annotation or face crops that cannot be read."""
    recording, frames = opened.recording, opened.info.frames
    differences = _of_video(opened)
    annotation = None if recording.annotation is None else read_annotation(recording.annotation)
    rows = 0 if annotation is None else len(annotation.values)
    labels, warning = (opened.labels(), None) if annotation is None else opened.fit(annotation)
    if warning:
        differences.append(warning.removeprefix(f"{recording.name}: "))
    known = labelled(labels)
    if annotation is not None and not known.any():
        differences.append("no frame is annotated")
    jpegs = missing = None
    if recording.crops is not None:
        numbers, others = crop_numbers(recording.crops)
        differences += _of_crops(numbers, others, frames)
        jpegs, missing = len(numbers), frames - len({number for number in numbers if 1 <= number <= frames})
    elif opened.stills is not None:
        jpegs, missing = opened.stills.pictures, frames - opened.stills.pictures
    elif crops_expected:
        differences.append("no folder of face crops: the video's whole frames are used")
    return Counts(rows, int(known.sum()), frames, jpegs, missing, tuple(differences))


def _of_video(opened: OpenRecording) -> list[str]:
    info = opened.info
    lines = []
    if info.damaged:
        lines.append(f"{info.damaged} packets of the video are damaged: their frames are black")
    if info.undecodable:
        lines.append(f"{info.undecodable} frames before the first keyframe cannot be decoded and do not count")
    if info.audio is None and opened.recording.sound is None and opened.stills is None:
        lines.append("the video has no sound: silence is used")
    return lines


def _of_crops(numbers: Sequence[int], others: int, frames: int) -> list[str]:
    """What does not fit between the numbers of the JPEGs (the first frame's is 1) and the frames."""
    lines = [f"{others} JPEGs are not named as 00001.jpg is and are not used"] if others else []
    if not numbers:
        lines.append("the folder of face crops is empty: every frame is black")
    outside = sum(not 1 <= number <= frames for number in numbers)
    if outside:
        lines.append(
            f"{len(numbers)} JPEGs up to number {max(numbers)} for {frames} frames; {outside} outside of 1 to {frames} "
            "are not used"
        )
    return lines


def _folded(
    recordings: Sequence[Recording], counts: dict[str, Counts], folds: int, seed: int
) -> tuple[list[Recording], list[str]]:
    """The recordings with their folds, and warnings."""
    drawn = [each for each in recordings if each.annotation is not None and each.split != "test"]
    groups = len(set(group_names(drawn)))
    if groups < folds:
        warning = f"{groups} videos or subjects are too few for {folds} folds: the fold is left empty; lower --folds"
        return list(recordings), [warning]
    numbers = assign_folds(drawn, [counts[each.name].labelled for each in drawn], folds, seed)
    fold = dict(zip((each.name for each in drawn), numbers, strict=True))
    return [replace(each, fold=fold.get(each.name)) for each in recordings], []
