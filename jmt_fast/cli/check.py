"""`verify` and `doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from jmt_fast.cli import app
from jmt_fast.cli.options import CompileOption, Device, Json, Precision, runtime


@app.command()
def doctor(json: Json = False) -> None:
    """Say what this machine will use and why."""
    from dataclasses import asdict

    from jmt_fast.cli import show
    from jmt_fast.doctor import examine

    findings = [asdict(finding) for finding in examine()]
    if json:
        show.as_json(findings)
    else:
        show.table(
            "What this machine will use", ("what", "choice", "why"), [list(each.values()) for each in findings], left=3
        )


@app.command()
def verify(
    device: Device = "auto",
    compile: CompileOption = None,
    seed: Annotated[int, typer.Option(help="Of weights and inputs.")] = 0,
    json: Json = False,
) -> None:
    """Compare the fast model with the reference: outputs, loss, gradients, weights after training."""
    from dataclasses import asdict

    from jmt_fast.cli import show
    from jmt_fast.verify import verify as compare

    machine = runtime(device, Precision.auto, compile)
    with show.bar("Verifying") as progress:
        rows = compare(machine, progress, seed)
    wrong = [row for row in rows if not row.ok]
    if json:
        show.as_json([asdict(row) | {"ok": row.ok} for row in rows])
    else:
        show.table(
            f"Fast model against the reference in FP64, on {machine.device}: relative errors",
            ("case", "what", "precision", "error", "bound", ""),
            [
                (row.case, row.what, row.precision, f"{row.error:.2e}", f"{row.bound:.2e}", "ok" if row.ok else "OVER")
                for row in rows
            ],
            left=3,
        )
        print(f"{len(rows) - len(wrong)} of {len(rows)} comparisons within their bounds")
    if wrong:
        raise typer.Exit(1)
