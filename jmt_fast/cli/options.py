"""Options that several commands share, each with its help written once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jmt_fast.runtime import Runtime


class Precision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Stride(StrEnum):
    """Thirtieths of a second between clips."""

    one, two, four, eight, sixteen, thirtytwo = "1", "2", "4", "8", "16", "32"


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[
    Precision, typer.Option(help="Of matrix products; auto takes bf16 where the device has it.")
]
CompileOption = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="torch.compile; by default where it gains.", show_default=False),
]
Data = Annotated[Path, typer.Option(help="A manifest (CSV or Parquet), or an Aff-Wild2 folder.")]
Store = Annotated[
    Path | None, typer.Option(help="Folder of the feature store; by default `features` in the run's folder.")
]
BackbonesOption = Annotated[str, typer.Option(help="pretrained, random, or a folder that `train visual` wrote.")]
FeaturePreset = Annotated[
    str, typer.Option(help="paper (full networks at 224) or demo; a backbone folder has its own.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def runtime(device: str, precision: Precision, compile: bool | None) -> Runtime:
    from jmt_fast.runtime import Runtime

    return Runtime.choose(device, precision.value, compile)


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, so that a default stands in the config alone."""
    return {name: value for name, value in options.items() if value is not None}
