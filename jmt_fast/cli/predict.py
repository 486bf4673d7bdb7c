"""`probe` and `predict`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jmt_fast.cli import app
from jmt_fast.cli.options import CompileOption, Device, Json, Precision, PrecisionOption, Stride

if TYPE_CHECKING:
    from jmt_fast.inference import Found, Known
    from jmt_fast.inference.collection import Redo

AGAIN = " (as before; --retry-failed tries again)"


class Format(StrEnum):
    """jmt_fast.inference.formats has them too; importing that here would slow `--help`."""

    parquet = "parquet"
    csv = "csv"
    jsonl = "jsonl"
    eaf = "eaf"
    vtt = "vtt"


class EngineName(StrEnum):
    local = "local"
    ray = "ray"


class DetectorName(StrEnum):
    centerface = "centerface"
    yunet = "yunet"


class Crop(StrEnum):
    face = "face"
    middle = "center"  # every string has a method `center`
    none = "none"


@app.command()
def probe(video: Annotated[Path, typer.Argument(help="A media file.")], json: Json = False) -> None:
    """Say what is in a video file: streams, frames, rate, rotation, sound."""
    from jmt_fast import media
    from jmt_fast.cli import show
    from jmt_fast.media.route import Nvdec, route

    info = media.probe(video)
    decoder = route(info, Nvdec(), tried=False)  # by the word of the driver: a trial takes seconds
    facts = info.facts() | {"gpu_decodes": decoder.gpu, "decoder": decoder.reason}
    if json:
        show.as_json(facts | {"timestamps": info.timestamps.tolist()})
        return
    facts["streams"] = ", ".join(f"{each.index}: {each.kind} {each.codec}" for each in info.streams)
    audio = info.audio
    facts["audio"] = (
        "none"
        if audio is None
        else (
            f"{audio.codec}, {audio.channels} channels, {audio.rate} Hz, {audio.duration:.2f} s at {audio.offset:.3f} s"
        )
    )
    show.table(
        str(video), ("field", "value"), [(key, str(value)) for key, value in facts.items() if key != "path"], left=2
    )


@app.command()
def predict(
    videos: Annotated[
        list[Path],
        typer.Argument(
            help="Files, folders, patterns, tables with a column `video` (.csv, .parquet), or - for a list on stdin.",
            metavar="VIDEO...",
        ),
    ],
    checkpoint: Annotated[Path, typer.Option(help="Folder that `train` or `demo` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for one file a video, and for the ledger `_index.parquet`.")],
    format: Annotated[Format, typer.Option(help="Of the files; eaf is for ELAN, vtt are subtitles.")] = Format.parquet,
    stride: Annotated[Stride, typer.Option(help="Thirtieths of a second between predictions.")] = Stride.eight,
    smooth: Annotated[str | None, typer.Option(help="Frames to smooth valence and arousal over, e.g. 20,50.")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Write a PNG beside each trace.")] = False,
    crop: Annotated[
        Crop | None,
        typer.Option(
            help="What to see of a frame: an upright face, the centre square, or all of it.",
            show_default="what the checkpoint was trained with",
        ),
    ] = None,
    detector: Annotated[
        DetectorName | None,
        typer.Option(help="What looks for faces.", show_default="what the checkpoint was trained with"),
    ] = None,
    person: Annotated[
        str, typer.Option(help="Whose face: largest, all (a file each), or the number of one; 0 is the largest.")
    ] = "largest",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try what failed before once more.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do what is done already once more.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes; 0 works in this one, without limits.",
            show_default="one a GPU; 0 for a single video, else 1",
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="How many GPUs to use.", show_default="all")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds without progress until a video is given up.", show_default="600"),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.1, help="GiB that a process may hold.", show_default="80% of the machine's, shared"),
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="Processes on this machine, or a Ray cluster (the extra `ray`).")
    ] = EngineName.local,
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    compile: CompileOption = None,
) -> None:
    """Predict valence and arousal over time for each video: one row a frame.

    A second run with the same --out does only what is missing or changed.
    """
    windows = _windows(smooth)
    if person not in ("largest", "all") and not person.isdecimal():
        raise typer.BadParameter(f"{person!r}: largest, all or a number expected", param_hint="--person")
    if gpus is not None and device != "auto":
        raise typer.BadParameter("give --gpus or --device, not both", param_hint="--gpus")
    if engine is EngineName.ray and device not in ("auto", "cpu"):
        raise typer.BadParameter("of a cluster's GPUs say how many, --gpus N", param_hint="--device")
    from jmt_fast.cli import show
    from jmt_fast.inference import Settings, find_videos, predict_collection, weights_digest
    from jmt_fast.inference.engines import choose
    from jmt_fast.models.checkpoint import load_feature_config

    found = find_videos(videos, sys.stdin.buffer)
    report = _Report(found)
    if not found.videos:
        raise typer.Exit(1)
    features = load_feature_config(checkpoint)
    region = crop.value if crop else features.region
    looks = (detector.value if detector else features.detector) if region == "face" else None
    if detector and not looks:
        raise typer.BadParameter(f"faces are looked for by --crop face only, not {region}", param_hint="--detector")
    if person != "largest" and region != "face":
        raise typer.BadParameter(f"people are told apart by --crop face only, not {region}", param_hint="--person")
    settings = Settings(
        weights=weights_digest(checkpoint), region=region, detector=looks, stride=int(stride), person=person,
        precision=precision.value, smooth=windows, format=format.value, plot=plot,
    )  # type: ignore[arg-type]  # fmt: skip
    if workers is None and len(found.videos) == 1 and not (timeout or memory) and engine is EngineName.local:
        workers = 0
    recipe, run = choose(engine.value, checkpoint, settings, workers, gpus, device, compile, timeout, memory)
    redo: Redo = "all" if force else "failed" if retry_failed else "missing"
    with show.bar("Predicting") as progress:
        report.progress = progress
        for known in predict_collection(found.videos, out, recipe, settings, run, redo, report.moved):
            report.add(known, out)
    report.finish()


class _Report:
    """What is said of a collection while it is done and afterwards."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.total = len(found.videos) + len(found.unusable)
        self.failed = len(found.unusable)
        self.done = self.before = 0
        self.seconds = 0.0  # of video
        self.shares: dict[int, float] = {}
        self.begin = time.monotonic()
        self.progress: Callable[[int, int, str], None] = lambda done, total, note: None
        for name, reason in found.unusable.items():
            print(f"error: {name}: {reason}", file=sys.stderr)
        if found.others:
            kinds = ", ".join(f"{suffix or 'without suffix'} {count}" for suffix, count in found.others.most_common(8))
            print(f"{found.others.total()} files are not called like videos and left out: {kinds}", file=sys.stderr)

    def moved(self, number: int, share: float) -> None:
        """Video `number` is done to this share. The bar counts hundredths of videos."""
        self.shares[number] = share
        left = self.total - self.done - self.failed - self.before
        note = f"{self.done} done, {self.failed} failed, {left} left, {self.speed():.1f} x real time"
        self.progress(100 * (self.total - left) + round(100 * sum(self.shares.values())), 100 * self.total, note)

    def speed(self) -> float:
        return self.seconds / max(time.monotonic() - self.begin, 1e-3)

    def add(self, known: Known, out: Path) -> None:
        row = known.row
        if row.status != "done":
            self.failed += 1
            print(f"error: {row.error}" + ("" if known.fresh else AGAIN), file=sys.stderr)
        elif known.fresh:
            self.done += 1
            self.seconds += row.duration
            for line in row.warnings:
                print(f"warning: {line}", file=sys.stderr)
            for name in row.outputs:
                print(out / name)
        else:
            self.before += 1
        self.shares.pop(known.number, None)

    def finish(self) -> None:
        """A last line, and the exit code: 3 if some failed, 1 if all did."""
        if self.before:
            print(f"{self.before} of {self.total} videos were done before; --force does them again", file=sys.stderr)
        if self.failed:
            print(f"{self.failed} of {self.total} videos failed", file=sys.stderr)
            raise typer.Exit(1 if self.failed == self.total else 3)


def _windows(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r}: two numbers of frames expected, e.g. 20,50", param_hint="--smooth")
    return int(parts[0]), int(parts[1])
