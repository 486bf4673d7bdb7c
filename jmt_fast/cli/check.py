"""`verify` and `doctor`."""

from __future__ import annotations

from jmt_fast.cli import app
from jmt_fast.cli.options import Json


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
