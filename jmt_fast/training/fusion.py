"""Training of the fusion on cached features, backbones and GRU frozen."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jmt_fast.config import FusionTraining
from jmt_fast.errors import DataError
from jmt_fast.models import JMT, AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training.batches import Batch, LabelledVideo, ResidentClips, SequenceSampler, content
from jmt_fast.training.checkpoints import RunFolder, weights_digest
from jmt_fast.training.distributed import rank, ranks, replicated, whole_batch
from jmt_fast.training.evaluation import Evaluation, evaluate, judged_together
from jmt_fast.training.loop import FitResult, Progress, Trainer, Watch
from jmt_fast.training.loss import ccc_loss
from jmt_fast.training.step import fast_step, sgd


def fit_fusion(
    model: JMT,
    audio_backbone: AudioBackbone,
    train: Sequence[LabelledVideo],
    validation: Sequence[LabelledVideo],
    config: FusionTraining,
    runtime: Runtime,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> FitResult:
    """SGD on the CCC loss over the labelled clips of each batch of sequences; at the end `model` has the best weights.

    An epoch draws one random phase of each video. After it every clip of the validation split (all phases) is predicted
    and compared per frame, as `evaluate` does it; the epoch with the highest mean CCC is selected.

    With `out`, each epoch leaves `best/` (`JMT.from_pretrained` reads it), `last.pt` (for `resume`) and `metrics.jsonl`
    there. A resumed run ends with the weights of one that was never stopped: on a CPU to the bit.

    `watch(entry)` gets each line of the metrics when the epoch is done; what it raises ends the run.

    In several processes (`distributed.processes`) each reads its rows of every batch, of `config.batch` rows together,
    and its videos of the validation split; only the first one writes.

    Raises:
        DataError: no labelled clip, or features at a stride that does not serve.
        CheckpointError: `resume` with another configuration, other data, or a damaged state.
        JMTError: a loss that is not finite, or a full disk; checkpoints of the epochs before stay.
    """
    if not validation:
        raise DataError("the validation split is empty: models are selected on it")
    device = runtime.device
    model.to(device)
    audio_backbone.to(device).eval()
    sampler = SequenceSampler(
        train, length=model.config.length, batch=config.batch, seed=config.seed, stride=config.stride,
        label=config.label, label_lag=config.label_lag, part=(rank(), ranks()),
    )  # fmt: skip
    network = replicated(model)

    def loss(audio: Tensor, visual: Tensor, present: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        return ccc_loss(*whole_batch(network(audio, visual, present).float(), target, labelled))

    clips = None
    if device.type == "cuda":
        gc.collect()  # a training before this one, a search's trial, may still hold its clips and graphs in a cycle
        torch.cuda.empty_cache()
        if 2 * ResidentClips.nbytes(sampler) < torch.cuda.mem_get_info(device)[0]:
            clips = ResidentClips(sampler, audio_backbone.sequence, device)

    def judge(videos: Sequence[LabelledVideo]) -> Evaluation:
        return evaluate(model, audio_backbone, videos, runtime=runtime, label_lag=config.label_lag)

    optimizer = sgd(model.parameters(), config.lr, config.momentum, config.weight_decay, config.nesterov)
    identity = (
        {}
        if out is None
        else {
            "training": config.model_dump(mode="json"),
            "model": model.config.model_dump(mode="json"),
            "parameters": len(list(model.parameters())),  # the optimizer's state is stored for each
            "precision": runtime.precision,
            "train": content(train),
            "validation": content(validation),
            "gru": weights_digest(audio_backbone.gru),
        }
    )
    trainer = Trainer(
        model,
        fast_step(
            loss if clips is None else lambda rows: loss(*clips.batch(rows)),
            optimizer,
            runtime,
            clip_norm=config.clip_norm,
            steps=config.epochs * sampler.batches(1),
        ),
        lambda: judged_together(judge, validation),
        epochs=config.epochs,
        patience=config.patience,
        seed=config.seed,
        folder=RunFolder(out, identity, model.save_pretrained) if out is not None else None,
        progress=progress,
        watch=watch,
        rate=None if config.schedule == "constant" else lambda history: rate(config, history),
    )

    def batches(epoch: int) -> Iterator[tuple[str, Batch]]:
        for videos, block in sampler.blocks(epoch):
            with torch.no_grad():
                heard = block.to(device)
                heard = heard._replace(audio=audio_backbone.sequence(heard.audio))
            yield from sampler.cut(videos, heard)

    return trainer.fit(clips.epoch if clips else batches, sampler.batches, resume)


def rate(config: FusionTraining, history: Sequence[dict[str, Any]]) -> float:
    """Factor of the learning rate in the epoch that follows `history`; it depends on nothing else, so runs resume."""
    match config.schedule:
        case "step":
            return 0.1 ** (3 * len(history) // config.epochs)
        case "cosine":
            return (1 + math.cos(math.pi * len(history) / config.epochs)) / 2
        case "plateau":
            drops = without_gain = 0
            for entry in history:
                without_gain = 0 if entry["improved"] else without_gain + 1
                if without_gain == math.ceil(config.patience / 2):
                    drops, without_gain = drops + 1, 0
            return 0.1**drops
        case _:
            return 1.0
