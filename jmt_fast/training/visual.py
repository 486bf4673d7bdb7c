"""Training of the visual backbone on clips of video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jmt_fast.config import DetectorName, FrameConfig, Region, VisualTraining
from jmt_fast.data import Recording
from jmt_fast.data.graph import ClipGraph
from jmt_fast.models import VisualBackbone
from jmt_fast.models.cudnn import tuned
from jmt_fast.runtime import Runtime
from jmt_fast.training.checkpoints import RunFolder, weights_digest
from jmt_fast.training.clip_cache import open_clips
from jmt_fast.training.clip_loader import ClipLoader, check_parts
from jmt_fast.training.clips import ClipReader, Clips
from jmt_fast.training.distributed import of_all, own, rank, ranks, replicated, shared_folder, whole_batch
from jmt_fast.training.loop import FitResult, Progress, Trainer
from jmt_fast.training.loss import StreamingCCC, ccc_loss
from jmt_fast.training.normalisation import normalised_together
from jmt_fast.training.step import Step, precision, sgd

_WARM_UP = 0.25  # share of the updates in which `one_cycle` rises to the full rate


class Normalised(nn.Module):
    """uint8 pictures (B, 8, crop, crop, 3) -> the visual backbone's input (B, 3, 8, crop, crop), channels last."""

    mean: Tensor
    scale: Tensor

    def __init__(self, frames: FrameConfig) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(frames.mean), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(frames.std)), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        return ((pictures - self.mean) * self.scale).permute(0, 4, 1, 2, 3)  # already lies channels last in memory


class VisualRegressor(nn.Module):
    """Backbone, dropout and a linear layer: uint8 pictures (B, 8, crop, crop, 3) -> valence and arousal (B, 2)."""

    def __init__(self, backbone: VisualBackbone, frames: FrameConfig, dropout: float) -> None:
        super().__init__()
        self.normalised = Normalised(frames)
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.config.features, 2)
        with torch.no_grad():  # CCC's gradient fades where predictions vary far more than labels: start well below
            self.head.weight.mul_(0.1)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.dropout(self.backbone(self.normalised(pictures))))


def trainable(runtime: Runtime) -> Runtime:
    """`runtime`, or what convolutions can be trained on: FP32, not compiled, on a CPU."""
    if runtime.device.type != "cpu":
        return runtime
    # BF16 gradients of 3-D convolutions on a CPU come out differently from one call to the next, now and then NaN (seen
    # with PyTorch 2.15 at 5 to 36 channels).
    return replace(runtime, precision="fp32", compile=False)


def fit_visual(
    backbone: VisualBackbone,
    frames: FrameConfig,
    train: Sequence[Recording],
    validation: Sequence[Recording],
    config: VisualTraining,
    runtime: Runtime,
    *,
    region: Region = "center",
    find: DetectorName = "centerface",
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """SGD (or Adam) on the CCC loss of batches of clips; the linear head is dropped, `backbone` gets the best weights.

    `region`: what is seen of a raw video's frame; a face, which `find` looks for, is cut out upright before it is
    resized. The frames that the labelled clips need are decoded once into a temporary file (in `out` where given),
    or, where the disk has no room for them, anew each time. Clips are shuffled over all videos; random crop and
    flip are the same for all frames of a clip; an incomplete last batch is left out. Validation takes the centre
    crop and compares clips, not frames: mean CCC over all labelled clips selects the epoch. On a CPU always in
    FP32, not compiled. Of several processes each decodes, trains on and validates its part, and the step is, but
    for dropout, that of one process with the whole batch. With `out`: `best/visual.safetensors`, `last.pt`,
    `metrics.jsonl`.

    Raises:
        DataError: no labelled clip in a split, a batch that the processes cannot share evenly.
        CheckpointError, JMTError: as for `fit_fusion`.
    """
    check_parts(config.batch, ranks())  # before anything is decoded
    runtime = trainable(runtime)
    seen = {"region": region, "detector": find}
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(config.seed)
        network = VisualRegressor(backbone, frames, config.dropout)
    network.to(runtime.device).to(memory_format=torch.channels_last_3d)
    with shared_folder(out) as temporary, normalised_together(network), tuned():
        graph = ClipGraph(frames, device=runtime.device)

        def opened(name: str, recordings: Sequence[Recording]) -> Clips:
            labels = config.stride, config.label, config.label_lag
            reader = ClipReader(recordings, graph, *labels, progress, region=region, find=find, runtime=runtime)
            return open_clips(temporary / f"{name}{rank()}", reader, progress)

        clips, held_out = opened("train", train), opened("validation", validation)
        loader = ClipLoader(clips, config.batch, config.seed, (rank(), ranks()))
        trainer = Trainer(
            network,
            _step(network, config, len(loader), runtime),
            lambda: _validate(network, held_out, config.batch, runtime),
            epochs=config.epochs,
            patience=config.patience,
            seed=config.seed,
            folder=_folder(out, backbone, config, clips, seen, runtime) if out is not None else None,
            progress=progress,
        )
        return trainer.fit(loader.epoch, lambda epoch: len(loader), resume)


def _step(network: VisualRegressor, config: VisualTraining, batches: int, runtime: Runtime) -> Step:
    regressor = replicated(network)

    def loss(pictures: Tensor, target: Tensor) -> Tensor:
        every = torch.ones_like(target[..., 0], dtype=torch.bool)  # a clip here has a label
        prediction, target, _ = whole_batch(regressor(pictures).float(), target, every)
        return ccc_loss(prediction, target)

    total = batches * config.epochs

    def one_cycle(update: int) -> float:
        """Linear to 1, then half a cosine to 0 (Smith and Topin 2018, with the cosine that is usual today)."""
        rise = max(1, round(_WARM_UP * total))
        if update < rise:
            return (update + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (update - rise) / max(1, total - rise)))

    optimizer: torch.optim.Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    else:
        optimizer = sgd(network.parameters(), config.lr, config.momentum, config.weight_decay)
    return Step(loss, optimizer, runtime, one_cycle if config.schedule == "one_cycle" else None, config.clip_norm)


@torch.no_grad()
def _validate(network: VisualRegressor, clips: Clips, batch: int, runtime: Runtime) -> np.ndarray:
    part, result = StreamingCCC(), StreamingCCC()
    for start in own(range(0, len(clips), batch)):
        chosen = np.arange(start, min(start + batch, len(clips)))
        with precision(runtime):
            prediction = network(clips.inputs(chosen).to(runtime.device))
        part.update(prediction.float().cpu().numpy(), clips.targets[chosen])
    for each in of_all(part):
        result.merge(each)
    return result.value()


def _folder(
    out: str | Path,
    backbone: VisualBackbone,
    config: VisualTraining,
    clips: Clips,
    seen: Mapping[str, str],
    runtime: Runtime,
) -> RunFolder:
    def save_best(folder: Path) -> None:
        state = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
        save_file(state, folder / "visual.safetensors")

    identity = {
        "training": config.model_dump(mode="json"),
        "precision": runtime.precision,
        "clips": len(clips),
        "labels": float(np.float64(clips.targets).sum()),
        **seen,
        "start": weights_digest(backbone),
    }
    return RunFolder(out, identity, save_best)
