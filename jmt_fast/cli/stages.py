"""What `train` does, one function for each thing to train: read, train, save, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jmt_fast.cli import show

if TYPE_CHECKING:
    from jmt_fast.config import (
        AudioTraining,
        FeatureConfig,
        FusionTraining,
        JMTConfig,
        UnfrozenTraining,
        VisualTraining,
    )
    from jmt_fast.data import Recording
    from jmt_fast.models import JMT, Backbones
    from jmt_fast.runtime import Runtime
    from jmt_fast.training import FitResult


def train_visual(
    out: Path,
    recordings: list[Recording],
    config: FeatureConfig,
    networks: Backbones,
    training: VisualTraining,
    machine: Runtime,
    resume: bool,
) -> None:
    from jmt_fast.training import fit_visual

    splits = {
        name: [each for each in recordings if each.split == name and each.annotation]
        for name in ("train", "validation")
    }
    with show.bar("Training the visual backbone") as progress:
        result = fit_visual(
            networks.visual,
            config.frames,
            splits["train"],
            splits["validation"],
            training,
            machine,
            region=config.region,
            find=config.detector,
            out=out,
            resume=resume,
            progress=progress,
        )
    _save_backbones(networks, config, out, result)


def train_audio(
    out: Path,
    recordings: list[Recording],
    config: FeatureConfig,
    networks: Backbones,
    training: AudioTraining,
    store: Path,
    stride: int,
    machine: Runtime,
    resume: bool,
) -> None:
    from jmt_fast.training import fit_audio_gru
    from jmt_fast.training.distributed import rank
    from jmt_fast.training.experiment import labelled_videos, open_store

    with show.bar("Extracting features") as progress:
        labelled = labelled_videos(
            recordings, open_store(store, config, networks, stride, machine), networks, machine, progress
        )
    with show.bar("Training the GRU") as progress:
        result = fit_audio_gru(
            networks.audio,
            labelled.split("train"),
            labelled.split("validation"),
            training,
            machine,
            out=out,
            resume=resume,
            progress=progress,
        )
    _save_backbones(networks, config, out, result)
    if rank() == 0:
        show.finish(labelled.failed, len(recordings))


def _save_backbones(networks: Backbones, config: FeatureConfig, out: Path, result: FitResult) -> None:
    from jmt_fast.models.checkpoint import save_backbones_folder
    from jmt_fast.training.distributed import rank

    if rank() == 0:
        save_backbones_folder(networks, config, out)
        _report(out, result)


def train_fusion(
    out: Path,
    recordings: list[Recording],
    config: FeatureConfig,
    networks: Backbones,
    model: JMTConfig,
    training: FusionTraining,
    store: Path,
    machine: Runtime,
    resume: bool,
    tensorboard: bool,
) -> None:
    from jmt_fast.training import experiment
    from jmt_fast.training.distributed import rank
    from jmt_fast.training.experiment import labelled_videos, open_store

    watch = experiment.tensorboard(out / "tensorboard") if tensorboard and rank() == 0 else None
    opened = open_store(store, config, networks, training.stride, machine)
    with show.bar("Extracting features") as progress:
        labelled = labelled_videos(recordings, opened, networks, machine, progress)
    with show.bar("Training the fusion") as progress:
        result = experiment.train_fusion(
            out, labelled, model, training, networks, config, machine, resume, progress, watch
        )
    if rank() == 0:
        _report(out, result)
        show.finish(labelled.failed, len(recordings))


def train_unfrozen(
    out: Path,
    recordings: list[Recording],
    config: FeatureConfig,
    networks: Backbones,
    fusion: JMT,
    training: UnfrozenTraining,
    machine: Runtime,
    resume: bool,
    tensorboard: bool,
) -> None:
    from jmt_fast.training import experiment
    from jmt_fast.training.distributed import rank

    watch = experiment.tensorboard(out / "tensorboard") if tensorboard and rank() == 0 else None
    with show.bar("Training fusion and backbones") as progress:
        result = experiment.train_unfrozen(
            out, recordings, fusion, training, networks, config, machine, resume, progress, watch
        )
    if rank() == 0:
        _report(out, result)


def _report(out: Path, result: FitResult) -> None:
    valence, arousal = (float(value) for value in result.best_ccc)
    print(
        f"best epoch {result.best_epoch}: validation CCC valence {valence:.3f}, arousal {arousal:.3f}, "
        f"mean {(valence + arousal) / 2:.3f}; written to {out}"
    )
