"""`probe` and `predict`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jmt_fast.cli import app
from jmt_fast.cli.options import CompileOption, Device, Json, Precision, PrecisionOption, Stride, runtime


class Format(StrEnum):
    """jmt_fast.inference.formats has them too; importing that here would slow `--help`."""

    parquet = "parquet"
    csv = "csv"
    jsonl = "jsonl"
    eaf = "eaf"
    vtt = "vtt"


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
    decoder = route(info, Nvdec())  # by the word of the driver: the trial decode of `nvdec` takes seconds
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
    videos: Annotated[list[Path], typer.Argument(help="Video files.", metavar="VIDEO...")],
    checkpoint: Annotated[Path, typer.Option(help="Folder that `train` or `demo` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for one file a video.")],
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
    person: Annotated[
        str, typer.Option(help="Whose face: largest, all (a file each), or the number of one; 0 is the largest.")
    ] = "largest",
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    compile: CompileOption = None,
) -> None:
    """Predict valence and arousal over time for each video: one row a frame."""
    windows = _windows(smooth)
    if person not in ("largest", "all") and not person.isdecimal():
        raise typer.BadParameter(f"{person!r}: largest, all or a number expected", param_hint="--person")
    from jmt_fast.cli import show
    from jmt_fast.inference import Predictor, predict_files
    from jmt_fast.models import Checkpoint

    loaded = Checkpoint.load(checkpoint)
    region = crop.value if crop else loaded.features.region
    if person != "largest" and region != "face":
        raise typer.BadParameter(f"people are told apart by --crop face only, not {region}", param_hint="--person")
    predictor = Predictor(loaded, runtime(device, precision, compile), region)
    failed = 0
    with show.bar("Predicting") as progress:
        for outcome in predict_files(predictor, videos, out, format.value, int(stride), windows, progress, person):
            if outcome.trace is None:
                failed += 1
                print(f"error: {outcome.error}", file=sys.stderr)
                continue
            for line in outcome.trace.warnings:
                print(f"warning: {line}", file=sys.stderr)
            if plot:
                outcome.trace.plot().savefig(outcome.output.with_suffix(".png"), dpi=120)
            print(outcome.output)
    if failed:
        print(f"{failed} of {len(videos)} videos failed", file=sys.stderr)
        raise typer.Exit(1 if failed == len(videos) else 3)


def _windows(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r}: two numbers of frames expected, e.g. 20,50", param_hint="--smooth")
    return int(parts[0]), int(parts[1])
