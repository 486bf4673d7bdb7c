"""The paper's protocol: the official split, and folds by subject and video. Each is a training run of its own."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.multiprocessing

from jmt_fast.config import FeatureConfig, FusionTraining, JMTConfig
from jmt_fast.data import Recording, assign_folds
from jmt_fast.data import labelled as has_label
from jmt_fast.errors import DataError, JMTError
from jmt_fast.models import Backbones
from jmt_fast.runtime import Runtime
from jmt_fast.training import LabelledVideo
from jmt_fast.training.experiment import Labelled, train_fusion

Progress = Callable[..., None]
OFFICIAL = "official"


@dataclass(frozen=True)
class Partition:
    """The names of the videos to train and to select on."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A line of the paper's Table 1: CCC on the partition's validation videos at the selected epoch."""

    name: str
    valence: float
    arousal: float
    epoch: int

    @property
    def mean(self) -> float:
        return (self.valence + self.arousal) / 2


def read_folds(path: Path, recordings: Sequence[Recording]) -> dict[str, int]:
    """Fold of each video from a CSV with the columns `name` and `fold`. DataError for anything else."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        folds = {row["name"]: int(row["fold"]) for row in rows}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: columns `name` and `fold` (a whole number) expected ({error})") from error
    unknown = sorted(folds.keys() - {recording.name for recording in recordings})
    if unknown:
        raise DataError(f"{path}: names {len(unknown)} videos that the collection has not, the first is {unknown[0]!r}")
    return folds


def partitions(
    recordings: Sequence[Recording],
    labelled: Labelled,
    folds: int = 5,
    seed: int = 0,
    given: dict[str, int] | None = None,
) -> list[Partition]:
    """The official split, then each fold as validation with all others to train on; test videos are in none.

    Folds are `given`, or the collection's own where every video has one, or `folds` new ones by subject and video.
    DataError where that cannot be done: fewer videos than folds, a video without a fold, a fold without a video.
    """
    official = {name: [video.name for video in labelled.split(name)] for name in ("train", "validation")}
    pool = {name for names in official.values() for name in names}
    used = [recording for recording in recordings if recording.name in pool]
    own = given or {each.name: each.fold for each in used if each.fold is not None}
    if not own:
        videos = {video.name: video for name in official for video in labelled.split(name)}
        frames = [int(has_label(videos[each.name].labels).sum()) for each in used]
        try:
            own = dict(zip((each.name for each in used), assign_folds(used, frames, folds, seed), strict=True))
        except ValueError as error:
            raise DataError(f"{len(used)} labelled videos: {error}; ask for fewer folds") from error
    lost = sorted(pool - own.keys())
    if lost:
        raise DataError(f"{len(lost)} videos have no fold, the first is {lost[0]!r}; give every video one, or none")
    numbers = sorted({own[name] for name in pool})
    if len(numbers) < 2:
        raise DataError(f"all {len(pool)} videos are in one fold; two are needed")
    found = [Partition(OFFICIAL, tuple(official["train"]), tuple(official["validation"]))]
    for place, number in enumerate(numbers, 1):
        inside = tuple(each.name for each in used if own[each.name] == number)
        outside = tuple(each.name for each in used if own[each.name] != number)
        found.append(Partition(f"fold-{place}", outside, inside))
    return found


def cross_validate(
    out: Path,
    parts: Sequence[Partition],
    labelled: Labelled,
    model: JMTConfig,
    training: FusionTraining,
    backbones: Backbones,
    features: FeatureConfig,
    runtime: Runtime,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Row]:
    """Train on every partition, each in its folder under `out`; `jobs` of them side by side, in processes.

    What was finished before is taken up, what was begun goes on from its last epoch. Leaves `table.json` and
    `table.csv`. Errors are those of `train_fusion`, with the partition named.
    """
    progress = progress or (lambda *_: None)
    videos = {video.name: video for each in labelled.splits.values() for video in each}
    rows: dict[str, Row] = {}

    calls = {}
    for part in parts:
        splits = {"train": [videos[name] for name in part.train]}
        splits["validation"] = [videos[name] for name in part.validation]
        calls[part.name] = partial(
            _train, out / part.name, part.name, splits, model, training, backbones, features, runtime
        )
    if jobs == 1:
        for number, (name, call) in enumerate(calls.items()):

            def inside(done: int, total: int, note: str, number: int = number, name: str = name) -> None:
                progress(1000 * number + 1000 * done // total, 1000 * len(parts), f"{name}, {note}")

            rows[name] = call(inside)
    else:
        threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        context = torch.multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
            futures = [pool.submit(call) for call in calls.values()]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    row = future.result()
                    rows[row.name] = row
                    progress(done, len(parts), row.name)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    table = [rows[part.name] for part in parts]
    write_table(out, table)
    return table


def _train(
    folder: Path,
    name: str,
    splits: dict[str, list[LabelledVideo]],
    model: JMTConfig,
    training: FusionTraining,
    backbones: Backbones,
    features: FeatureConfig,
    runtime: Runtime,
    progress: Progress | None = None,
) -> Row:
    try:
        result = train_fusion(
            folder, Labelled(splits, {}), model, training, backbones, features, runtime, resume=True, progress=progress
        )
    except JMTError as error:
        raise type(error)(f"{name}: {error}") from error
    valence, arousal = (float(value) for value in result.best_ccc)
    return Row(name, valence, arousal, result.best_epoch)


def best(rows: Sequence[Row]) -> dict[str, str]:
    """The name of the row with the highest value of each column: what Table 1 prints bold."""
    return {column: max(rows, key=lambda row: getattr(row, column)).name for column in ("valence", "arousal", "mean")}


def write_table(out: Path, rows: Sequence[Row]) -> None:
    """`table.json` and `table.csv`. JMTError where they cannot be written."""
    lines = [
        {"data": row.name, "valence": row.valence, "arousal": row.arousal, "mean": row.mean, "epoch": row.epoch}
        for row in rows
    ]
    try:
        (out / "table.json").write_text(json.dumps({"rows": lines, "best": best(rows)}, indent=1))
        with (out / "table.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
    except OSError as error:
        raise JMTError(f"{out}: the table cannot be written: {error.strerror}; free some space") from error
