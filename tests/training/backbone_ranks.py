"""What `torchrun` starts for test_backbone_ranks.py: `DATA OUT [KILLED_EPOCH]`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from jmt_fast.config import (
    AudioConfig,
    AudioTraining,
    FeatureConfig,
    FrameConfig,
    JMTConfig,
    UnfrozenTraining,
    VisualConfig,
    VisualTraining,
)
from jmt_fast.data import load
from jmt_fast.models import JMT, AudioBackbone, Backbones, VisualBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training import LabelledVideo, ccc_loss, distributed, fit_audio_gru, fit_unfrozen, fit_visual
from jmt_fast.training.audio import AudioRegressor
from jmt_fast.training.normalisation import normalised_together
from jmt_fast.training.step import Step, sgd
from jmt_fast.training.visual import VisualRegressor

FEATURES = FeatureConfig(
    frames=FrameConfig(resize=20, crop=16),
    visual=VisualConfig(blocks=(1, 1), widths=(4, 8), features=8),
    audio=AudioConfig(blocks=(1, 1, 1, 1), features=32, gru=8),
)
FRAMES = FEATURES.frames
VISUAL = VisualTraining(lr=0.02, batch=6, epochs=2, dropout=0.0, stride=16)
AUDIO = AudioTraining(lr=1e-3, batch=8, epochs=2)
UNFROZEN = UnfrozenTraining(lr=0.02, visual_lr=0.02, audio_lr=0.02, batch=3, epochs=2, stride=8)
RUNTIME = Runtime.choose("cpu", "fp32", compile=False)
State = dict[str, Tensor]


def visual() -> VisualBackbone:
    torch.manual_seed(1)
    return VisualBackbone(FEATURES.visual, FRAMES.crop)


def audio() -> AudioBackbone:
    torch.manual_seed(2)
    return AudioBackbone(FEATURES.audio).eval()


def gradients() -> dict[str, State]:
    """Loss, gradients and state after each of two steps in float64, of 6 rows shared by the ranks."""
    draw = torch.Generator().manual_seed(3)
    pictures = torch.randint(0, 256, (2, 6, 8, 16, 16, 3), generator=draw, dtype=torch.uint8)
    sounds = torch.randn(2, 6, 5, 32, generator=draw, dtype=torch.float64)
    rows = 6 // distributed.ranks()
    own = slice(distributed.rank() * rows, (distributed.rank() + 1) * rows)
    found = {}
    for name, network, inputs in (
        ("visual", VisualRegressor(visual(), FRAMES, 0.0), pictures),
        ("audio", AudioRegressor(audio().gru), sounds),
    ):
        targets = torch.rand(2, *inputs.shape[1 : 3 if name == "audio" else 2], 2, generator=draw, dtype=torch.float64)
        with normalised_together(network):
            for number in range(2):
                found[f"{name} {number}"] = _step(network.double().train(), inputs[number][own], targets[number][own])
    return found


def _step(network: nn.Module, inputs: Tensor, target: Tensor) -> State:
    together = distributed.replicated(network)

    def loss(inputs: Tensor, target: Tensor) -> Tensor:
        every = torch.ones(target.shape[:-1], dtype=torch.bool)
        return ccc_loss(*distributed.whole_batch(together(inputs), target, every))

    value = Step(loss, sgd(network.parameters(), lr=0.1), RUNTIME)(inputs, target)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = {f"gradient of {name}": each.grad.clone() for name, each in network.named_parameters()}
    return {"loss": value, **state, **gradients}


def fit(data: Path, videos: list[LabelledVideo], out: Path, killed: int = 0) -> dict[str, State]:
    """Train both, then both with a fusion; the last rank dies in epoch `killed` unless it was started again already."""
    again = distributed.restarted()

    def progress(done: int, total: int, note: str) -> None:
        last = distributed.rank() == distributed.ranks() - 1
        if killed and note == f"epoch {killed}" and done % 1000 > 400 and last and not again:
            (out / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    splits = [[each for each in load(data) if each.split == name] for name in ("train", "validation")]
    seeing, hearing = visual(), audio()
    options = {"resume": again, "progress": progress}
    fit_visual(seeing, FRAMES, *splits, VISUAL, RUNTIME, out=out / "visual", **options)
    fit_audio_gru(hearing, videos[:3], videos[3:], AUDIO, RUNTIME, length=4, out=out / "audio", **options)
    fusion, both = JMT(JMTConfig(dim=8, ff_dim=8, visual_dim=8, length=2)), Backbones(visual(), audio())
    fit_unfrozen(fusion, both, FEATURES, *splits, UNFROZEN, RUNTIME, out=out / "unfrozen", **options)
    whole = nn.ModuleList([fusion, both.visual, both.audio])
    return {"visual": seeing.state_dict(), "audio": hearing.state_dict(), "unfrozen": whole.state_dict()}


def main(data: str, out: str, killed: str = "0") -> None:
    with distributed.processes(RUNTIME):
        videos = torch.load(Path(data) / "videos.pt", weights_only=False)
        found = gradients() | fit(Path(data), videos, Path(out), int(killed))
        torch.save(found, Path(out) / f"rank{distributed.rank()}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
