"""`features`, `train` and `evaluate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

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
    Split,
    Store,
    Stride,
    given,
    runtime,
)
from jmt_fast.cli.settings import (
    CropOption,
    DetectorOption,
    configuration,
    configured_backbones,
    configured_fusion,
    configured_unfrozen,
)


class Stage(StrEnum):
    fusion = "fusion"
    visual = "visual"
    audio = "audio"


@app.command()
def features(
    store: Annotated[Path, typer.Option(help="Folder of the feature store.")],
    data: Annotated[Path | None, typer.Option(help="A manifest (CSV or Parquet), or an Aff-Wild2 folder.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare all that is in the store with its checksums.")
    ] = False,
    backbones: BackbonesOption = "pretrained",
    preset: FeaturePreset = "paper",
    crop: CropOption = None,
    detector: DetectorOption = None,
    stride: Annotated[Stride, typer.Option(help="Thirtieths of a second between clips.")] = Stride.four,
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    compile: CompileOption = None,
) -> None:
    """Extract the features of a collection into a store; a run that was interrupted goes on where it was."""
    if check:
        _check_store(store)
        return
    if data is None:
        raise typer.BadParameter("a manifest or an Aff-Wild2 folder is needed", param_hint="--data")
    from jmt_fast.cli import show
    from jmt_fast.data import load
    from jmt_fast.features import Extractor, extract_all
    from jmt_fast.training.experiment import open_store

    recordings = load(data)
    config, networks = configured_backbones(backbones, preset, recordings, crop, detector)
    machine = runtime(device, precision, compile)
    opened = open_store(store, config, networks, int(stride), machine)
    with show.bar("Extracting features") as progress:
        failed = extract_all(lambda: Extractor(config, networks, machine), opened, recordings, progress)
    print(f"features of {len(recordings) - len(failed)} videos in {opened.folder}")
    show.finish(failed, len(recordings))


def _check_store(store: Path) -> None:
    from jmt_fast.cli import show
    from jmt_fast.features import check_store

    with show.bar("Checking features") as progress:
        count, bad = check_store(store, progress)
    print(f"{count - len(bad)} of {count} files in {store} are as they were written")
    show.finish(bad, count, "files")


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, metrics.jsonl and the state to resume from.")],
    stage: Annotated[Stage, typer.Argument(help="What to train: the fusion, or a backbone before it.")] = Stage.fusion,
    backbones: BackbonesOption = "pretrained",
    preset: FeaturePreset = "paper",
    crop: CropOption = None,
    detector: DetectorOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="jmt, literal, abaw6, audio, visual, concat or cross_attention.", show_default="jmt"),
    ] = None,
    unfreeze: Annotated[
        bool,
        typer.Option("--unfreeze", help="Train the backbones with the fusion, from video; --backbones may be a run's."),
    ] = False,
    backbone_lr: Annotated[
        float | None, typer.Option(help="Learning rate of unfrozen backbones.", show_default="5e-5")
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option(help="FIELD=VALUE of the model's or the training's configuration.")
    ] = None,
    store: Store = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="the paper's")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of SGD.", show_default="0")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences (fusion, audio) or clips (visual) a step.")] = None,
    epochs: Annotated[int | None, typer.Option(help="At most so many.")] = None,
    stride: Annotated[Stride, typer.Option(help="Thirtieths of a second between the store's clips.")] = Stride.four,
    seed: Annotated[int, typer.Option(help="Of initialisation and order.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last finished epoch in --out.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log the fusion's training for TensorBoard, in --out.")
    ] = False,
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    compile: CompileOption = None,
) -> None:
    """Train the fusion (or a backbone) on a labelled collection.

    Under torchrun it trains on several devices; after a crash it goes on from the last finished epoch.
    """
    _check_unfreeze(stage, unfreeze, backbone_lr, store)
    from jmt_fast.cli import stages
    from jmt_fast.config import AudioTraining, VisualTraining
    from jmt_fast.data import load
    from jmt_fast.training import distributed

    options = given(lr=lr, momentum=momentum, batch=batch, epochs=epochs) | {"seed": seed}
    machine = runtime(device, precision, compile)
    recordings = load(data)
    config, networks = configured_backbones(backbones, preset, recordings, crop, detector)
    store = store or out / "features"
    with distributed.processes(machine) as own:
        again = resume or distributed.restarted()
        if stage is Stage.visual:
            [visual] = configuration([VisualTraining], [options], set)
            stages.train_visual(out, recordings, config, networks, visual, own, again)
        elif stage is Stage.audio:
            [audio] = configuration([AudioTraining], [options], set)
            stages.train_audio(out, recordings, config, networks, audio, store, int(stride), own, again)
        elif unfreeze:
            rates = given(visual_lr=backbone_lr, audio_lr=backbone_lr) | {"stride": int(stride)}
            fusion, joint = configured_unfrozen(model, backbones, options | rates, set)
            stages.train_unfrozen(out, recordings, config, networks, fusion, joint, own, again, tensorboard)
        else:
            chosen, training = configured_fusion(model or "jmt", options | {"stride": int(stride)}, set)
            stages.train_fusion(out, recordings, config, networks, chosen, training, store, own, again, tensorboard)


def _check_unfreeze(stage: Stage, unfreeze: bool, backbone_lr: float | None, store: Path | None) -> None:
    if unfreeze and stage is not Stage.fusion:
        raise typer.BadParameter(f"it is for the fusion; `train {stage}` trains that backbone", param_hint="--unfreeze")
    if unfreeze and store is not None:
        raise typer.BadParameter("no features are kept while the backbones change", param_hint="--store")
    if backbone_lr is not None and not unfreeze:
        raise typer.BadParameter("it needs --unfreeze: the backbones are frozen", param_hint="--backbone-lr")


@app.command()
def evaluate(
    data: Data,
    checkpoint: Annotated[Path, typer.Option(help="Folder that `train` or `demo` wrote.")],
    split: Annotated[Split, typer.Option(help="Of the collection.")] = Split.validation,
    store: Store = None,
    stride: Annotated[Stride, typer.Option(help="Thirtieths of a second between predictions.")] = Stride.four,
    json: Json = False,
    device: Device = "auto",
    precision: PrecisionOption = Precision.auto,
    compile: CompileOption = None,
) -> None:
    """CCC of a checkpoint on a split: pooled over all labelled frames, and per video."""
    from jmt_fast.cli import show
    from jmt_fast.data import load
    from jmt_fast.models import Checkpoint
    from jmt_fast.training import evaluate as evaluation
    from jmt_fast.training.experiment import label_lag, labelled_videos, open_store

    loaded = Checkpoint.load(checkpoint)
    machine = runtime(device, precision, compile)
    recordings = [each for each in load(data) if each.split == split.value]
    opened = open_store(store or checkpoint / "features", loaded.features, loaded.backbones, int(stride), machine)
    with show.bar("Extracting features") as progress:
        labelled = labelled_videos(recordings, opened, loaded.backbones, machine, progress)
    result = evaluation(
        loaded.fusion.to(machine.device), loaded.backbones.audio.to(machine.device), labelled.split(split.value),
        runtime=machine, label_lag=label_lag(checkpoint),
    )  # fmt: skip
    scores = result.as_dict()
    if json:
        failed = {name: str(error) for name, error in labelled.failed.items()}
        show.as_json({"split": split.value, **scores, "failed": failed})
    else:
        rows = [*sorted(scores["per_video"].items()), ("pooled", scores)]
        show.table(
            f"CCC on the {split.value} split",
            ("video", "labelled frames", "valence", "arousal", "mean"),
            [
                (name, row["frames"], row["valence"], row["arousal"], (row["valence"] + row["arousal"]) / 2)
                for name, row in rows
            ],
        )
    show.finish(labelled.failed, len(recordings))
