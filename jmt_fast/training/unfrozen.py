"""Training of fusion and backbones together, from video: what `fit_fusion` trains and what feeds it, as one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from jmt_fast.config import FeatureConfig, FrameConfig, UnfrozenTraining
from jmt_fast.data import Recording, labelled
from jmt_fast.data.graph import ClipGraph
from jmt_fast.errors import DataError, JMTError
from jmt_fast.models import JMT, Backbones, Checkpoint
from jmt_fast.models.cudnn import tuned
from jmt_fast.runtime import Runtime
from jmt_fast.training.batches import LabelledVideo, SequenceSampler, check_shares, content
from jmt_fast.training.checkpoints import RunFolder, weights_digest
from jmt_fast.training.clip_cache import open_clips
from jmt_fast.training.clips import ClipReader
from jmt_fast.training.distributed import rank, ranks, replicated, shared_folder, whole_batch
from jmt_fast.training.evaluation import Evaluation, evaluate, judged_together
from jmt_fast.training.fusion import rate
from jmt_fast.training.loop import FitResult, Progress, Trainer, Watch
from jmt_fast.training.loss import ccc_loss
from jmt_fast.training.sequence_clips import SequenceClips
from jmt_fast.training.step import Step, precision
from jmt_fast.training.visual import Normalised, trainable

_UNUSED = {"audio": "visual", "visual": "audio"}  # by the baselines that know one modality


class WholeModel(nn.Module):
    """Backbones, GRU and fusion: pictures and spectrograms of sequences -> valence and arousal (B, L, 2).

    Batch normalisation keeps the statistics that the backbones came with, in training too: a batch holds two videos or
    so, whose clips are too alike to estimate any. So padding changes nothing, and inference runs what was trained.
    """

    def __init__(self, fusion: JMT, backbones: Backbones, frames: FrameConfig) -> None:
        super().__init__()
        self.fusion, self.visual, self.audio = fusion, backbones.visual, backbones.audio
        self.normalised = Normalised(frames)

    def train(self, mode: bool = True) -> WholeModel:
        super().train(mode)
        self.visual.eval()
        self.audio.eval()
        self.audio.gru.train(mode)  # cuDNN has its gradients in training mode only
        return self

    def features(self, pictures: Tensor, spectrograms: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, 8, crop, crop, 3), (N, 1, mels, columns) -> audio and visual features (N, D), at least float32."""
        found = self.audio(spectrograms), self.visual(self.normalised(pictures))
        audio, visual = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in found)
        return audio, visual

    def forward(self, pictures: Tensor, spectrograms: Tensor, present: Tensor) -> Tensor:
        """(B, L, 8, crop, crop, 3), (B, L, 1, mels, columns), bool (B, L) -> (B, L, 2), 0 where not present."""
        found = self.features(pictures.flatten(0, 1), spectrograms.flatten(0, 1))
        audio, visual = (part.unflatten(0, present.shape).masked_fill(~present[..., None], 0) for part in found)
        with torch.autocast(audio.device.type, enabled=False):
            audio = self.audio.sequence(audio)
        return self.fusion(audio, visual, present)


def fit_unfrozen(
    fusion: JMT,
    backbones: Backbones,
    features: FeatureConfig,
    train: Sequence[Recording],
    validation: Sequence[Recording],
    config: UnfrozenTraining,
    runtime: Runtime,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> FitResult:
    """SGD on fusion, backbones and GRU at once, each at its rate; at the end all have the best epoch's weights.

    Loss, sequences and selection are those of `fit_fusion`; clips come from video as for `fit_visual`, with random crop
    and flip, and their sound beside them. What `config.freeze` names keeps its weights. On a CPU always in FP32, not
    compiled. With `out`: `best/` (a whole checkpoint), `last.pt`, `metrics.jsonl`.

    Raises:
        DataError: no labelled clip in a split, fewer sequences a batch than processes.
        JMTError: `config.freeze` names nothing, or leaves nothing to train; a loss that is not finite, or a full disk.
        CheckpointError: as for `fit_fusion`.
    """
    check_shares(config.batch, ranks())  # before anything is decoded
    runtime = trainable(runtime)
    network = WholeModel(fusion, backbones, features.frames)
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    network.to(runtime.device).visual.to(memory_format=torch.channels_last_3d)
    try:
        step = _step(network, config, runtime)
        with shared_folder(out) as temporary, tuned():
            graph = ClipGraph(features.frames, features.sound, runtime.device)

            def opened(name: str, recordings: Sequence[Recording]) -> SequenceClips:
                reader = ClipReader(
                    recordings, graph, config.stride, progress=progress, every=True, region=features.region,
                    find=features.detector, runtime=runtime,
                )  # fmt: skip
                clips = open_clips(temporary / f"{name}{rank()}", reader, progress)
                return SequenceClips(temporary / f"{name}-sound", clips, config.stride, progress)

            clips, held_out = opened("train", train), opened("validation", validation)
            if not any(labelled(video.labels).any() for video in held_out.videos):
                raise DataError(f"none of the {len(validation)} validation videos has a label; check the annotations")
            sampler = SequenceSampler(
                clips.videos, length=fusion.config.length, batch=config.batch, seed=config.seed, label=config.label,
                label_lag=config.label_lag, part=(rank(), ranks()),
            )  # fmt: skip
            identity = {
                "training": config.model_dump(mode="json"),
                "model": fusion.config.model_dump(mode="json"),
                "features": features.model_dump(mode="json"),
                "precision": runtime.precision,
                "train": content(clips.videos),
                "validation": content(held_out.videos),
                "start": weights_digest(network),
            }
            save_best = Checkpoint(fusion, backbones, features).save
            trainer = Trainer(
                network,
                step,
                lambda: judged_together(
                    lambda videos: _judge(network, held_out, videos, config, runtime), held_out.videos
                ),
                epochs=config.epochs,
                patience=config.patience,
                seed=config.seed,
                folder=RunFolder(out, identity, save_best) if out is not None else None,
                progress=progress,
                watch=watch,
                rate=None if config.schedule == "constant" else lambda history: rate(config, history),
            )
            return trainer.fit(lambda epoch: clips.epoch(sampler, epoch), sampler.batches, resume)
    finally:
        for parameter, before in zip(network.parameters(), wanted, strict=True):
            parameter.requires_grad_(before)


def _optimizer(network: WholeModel, config: UnfrozenTraining) -> torch.optim.SGD:
    """A group of parameters for each part that is not frozen."""
    known = {name.rpartition(".")[0] for name, _ in network.named_parameters()}
    for part in config.freeze:
        if not any(name == part or name.startswith(f"{part}.") for name in known):
            raise JMTError(
                f"freeze={part}: no such part; choose fusion, visual, audio, or a part of one, such as visual.layer1"
            )
    frozen = {*config.freeze, _UNUSED.get(network.fusion.config.fusion)}
    for name, parameter in network.named_parameters():
        parents = name.split(".")
        parameter.requires_grad_(not any(".".join(parents[:depth]) in frozen for depth in range(1, len(parents) + 1)))
    rates = {"fusion": config.lr, "visual": config.visual_lr, "audio": config.audio_lr}
    groups = [
        {"params": trained, "lr": lr}
        for name, lr in rates.items()
        if (trained := [each for each in network.get_submodule(name).parameters() if each.requires_grad])
    ]
    if not groups:
        raise JMTError(f"freeze={','.join(config.freeze)}: nothing is left to train; freeze less")
    return torch.optim.SGD(
        groups, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov, fused=True
    )


def _step(network: WholeModel, config: UnfrozenTraining, runtime: Runtime) -> Step:
    optimizer = _optimizer(network, config)
    whole = replicated(network)  # looks which parameters want gradients

    def loss(pictures: Tensor, spectrograms: Tensor, present: Tensor, target: Tensor, known: Tensor) -> Tensor:
        return ccc_loss(*whole_batch(whole(pictures, spectrograms, present).float(), target, known))

    return Step(loss, optimizer, runtime, clip_norm=config.clip_norm)


def _judge(
    network: WholeModel,
    clips: SequenceClips,
    videos: Sequence[LabelledVideo],
    config: UnfrozenTraining,
    runtime: Runtime,
) -> Evaluation:
    """The videos' features by the backbones as they are, then `evaluate`."""
    size = max(16, config.batch * network.fusion.config.length)
    seen = []
    for video in videos:
        found = []
        for start in range(0, len(video.features.times), size):
            pictures, spectrograms = clips.inputs(video, start, start + size)
            with torch.no_grad(), precision(runtime):
                found.append(network.features(pictures.to(runtime.device), spectrograms.to(runtime.device)))
        audio, visual = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        features = replace(video.features, clips=torch.cat((visual, audio), 1), visual_dim=visual.shape[1])
        seen.append(replace(video, features=features))
    return evaluate(network.fusion, network.audio, seen, runtime=runtime, label_lag=config.label_lag)
