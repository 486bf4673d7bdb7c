"""Training of the audio backbone's GRU on cached CNN features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jmt_fast.config import AudioTraining
from jmt_fast.errors import DataError
from jmt_fast.features import VideoFeatures, run_sequences
from jmt_fast.models import AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training.batches import LabelledVideo, SequenceSampler, content
from jmt_fast.training.checkpoints import RunFolder, weights_digest
from jmt_fast.training.distributed import rank, ranks, replicated, whole_batch
from jmt_fast.training.evaluation import Evaluation, judged_together, score
from jmt_fast.training.loop import FitResult, Progress, Trainer
from jmt_fast.training.loss import ccc_loss
from jmt_fast.training.step import Step


class AudioRegressor(nn.Module):
    """The GRU and a linear layer: CNN features of sequences (B, L, D) -> valence and arousal (B, L, 2)."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.gru = gru
        self.head = nn.Linear(gru.hidden_size, 2)

    def forward(self, audio: Tensor) -> Tensor:
        return self.head(self.gru(audio)[0])


def fit_audio_gru(
    audio_backbone: AudioBackbone,
    train: Sequence[LabelledVideo],
    validation: Sequence[LabelledVideo],
    config: AudioTraining,
    runtime: Runtime,
    *,
    length: int = 8,
    label: Literal["end", "mean"] = "end",
    label_lag: float = 0.0,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """Adam on the CCC loss of GRU and a linear head, which is dropped afterwards; the CNN is not touched.

    Sequences of `length` clips start from a zero state and are drawn as for the fusion, from all clips that are stored.
    In fp32, not compiled: the GRU is small, and bound by its recurrence. At the end `audio_backbone.gru` has the best
    epoch's weights. With `out`: `best/gru.safetensors`, `last.pt`, `metrics.jsonl`. Several processes and errors as for
    `fit_fusion`.
    """
    if not validation:
        raise DataError("the validation split is empty: the GRU is selected on it")
    runtime = replace(runtime, precision="fp32", compile=False)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(config.seed)
        regressor = AudioRegressor(audio_backbone.to(runtime.device).gru).to(runtime.device)
    gru = regressor.gru
    sampler = SequenceSampler(
        train, length=length, batch=config.batch, seed=config.seed, label=label, label_lag=label_lag,
        part=(rank(), ranks()),
    )  # fmt: skip
    identity = (
        {}
        if out is None
        else {
            "training": config.model_dump(mode="json") | {"length": length, "label": label, "label_lag": label_lag},
            "train": content(train),
            "validation": content(validation),
            "start": weights_digest(gru),
        }
    )

    def save_best(folder: Path) -> None:
        save_file({name: value.contiguous() for name, value in gru.state_dict().items()}, folder / "gru.safetensors")

    def judge(videos: Sequence[LabelledVideo]) -> Evaluation:
        def predict(audio: Tensor, visual: Tensor, present: Tensor) -> Tensor:
            return regressor.head(audio)

        def clips(video: VideoFeatures) -> np.ndarray:
            return run_sequences(predict, audio_backbone, video, length)

        return score(videos, clips, length, label_lag)

    def batches(epoch: int) -> Iterator[tuple[str, tuple[Tensor, Tensor, Tensor]]]:
        for names, block in sampler.blocks(epoch):
            for videos, part in sampler.cut(names, block):
                yield videos, (part.audio.float(), part.target, part.labelled)

    frozen = [parameter.requires_grad for parameter in gru.parameters()]
    gru.requires_grad_(True)
    network = replicated(regressor)

    def loss(audio: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        return ccc_loss(*whole_batch(network(audio), target, labelled))

    trainer = Trainer(
        regressor,
        Step(loss, torch.optim.Adam(regressor.parameters(), lr=config.lr), runtime),
        lambda: judged_together(judge, validation),
        epochs=config.epochs,
        patience=config.patience,
        seed=config.seed,
        folder=RunFolder(out, identity, save_best) if out is not None else None,
        progress=progress,
    )
    try:
        return trainer.fit(batches, sampler.batches, resume)
    finally:
        for parameter, wanted in zip(gru.parameters(), frozen, strict=True):
            parameter.requires_grad_(wanted)
