"""Many videos -> trace files and a ledger: what is missing is done, what fails is noted with its reason."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from jmt_fast import __version__
from jmt_fast.config import Config, DetectorName, Region, Stride
from jmt_fast.errors import CheckpointError
from jmt_fast.inference.formats import files
from jmt_fast.inference.ledger import DONE, FAILED, QUARANTINED, Ledger, Row, as_line, as_text, now
from jmt_fast.inference.names import output_names
from jmt_fast.inference.predictor import Predictor
from jmt_fast.inference.workers import Job, Progress, Result, Told, Work
from jmt_fast.runtime import share_heap

Redo = Literal["missing", "failed", "all"]
Engine = Callable[[Callable[[int], Work], Sequence[Job], Progress], Generator[Result]]
VERSIONS = f"jmt-fast {__version__}, torch {torch.__version__}"


class Settings(Config):
    """All that changes the traces of a video, and whether there are pictures of them. `weights`: `weights_digest` of
    the checkpoint."""

    weights: str
    region: Region | None = None
    detector: DetectorName | None = None
    stride: Stride = 8
    person: str = "largest"
    precision: str = "auto"
    smooth: tuple[int, int] | None = None
    format: str = "parquet"
    plot: bool = Field(False, exclude=True)  # from the digest: it changes no trace


@dataclass(frozen=True)
class Task:
    """One video, and its outputs' path without `.<format>`."""

    video: Path
    output: Path


@dataclass(frozen=True)
class Done:
    """Of one video: the names of its files, their rows, the seconds of video, the seconds of work, and warnings."""

    outputs: tuple[str, ...]
    rows: int
    duration: float
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """What a process needs to do videos; calling it with its place among them loads the checkpoint.

    `devices`: shared out over the places in turn. `workers`: how many processes share the processor's threads.
    """

    checkpoint: Path
    settings: Settings
    devices: tuple[str, ...] = ("auto",)
    compile: bool | None = None
    workers: int = 1

    def __call__(self, place: int) -> Work:
        share_heap()
        if self.workers > 1:
            torch.set_num_threads(max(1, torch.get_num_threads() // self.workers))
        predictor = Predictor.from_pretrained(
            self.checkpoint,
            self.devices[place % len(self.devices)],
            self.settings.precision,
            self.compile,
            self.settings.region,
            self.settings.detector,
        )
        return partial(predict_one, predictor, self.settings)


def predict_one(predictor: Predictor, settings: Settings, task: Task, told: Told) -> Done:
    """Write the traces of one video, each whole or not at all: `<output>.<format>`, or with `person` = all
    `<output>.<person>.<format>` for each person.

    Raises MediaError when the video cannot be used, JMTError when a file cannot be written.
    """
    begin = time.monotonic()
    outputs, rows, duration, warnings = [], 0, 0.0, []
    traces = predictor.predict_people(
        task.video, settings.stride, None, lambda done, total: told(done / max(total, 1)), settings.person
    )
    for trace in traces:
        if settings.smooth:
            trace = trace.smoothed(*settings.smooth)
        person = f".{trace.person}" if settings.person == "all" else ""
        path = task.output.with_name(f"{task.output.name}{person}.{settings.format}")
        trace.save(path)
        outputs.append(path.name)
        picture = path.with_suffix(".png")
        picture.unlink(missing_ok=True)  # of an earlier trace
        if settings.plot:
            temporary = picture.with_name(f".{picture.name}.part")
            trace.plot().savefig(temporary, dpi=120, format="png")
            temporary.replace(picture)
        rows += trace.table.num_rows
        duration = float(trace.times[-1] - trace.times[0])
        warnings += trace.warnings
    return Done(tuple(outputs), rows, duration, time.monotonic() - begin, tuple(warnings))


@dataclass(frozen=True)
class Known:
    """What is known of `videos[number]` now; `fresh` if this run found it out."""

    number: int
    row: Row
    fresh: bool = True


def predict_collection(
    videos: Sequence[Path],
    out: Path,
    recipe: Callable[[int], Work],
    settings: Settings,
    engine: Engine,
    redo: Redo = "missing",
    progress: Progress = lambda video, share: None,
) -> Iterator[Known]:
    """Predict what `out` lacks: videos that are new there, or changed since (size or modification time), or were done
    with other settings or another checkpoint, or whose files (pictures, where they are wanted) are gone. Those that
    failed are left as they are unless they changed, or `redo` is `failed`; `all` does every one. Files that a video
    had before and has no more go, such as those of `person` = all when the largest alone is asked for; those of
    another format stay.

    Videos that are left as they are come first, the others as they are finished, each in the ledger by then.
    `progress(index in videos, share)`. Raises JMTError as `Ledger` and `engine` do.
    """
    with Ledger(out) as ledger:
        for part in out.glob(".*.part"):  # of a run that was killed
            part.unlink(missing_ok=True)
        names = output_names(videos, ledger.rows)
        digest = settings.digest()
        jobs, planned, again = [], {}, {}
        for number, (video, name) in enumerate(zip(videos, names, strict=True)):
            size, time_ns = fingerprint(video)
            row = Row(as_text(os.path.abspath(video)), name, size, time_ns, digest, FAILED, versions=VERSIONS)
            before = ledger.rows.get(row.path)
            if before and not _due(before, row, _promised(before, out, settings.plot), redo):
                yield Known(number, before, fresh=False)
                continue
            planned[number] = row
            if before:
                again[number] = before
            jobs.append(Job(number, Task(video, out / name)))
        if not jobs:
            return
        begun = set()

        def told(number: int, share: float) -> None:
            if number in again and number not in begun:  # from now on its files may be of the one run or of the other
                begun.add(number)
                ledger.add(replace(again[number], settings=""))
            progress(number, share)

        with closing(engine(recipe, jobs, told)) as results:
            for result in results:
                row = _finished(planned[result.number], videos[result.number], result)
                if result.number in again:
                    row = _replaced(again[result.number], row, out)
                ledger.add(row)
                yield Known(result.number, row)


def _promised(row: Row, out: Path, plot: bool) -> list[Path]:
    traces = [out / name for name in row.outputs]
    return traces + [path.with_suffix(".png") for path in traces if plot]


def _due(before: Row, row: Row, promised: list[Path], redo: Redo) -> bool:
    same = (before.size, before.mtime_ns, before.settings) == (row.size, row.mtime_ns, row.settings)
    if redo == "all" or not same:
        return True
    if before.status == DONE:
        return not all(path.exists() for path in promised)
    return redo == "failed"


def _finished(row: Row, video: Path, result: Result) -> Row:
    facts = vars(row) | {"finished": now()}
    if not result.error:
        warnings = tuple(map(as_line, result.value.warnings))
        return Row(**facts | vars(result.value) | {"status": DONE, "warnings": warnings})
    error = result.error if result.error.startswith(str(video)) else f"{video}: {result.error}"
    return Row(**facts | {"status": QUARANTINED if result.deadly else FAILED, "error": as_line(error)})


def _replaced(before: Row, row: Row, out: Path) -> Row:
    """The row, when the files of its format that are no more among its outputs are gone. A video that fails now keeps
    those that it had."""
    if row.status != DONE:
        return replace(row, outputs=before.outputs)
    formats = {Path(name).suffix for name in row.outputs}
    for path in (out / name for name in set(before.outputs) - set(row.outputs)):
        if path.suffix in formats:
            for each in (*files(path), path.with_suffix(".png")):
                each.unlink(missing_ok=True)
    return row


def fingerprint(video: Path) -> tuple[int, int]:
    """Size [bytes] and modification time [ns] of a file, -1 and -1 where there is none."""
    try:
        status = video.stat()
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def weights_digest(checkpoint: Path) -> str:
    """16 hex digits of what is in a checkpoint's files. Raises CheckpointError where there is no such folder."""
    digest = hashlib.sha256()
    try:
        for path in sorted(each for each in checkpoint.iterdir() if each.suffix in (".json", ".safetensors")):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or checkpoint}: {error.strerror}; give a folder that `jmt-fast demo` or `train` wrote"
        ) from error
    return digest.hexdigest()[:16]
