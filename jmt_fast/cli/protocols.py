"""`crossval`, `search` and `ablate`: experiments on cached features."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from jmt_fast.cli import app
from jmt_fast.cli.options import (
    BackbonesOption,
    CompileOption,
    Data,
    Device,
    FeaturePreset,
    Json,
    Precision,
    PrecisionOption,
    Store,
    Stride,
    given,
    runtime,
)
from jmt_fast.cli.settings import CropOption, DetectorOption, configured_backbones, configured_fusion
from jmt_fast.errors import JMTError

if TYPE_CHECKING:
    from jmt_fast.config import FeatureConfig, FusionTraining, JMTConfig
    from jmt_fast.data import Recording
    from jmt_fast.models import Backbones
    from jmt_fast.runtime import Runtime
    from jmt_fast.training.experiment import Labelled

Model = Annotated[str, typer.Option(help="jmt, literal, abaw6, audio, visual, concat or cross_attention.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="FIELD=VALUE of the model's or the training's configuration.")
]
Epochs = Annotated[int | None, typer.Option(help="At most so many in each run.")]
Seed = Annotated[int, typer.Option(help="Of initialisation and order.")]
StrideOption = Annotated[Stride, typer.Option(help="Thirtieths of a second between the store's clips.")]
DECIMALS = 3


class Experiment(NamedTuple):
    recordings: list[Recording]
    labelled: Labelled
    model: JMTConfig
    training: FusionTraining
    backbones: Backbones
    features: FeatureConfig
    runtime: Runtime


@app.command()
def crossval(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for a run of each partition, table.json and table.csv.")],
    folds: Annotated[
        str, typer.Option(help="How many where the collection has none of its own, or a CSV with name and fold.")
    ] = "5",
    jobs: Annotated[int, typer.Option(min=1, help="Partitions trained side by side.")] = 1,
    backbones: BackbonesOption = "pretrained",
    preset: FeaturePreset = "paper",
    crop: CropOption = None,
    detector: DetectorOption = None,
    store: Store = None,
    stride: StrideOption = Stride.four,
    model: Model = "jmt",
    changes: Changes = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="the paper's")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences a step.", show_default="the paper's")] = None,
    epochs: Epochs = None,
    seed: Seed = 0,
    json: Json = False,
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    compile: CompileOption = None,
) -> None:
    """The paper's Table 1: the official split and folds by subject and video. Repeat the command to go on."""
    from jmt_fast.cli import show
    from jmt_fast.training.crossval import best, cross_validate, partitions, read_folds

    if not folds.isdecimal() and not Path(folds).is_file():
        raise typer.BadParameter(f"{folds!r}: a number or a CSV file expected", param_hint="--folds")
    options = given(lr=lr, batch=batch, epochs=epochs) | {"seed": seed, "stride": int(stride)}
    made = _experiment(
        data, out, backbones, preset, crop, detector, store, model, options, changes, device, precision, compile
    )
    known = None if folds.isdecimal() else read_folds(Path(folds), made.recordings)
    parts = partitions(made.recordings, made.labelled, int(folds) if known is None else 0, seed, known)
    with show.bar("Cross-validation") as progress:
        rows = cross_validate(out, parts, *made[1:], jobs=jobs, progress=progress)
    if json:
        show.as_json([row.__dict__ | {"mean": row.mean} for row in rows])
    else:
        top = best(rows)

        def cell(row: Any, column: str) -> str:
            text = f"{getattr(row, column):.{DECIMALS}f}"
            return f"[bold]{text}[/bold]" if top[column] == row.name else text

        lines = [(row.name, *(cell(row, each) for each in ("valence", "arousal", "mean")), row.epoch) for row in rows]
        show.table("CCC on the validation videos", ("data", "valence", "arousal", "avg.", "epoch"), lines)
    show.finish(made.labelled.failed, len(made.recordings))


@app.command()
def search(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the best checkpoint and the study that goes on.")],
    lr: Annotated[str, typer.Option(help="Learning rates of the grid.")] = "1e-4,5e-4,2e-3",
    batch: Annotated[str, typer.Option(help="Batch sizes of the grid.")] = "2,4,8",
    momentum: Annotated[str, typer.Option(help="Momenta of the grid.")] = "0",
    lag: Annotated[str, typer.Option(help="Lags of the labels in seconds; two or more make the lag a part.")] = "0",
    trials: Annotated[int, typer.Option(min=0, help="After the grid, where it was good.")] = 12,
    backbones: BackbonesOption = "pretrained",
    preset: FeaturePreset = "paper",
    crop: CropOption = None,
    detector: DetectorOption = None,
    store: Store = None,
    stride: StrideOption = Stride.four,
    model: Model = "jmt",
    changes: Changes = None,
    epochs: Epochs = None,
    seed: Seed = 0,
    json: Json = False,
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    compile: CompileOption = None,
) -> None:
    """Search learning rate and batch size by mean CCC on the validation split. Repeat the command to go on."""
    _require("optuna")
    from jmt_fast.cli import show
    from jmt_fast.models import JMT
    from jmt_fast.training.batches import content
    from jmt_fast.training.experiment import save_trained
    from jmt_fast.training.refine import Search, Space

    space = Space(
        _numbers("--lr", lr), [int(each) for each in _numbers("--batch", batch)],
        _numbers("--momentum", momentum, zero=True), _numbers("--lag", lag, zero=True),
    )  # fmt: skip
    options = given(epochs=epochs) | {"seed": seed, "stride": int(stride)}
    made = _experiment(
        data, out, backbones, preset, crop, detector, store, model, options, changes, device, precision, compile
    )
    identity = {
        "model": made.model.model_dump(mode="json"), "precision": made.runtime.precision,
        "backbones": made.backbones.digest(),
        **{split: content(made.labelled.split(split)) for split in ("train", "validation")},
    }  # fmt: skip
    study = Search(out, space, made.training, identity)
    with show.bar("Searching") as progress:
        tried = study.run(
            lambda: JMT(made.model), made.backbones.audio, made.labelled.split("train"),
            made.labelled.split("validation"), made.runtime, trials,
            lambda fusion, training, result: save_trained(
                out, fusion, made.backbones, made.features, training, made.runtime, result
            ),
            progress,
        )  # fmt: skip
    if json:
        show.as_json([each.__dict__ for each in tried])
    else:
        ranked = sorted(tried, key=lambda each: -(each.mean if each.mean is not None else -math.inf))
        header = ("trial", "mean CCC", "epoch", "lr", "batch", "momentum", "label lag")
        lines = [
            (
                each.number, each.state if each.mean is None else f"{each.mean:.{DECIMALS}f}", each.epoch or "",
                f"{each.settings['lr']:.2g}", each.settings["batch"], f"{each.settings['momentum']:g}",
                f"{each.settings['label_lag']:.2g} s",
            )
            for each in ranked
        ]  # fmt: skip
        show.table(f"{len(tried)} trials, the best first; its checkpoint is in {out}", header, lines)
    show.finish(made.labelled.failed, len(made.recordings))


@app.command()
def ablate(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for runs.jsonl, to which each run is added.")],
    only: Annotated[list[str] | None, typer.Option(help="Variants beside `jmt`; all by default.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    backbones: BackbonesOption = "pretrained",
    preset: FeaturePreset = "paper",
    crop: CropOption = None,
    detector: DetectorOption = None,
    store: Store = None,
    stride: StrideOption = Stride.four,
    changes: Changes = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="the paper's")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences a step.", show_default="the paper's")] = None,
    epochs: Epochs = None,
    json: Json = False,
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    compile: CompileOption = None,
) -> None:
    """Baselines and every field of the model changed alone, over seeds, with a paired test against the whole model."""
    _require("scipy")
    from jmt_fast.cli import show
    from jmt_fast.training.ablation import BASE, VARIANTS, ablate, summarise

    unknown = [name for name in only or [] if name not in VARIANTS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r}: choose of {', '.join(VARIANTS)}", param_hint="--only")
    names = list(dict.fromkeys([BASE, *(only or VARIANTS)]))
    options = given(lr=lr, batch=batch, epochs=epochs) | {"stride": int(stride)}
    made = _experiment(
        data, out, backbones, preset, crop, detector, store, BASE, options, changes, device, precision, compile
    )
    with show.bar("Ablation") as progress:
        rows = ablate(
            out, names, range(seeds), made.labelled, made.model, made.training, made.backbones.audio, made.runtime,
            progress,
        )  # fmt: skip
    summaries = summarise(rows)
    if json:
        show.as_json([each.__dict__ for each in summaries])
    else:
        lines = [
            (
                each.name, each.valence, each.arousal, each.mean, f"{each.deviation:.3f}" if each.seeds > 1 else "",
                "" if each.name == BASE else f"{each.difference:+.3f}", "" if each.p is None else f"{each.p:.3f}",
            )
            for each in summaries
        ]  # fmt: skip
        header = ("variant", "valence", "arousal", "mean", "± seeds", "to jmt", "p (paired t)")
        show.table(f"CCC on the {rows[0]['split']} split, {seeds} seeds", header, lines)
    show.finish(made.labelled.failed, len(made.recordings))


def _require(package: str) -> None:
    """JMTError before the work, not after hours of it."""
    if find_spec(package) is None:
        raise JMTError(f"{package} is not installed; pip install 'jmt-fast[protocols]'")


def _experiment(
    data: Path, out: Path, backbones: str, preset: str, crop: Any, detector: Any, store: Path | None,
    model: str, options: dict[str, Any], changes: list[str] | None, device: str, precision: Precision,
    compile: bool | None,
) -> Experiment:  # fmt: skip
    """Everything that the options name, with the features extracted that the store lacks."""
    from jmt_fast.cli import show
    from jmt_fast.data import load
    from jmt_fast.training.experiment import labelled_videos, open_store

    machine = runtime(device, precision, compile)
    recordings = load(data)
    config, networks = configured_backbones(backbones, preset, recordings, crop, detector)
    chosen, training = configured_fusion(model, options, changes)
    opened = open_store(store or out / "features", config, networks, training.stride, machine)
    with show.bar("Extracting features") as progress:
        labelled = labelled_videos(recordings, opened, networks, machine, progress)
    return Experiment(recordings, labelled, chosen, training, networks, config, machine)


def _numbers(option: str, text: str, zero: bool = False) -> list[float]:
    """Numbers of a comma-separated list, positive, or 0 where that has a meaning."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(math.isfinite(each) and (each > 0 or (zero and each == 0)) for each in numbers):
        raise typer.BadParameter(f"{text!r}: numbers with commas between expected, e.g. 1,2", param_hint=option)
    return numbers
