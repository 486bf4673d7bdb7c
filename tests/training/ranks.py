"""What `torchrun` starts for test_distributed.py: `gradients|compiled OUT` or `fit OUT [KILLED_EPOCH [SIGNAL]]`."""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jmt_fast.config import AudioConfig, FusionTraining, JMTConfig
from jmt_fast.data import clip_times
from jmt_fast.features import VideoFeatures
from jmt_fast.models import JMT, AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training import LabelledVideo, ccc_loss, fit_fusion
from jmt_fast.training import distributed as ranks
from jmt_fast.training.step import Step, sgd

DIM, BATCH, LENGTH = 16, 4, 5
CONFIG = FusionTraining(lr=5e-3, momentum=0.9, batch=3, epochs=4, stride=8)


def model(**fields: object) -> JMT:
    torch.manual_seed(7)
    return JMT(JMTConfig(dim=DIM, ff_dim=DIM, visual_dim=DIM, length=LENGTH, **fields))


def batches() -> list[tuple[Tensor, ...]]:
    """Labels for both halves, for the first or the second alone, for one clip, for none."""
    draw = torch.Generator().manual_seed(1)
    made = []
    for number in range(5):
        audio, visual = torch.randn(2, BATCH, LENGTH, DIM, generator=draw)
        present = torch.rand(BATCH, LENGTH, generator=draw) < 0.8
        labelled = present & (torch.rand(BATCH, LENGTH, generator=draw) < 0.6)
        if number in (1, 2):
            labelled[(number - 1) * BATCH // 2 :][: BATCH // 2] = False
        if number > 2:
            labelled[:] = False
            labelled[0, 0] = present[0, 0] = number == 3
        made.append((audio, visual, present, torch.tanh(audio[..., :2]), labelled))
    return made


def gradients(runtime: Runtime) -> list[dict[str, Tensor]]:
    """Loss and gradients of each step, and the weights after them, in float64."""
    fusion = model().double()
    network = ranks.replicated(fusion)

    def loss(audio: Tensor, visual: Tensor, present: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        return ccc_loss(*ranks.whole_batch(network(audio, visual, present), target, labelled))

    step, found = Step(loss, sgd(fusion.parameters(), lr=0.1), runtime), []
    rows = BATCH // ranks.ranks()
    own = slice(ranks.rank() * rows, (ranks.rank() + 1) * rows)
    for batch in batches():
        value = step(*(tensor[own].double() if tensor.is_floating_point() else tensor[own] for tensor in batch))
        found.append({"loss": value, **{name: grad.clone() for name, grad in fusion.named_gradients().items()}})
    return [*found, {name: weight.clone() for name, weight in fusion.state_dict().items()}]


def video(name: str, frames: int) -> LabelledVideo:
    random = np.random.default_rng(list(name.encode()))
    timestamps = np.arange(frames) / 30
    labels = np.sin(timestamps[:, None] * random.uniform(0.5, 2, 2) + random.uniform(0, 6, 2)).astype(np.float32)
    times = clip_times(timestamps, 8)
    truth = np.stack([np.interp(times, timestamps, labels[:, d]) for d in range(2)], 1)
    mixed = truth @ np.random.default_rng(5).normal(size=(2, 2 * DIM))
    clips = torch.from_numpy((mixed + 0.3 * random.normal(size=mixed.shape)).astype(np.float32))
    features = VideoFeatures(name, 8, times, clips, DIM, timestamps, np.ones(frames, bool))
    return LabelledVideo(features, labels)


def fit(out: Path, resume: bool, killed: int = 0, by: int = signal.SIGKILL) -> None:
    """Train; the last rank dies in the middle of epoch `killed` unless it was started again already."""
    fusion, again = model(head_dropout=0.2), ranks.restarted()
    torch.manual_seed(9)
    audio = AudioBackbone(AudioConfig(blocks=(1, 1, 1, 1), features=DIM, gru=DIM)).eval()

    def progress(done: int, total: int, note: str) -> None:
        last = ranks.rank() == ranks.ranks() - 1
        if killed and note == f"epoch {killed}" and done % 1000 > 400 and last and not again:
            (out / "died").touch()
            os.kill(os.getpid(), by)

    runtime = Runtime.choose("cpu", "fp32", compile=False)
    train = [video(f"train{n}", 500 + 97 * n) for n in range(4)]
    held_out = [video(f"validation{n}", 300) for n in range(3)]
    resume = resume or again
    fit_fusion(fusion, audio, train, held_out, CONFIG, runtime, out=out, resume=resume, progress=progress)
    torch.save(fusion.state_dict(), out / f"weights{ranks.rank()}.pt")


def main(what: str, out: str, *rest: str) -> None:
    runtime = Runtime.choose("cpu", "fp32", compile=what == "compiled")
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # all but the code
    with ranks.processes(runtime):
        if what in ("gradients", "compiled"):
            torch.save(gradients(runtime), Path(out) / f"rank{ranks.rank()}.pt")
        else:
            fit(Path(out), False, *map(int, rest))


if __name__ == "__main__":
    main(*sys.argv[1:])
