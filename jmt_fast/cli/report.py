"""`report`: results as pictures and pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jmt_fast.cli import app

report = typer.Typer(name="report", help="Results as pictures and pages.", no_args_is_help=True)
app.add_typer(report)


@report.command("run")
def run(
    folder: Annotated[Path, typer.Argument(help="Folder that `train` wrote.", metavar="DIR")],
    out: Annotated[Path | None, typer.Option(help="The page.", show_default="DIR/report.html")] = None,
    worst: Annotated[int, typer.Option(min=1, help="Videos to name on the terminal.")] = 10,
) -> None:
    """A training run: loss and CCC by epoch, valence against arousal, and CCC of each video, the worst by name."""
    from jmt_fast.cli import show
    from jmt_fast.training.report import write_report

    page = out or folder / "report.html"
    found = write_report(folder, page)
    rows = [(name, float(ccc[0]), float(ccc[1]), float(ccc.mean())) for name, ccc in found.per_video().items()]
    title = f"CCC of the validation videos, the worst {min(worst, len(rows))} of {len(rows)}"
    show.table(title, ("video", "valence", "arousal", "mean"), rows[:worst])
    print(page)


@report.command("video")
def video(
    path: Annotated[Path, typer.Argument(help="A trace that `predict` wrote, or a folder of them.", metavar="PATH")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page to write, or for a folder the folder for index.html.", show_default="beside PATH"),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(help="The video, or the folder of the videos.", show_default="where it was, or beside the trace"),
    ] = None,
    embed: Annotated[bool, typer.Option("--embed", help="Put the video into the page instead of linking it.")] = False,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Write an MP4 too, with the trace below the picture.")
    ] = False,
) -> None:
    """Write a page that shows a video with its trace; for a folder of traces, an index and a page for each video."""
    from jmt_fast.cli import show
    from jmt_fast.inference.report import report_videos

    with show.bar("Writing pages") as progress:
        written = report_videos(path, out, video, embed, overlay, progress)
    for line in written.warnings:
        print(f"warning: {line}", file=sys.stderr)
    for file in written.files:
        print(file)
    show.finish(written.failed, written.total, "traces")
