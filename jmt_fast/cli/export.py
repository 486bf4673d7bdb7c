"""`export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jmt_fast.cli import app
from jmt_fast.cli.options import Device, Precision, PrecisionOption, runtime


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Option(help="Folder that `train` or `demo` wrote.")],
    out: Annotated[Path, typer.Option(help="File to write: NAME.pt2 (AOTInductor) or NAME.onnx.")],
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
) -> None:
    """Write the fusion as one file that runs without this package, once its results are found to be the model's."""
    from jmt_fast.cli import show
    from jmt_fast.models import JMT
    from jmt_fast.models.export import SUFFIXES, export_fusion

    if out.suffix not in SUFFIXES:
        raise typer.BadParameter(f"{out}: a name that ends in {' or '.join(SUFFIXES)} expected", param_hint="--out")
    if out.suffix == ".onnx" and precision not in (Precision.auto, Precision.fp32):
        raise typer.BadParameter("ONNX files hold the plain model, in fp32", param_hint="--precision")
    machine = runtime(device, precision, None)
    with show.bar("Exporting") as progress:
        error = export_fusion(JMT.from_pretrained(checkpoint), out, machine, progress)
    print(f"{out}: differs from the model by at most {error:.1e} on random input")
