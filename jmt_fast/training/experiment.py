"""From a collection to a checkpoint: features into the store, labels beside them, training, weights out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmt_fast.config import FeatureConfig, FusionTraining, JMTConfig, UnfrozenTraining
from jmt_fast.data import OpenRecording, Recording
from jmt_fast.errors import CheckpointError, DataError, JMTError, MediaError
from jmt_fast.features import Extractor, FeatureStore, StoreKey, extract_all
from jmt_fast.models import JMT, Backbones, Checkpoint
from jmt_fast.runtime import Runtime
from jmt_fast.training import FitResult, LabelledVideo, evaluate, fit_fusion, fit_unfrozen
from jmt_fast.training.distributed import of_all, own, rank
from jmt_fast.training.loop import Watch
from jmt_fast.training.predictions import write_predictions

Progress = Callable[..., None]


@dataclass(frozen=True)
class Labelled:
    """The labelled videos of each split, and the recordings that could not be used, by name, with the reason."""

    splits: dict[str, list[LabelledVideo]]
    failed: dict[str, MediaError]

    def split(self, name: str) -> list[LabelledVideo]:
        if not self.splits.get(name):
            known = ", ".join(f"{split} ({len(videos)})" for split, videos in self.splits.items()) or "none"
            raise DataError(
                f"no usable labelled video in the {name} split (splits: {known}); check the manifest's split column"
            )
        return self.splits[name]


def open_store(
    root: Path, features: FeatureConfig, backbones: Backbones, stride: int, runtime: Runtime
) -> FeatureStore:
    """The feature store of these backbones and settings under `root`."""
    return FeatureStore(root, StoreKey.of(features, backbones, stride, runtime.precision))


def labelled_videos(
    recordings: Sequence[Recording],
    store: FeatureStore,
    backbones: Backbones,
    runtime: Runtime,
    progress: Progress | None = None,
) -> Labelled:
    """Extract what the store lacks, then join features with annotations, by split.

    Recordings without an annotation are passed over. A video that cannot be decoded is listed in `failed`; wrong
    annotations raise DataError. Of several processes each extracts its share.
    """
    used = [recording for recording in recordings if recording.annotation is not None]
    extracted = extract_all(lambda: Extractor(store.key.features, backbones, runtime), store, own(used), progress)
    failed = {name: error for part in of_all(extracted) for name, error in part.items()}
    splits: dict[str, list[LabelledVideo]] = {}
    for recording in used:
        if recording.name not in failed:
            features = store.read(recording.name)
            labels = OpenRecording(recording).labels()[: len(features.timestamps)]
            splits.setdefault(recording.split or "train", []).append(LabelledVideo(features, labels))
    return Labelled(splits, failed)


def label_lag(checkpoint: Path) -> float:
    """Seconds by which the labels lagged in a checkpoint's training; 0 where it came without `training.json`."""
    path = checkpoint / "training.json"
    return float(json.loads(path.read_text())["training"]["label_lag"]) if path.exists() else 0.0


def train_fusion(
    out: Path,
    labelled: Labelled,
    model: JMTConfig,
    training: FusionTraining,
    backbones: Backbones,
    features: FeatureConfig,
    runtime: Runtime,
    resume: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> FitResult:
    """Train one fusion; leave a whole checkpoint in `out`, with `metrics.jsonl` and the state to resume from.

    `validation.parquet` there holds what the best weights say of every frame of the validation split.
    """
    import torch

    torch.manual_seed(training.seed)
    fusion = JMT(model)
    result = fit_fusion(
        fusion,
        backbones.audio,
        labelled.split("train"),
        labelled.split("validation"),
        training,
        runtime,
        out=out,
        resume=resume,
        progress=progress,
        watch=watch,
    )
    if rank() > 0:
        return result
    save_trained(out, fusion, backbones, features, training, runtime, result)
    judged = evaluate(
        fusion, backbones.audio, labelled.split("validation"), runtime=runtime, label_lag=training.label_lag
    )
    write_predictions(out / "validation.parquet", judged, labelled.split("validation"))
    return result


def train_unfrozen(
    out: Path,
    recordings: Sequence[Recording],
    fusion: JMT,
    training: UnfrozenTraining,
    backbones: Backbones,
    features: FeatureConfig,
    runtime: Runtime,
    resume: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> FitResult:
    """`train_fusion` from video, with the backbones that `training` does not freeze; all that is there at the end fits.

    The validation split's features by the new backbones are in the store `out/features`, where `evaluate` looks.
    """
    used = [recording for recording in recordings if recording.annotation is not None]
    train, validation = ([each for each in used if each.split == name] for name in ("train", "validation"))
    result = fit_unfrozen(
        fusion, backbones, features, train, validation, training, runtime,
        out=out, resume=resume, progress=progress, watch=watch,
    )  # fmt: skip
    if rank() == 0:
        save_trained(out, fusion, backbones, features, training, runtime, result)
    store = open_store(out / "features", features, backbones, training.stride, runtime)
    videos = labelled_videos(validation, store, backbones, runtime, progress).split("validation")
    if rank() == 0:
        judged = evaluate(fusion, backbones.audio, videos, runtime=runtime, label_lag=training.label_lag)
        write_predictions(out / "validation.parquet", judged, videos)
    return result


def save_trained(
    out: Path,
    fusion: JMT,
    backbones: Backbones,
    features: FeatureConfig,
    training: FusionTraining,
    runtime: Runtime,
    result: FitResult,
) -> None:
    """The checkpoint in `out`, and `training.json`, which says how it came about."""
    Checkpoint(fusion, backbones, features).save(out)
    facts = {
        "training": training.model_dump(mode="json"),
        "precision": runtime.precision,
        "compile": runtime.compile,
        "best_epoch": result.best_epoch,
        "validation_ccc": [float(value) for value in result.best_ccc],
    }
    try:
        (out / "training.json").write_text(json.dumps(facts, indent=1))
    except OSError as error:
        raise CheckpointError(f"{out}/training.json cannot be written: {error.strerror}; free some space") from error


def tensorboard(folder: Path) -> Watch:
    """A `watch` that logs each epoch's loss and CCC for TensorBoard. JMTError where that is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise JMTError("TensorBoard is not installed; pip install 'jmt-fast[tensorboard]'") from error
    writer = SummaryWriter(str(folder))

    def log(entry: dict[str, Any]) -> None:
        writer.add_scalar("loss/train", entry["loss"], entry["epoch"])
        for name in ("valence", "arousal", "mean"):
            writer.add_scalar(f"ccc/{name}", entry[name], entry["epoch"])
        writer.flush()

    return log
