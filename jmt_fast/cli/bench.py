"""`bench`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jmt_fast.cli import app
from jmt_fast.cli.options import Json


class Question(StrEnum):
    attention = "attention"
    fusion = "fusion"
    features = "features"
    graph = "graph"
    media = "media"
    collection = "collection"


@app.command()
def bench(
    only: Annotated[list[Question] | None, typer.Option(help="Which benchmark; give it again for more.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="To time one shape; compiling comes on top.")] = 4.0,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the rows. The default, benchmarks/results, also renews README's tables and the plot."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure kernels, fusion, backbones, media and collections on this machine, beside their peers."""
    from jmt_fast.bench import Outcome, checkout, run_benchmarks, write_report
    from jmt_fast.cli import show
    from jmt_fast.errors import JMTError

    root, outcome = checkout(), Outcome()
    own = root / "benchmarks" / "results"
    try:
        with show.bar("Benchmarks") as progress:
            run_benchmarks(root, only or [], seconds, results or own, progress, outcome)
    finally:  # what was finished before an interruption is kept, so the tables must show it too
        if outcome.rows and (results or own).resolve() == own.resolve():
            outcome.files += write_report(root)
    if json:
        show.as_json(outcome.rows)
    else:
        _tables(outcome.rows)
        print("\n".join(f"written: {path}" for path in outcome.files))
    if outcome.failed:
        raise JMTError(f"no rows of {len(outcome.failed)} benchmark(s) that failed: {'; '.join(outcome.failed)}")


def _tables(rows: list[dict[str, object]]) -> None:
    from jmt_fast.cli import show

    for shape in dict.fromkeys(row["shape"] for row in rows):
        lines = [
            (row["peer"], *(row.get(key) or "" for key in ("ms", "ms_q20", "ms_q80", "ratio")), row.get("error", ""))
            for row in rows
            if row["shape"] == shape
        ]
        show.table(str(shape), ("peer", "ms", "20%", "80%", "ratio", "cannot run"), lines)
