"""`submit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jmt_fast.cli import app


@app.command()
def submit(
    traces: Annotated[Path, typer.Argument(help="Folder that `predict` wrote, a trace a trial.", metavar="TRACES")],
    out: Annotated[Path, typer.Option(help="The text file to write.")],
    sample: Annotated[
        Path | None, typer.Option(help="The challenge's sample file: exactly its rows are written.", show_default=False)
    ] = None,
) -> None:
    """Write a folder of traces as a submission to the VA Estimation Challenge."""
    from jmt_fast.inference.submission import write_submission

    written = write_submission(traces, out, sample)
    for line in written.warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(f"{written.rows} rows of {written.trials} trials written to {out}")
