"""`demo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from jmt_fast.cli import app
from jmt_fast.cli.options import CompileOption, Device, Json, Precision, PrecisionOption, runtime


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of the data and of the training.")] = 0,
    json: Json = False,
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    compile: CompileOption = None,
) -> None:
    """The whole system in five minutes, on synthetic data: make videos, train, evaluate, predict."""
    from jmt_fast.cli import show
    from jmt_fast.demo import DemoConfig, run_demo

    machine = runtime(device, precision, compile)
    if compile is None and machine.device.type == "cpu":
        machine = replace(machine, compile=False)  # compiling takes longer than what it saves in minutes of training
    show.err.print(
        "The data is synthetic: rendered faces, synthesised voices. The figures say nothing about real people."
    )
    result = run_demo(out, DemoConfig(seed=seed), machine, show.bar)
    if json:
        show.as_json(result.as_dict())
        return
    rows = []
    for name, score in result.scores.items():
        valence, arousal = (float(value) for value in score.pooled)
        varying = " / ".join(f"{value:.2f}" for value in score.deviation_ratio)
        rows.append((name, result.chosen.get(name, "closed form"), valence, arousal, score.mean, varying))
    show.table(
        "Synthetic test split, identities not seen in training: CCC",
        ("model", "chosen on validation", "valence", "arousal", "mean", "deviation in a sequence"),
        rows,
        left=2,
    )
    show.table(
        "Time per stage", ("stage", "seconds"), [(name, f"{value:.1f}") for name, value in result.seconds.items()]
    )
    print(f"feature extraction: {result.clips_per_second:.0f} clips/s on {machine.device} in {machine.precision}")
    print(f"checkpoint: {out / 'checkpoint'}   trace: {out / 'prediction.parquet'}   plot: {out / 'prediction.png'}")
