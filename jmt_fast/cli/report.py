"""`report`: results as pictures and pages."""

from __future__ import annotations

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
