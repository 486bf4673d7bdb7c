"""How many clips a second through the backbones? Our inference copies against torchvision's eager networks.

These are in FP32, as users have them; on a GPU also in bf16 and channels-last, which is then what ratios are against.
Each peer runs at its own best batch, found here; rows give milliseconds a clip. Clips of one video share frames; in the
rows for them ours takes a block of them as the extractor does, for the features that separate clips would have. The
work is the direct convolutions' (2 FLOP a multiply-add) whatever an implementation really does, so gflop_per_s can
exceed the machine's measured matrix product, and `floor_ms` is what that product would need for the direct work in the
peer's precision. The last test is training of R(2+1)D, as `train visual` does it, against plain PyTorch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18
from torchvision.models.video import r2plus1d_18

from jmt_fast.config import CLIP_FRAMES, FeatureConfig, FrameConfig, VisualTraining
from jmt_fast.features.extract import CLIPS_PER_BLOCK
from jmt_fast.models import Clips
from jmt_fast.models.backbones import Backbones
from jmt_fast.models.inference_copy import LAYOUTS, fast_inference
from jmt_fast.models.weights import load_backbones
from jmt_fast.runtime import Runtime
from jmt_fast.training.loss import ccc_loss
from jmt_fast.training.step import Step
from jmt_fast.training.visual import VisualRegressor, trainable
from jmt_fast.training.visual import _step as visual_step

BATCHES = {
    "cpu": {"visual": sorted({1, torch.get_num_threads()}), "audio": (1, 4, 16)},
    "cuda": {"visual": (8, 32), "audio": (64, 256)},
}
OURS, PEER, LOW_PEER = "jmt-fast", "torchvision eager fp32", "torchvision eager bf16, channels-last"
AGAINST = LOW_PEER if torch.cuda.is_available() else PEER
TRAINING = {"cpu": (2, 112), "cuda": (8, 224)}  # batch and crop
EAGER = {"fp32": "eager fp32", "bf16": "eager autocast bf16", "fp16": "eager autocast fp16"}
SAMPLES = {"visual": (3, 8, 224, 224), "audio": (1, 64, 107)}
Peers = dict[str, tuple[Callable[[], object], int]]  # name: call, and its clips


class ThreeChannels(nn.Module):
    """torchvision's ResNet-18 on a spectrogram, as users run it: the one channel shown to all three inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.network = resnet18()

    def forward(self, spectrograms: Tensor) -> Tensor:
        return self.network(spectrograms.expand(-1, 3, -1, -1))


@pytest.fixture(scope="module")
def backbones() -> Backbones:
    return load_backbones(FeatureConfig(), "random")


@pytest.fixture(scope="module")
def runtime(device: torch.device) -> Runtime:
    return Runtime.choose(device.type)


def gflop(network: nn.Module, batch: Tensor) -> float:
    """GFLOP a clip."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(batch[:1])
    return counter.get_total_flops() / 1e9


def consecutive(stride: int, device: torch.device) -> Clips:
    """A block as the extractor takes it: clips `stride` thirtieths of a second apart, of frames that lie 4 apart."""
    rows = stride // 4 * torch.arange(CLIPS_PER_BLOCK)[:, None] + torch.arange(CLIP_FRAMES)
    return Clips(torch.randn(int(rows.max()) + 1, 3, 224, 224, device=device), rows)


def ours(module: nn.Module, batch: Tensor | Clips, runtime: Runtime) -> Callable[[], object]:
    fast = fast_inference(module, torch.empty(batch.shape, device=runtime.device), runtime)
    return lambda: fast(batch)


def torchvisions(part: str, batch: Tensor, runtime: Runtime) -> dict[str, Callable[[], object]]:
    """name -> call."""

    def peer(dtype: torch.dtype, layout: torch.memory_format) -> Callable[[], object]:
        network = (r2plus1d_18() if part == "visual" else ThreeChannels()).eval()
        network.to(runtime.device, dtype).to(memory_format=layout)
        given = batch.to(dtype).contiguous(memory_format=layout)

        def call() -> Tensor:
            with torch.inference_mode():
                return network(given)

        return call

    found = {PEER: peer(torch.float32, torch.contiguous_format)}
    if runtime.device.type == "cuda":
        found[LOW_PEER] = peer(torch.bfloat16, LAYOUTS[batch.dim()])
    return {f"{name}, batch {len(batch)}": call for name, call in found.items()}


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ours does by itself where it only infers, for its peers too."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)


@pytest.mark.usefixtures("tuned")
@pytest.mark.parametrize("part", SAMPLES)
def test_clips_per_second(part: str, backbones: Backbones, runtime: Runtime, compare: Any) -> None:
    """Clips that have nothing to do with each other."""
    found: Peers = {}
    for count in BATCHES[runtime.device.type][part]:
        batch = torch.randn(count, *SAMPLES[part], device=runtime.device)
        found[f"{OURS} {runtime.precision}, batch {count}"] = ours(getattr(backbones, part), batch, runtime), count
        found |= {name: (call, count) for name, call in torchvisions(part, batch, runtime).items()}
    work = gflop(getattr(backbones, part), torch.randn(1, *SAMPLES[part]))
    compare(f"{part} {'x'.join(map(str, SAMPLES[part]))}", found, AGAINST, work)


@pytest.mark.usefixtures("tuned")
@pytest.mark.parametrize("stride", [4, 8])
def test_clips_of_a_video(stride: int, backbones: Backbones, runtime: Runtime, compare: Any) -> None:
    """Clips that share frames, at the stride of the feature store and at that of `predict`."""
    block = consecutive(stride, runtime.device)
    found: Peers = {
        f"{OURS} {runtime.precision}, {len(block)} clips": (ours(backbones.visual, block, runtime), len(block))
    }
    for count in BATCHES[runtime.device.type]["visual"]:
        batch = block.split(count)[0].stacked()
        found |= {name: (call, count) for name, call in torchvisions("visual", batch, runtime).items()}
    work = gflop(backbones.visual, torch.randn(1, *SAMPLES["visual"]))
    compare(f"visual, clips of a video, stride {stride}", found, AGAINST, work)


def test_training_step(runtime: Runtime, compare: Any) -> None:
    """Pictures of uint8 to an update of R(2+1)D: forward, CCC loss, backward and SGD, at the paper's batch on a GPU."""
    count, crop = TRAINING[runtime.device.type]
    frames, config = FrameConfig(resize=crop, crop=crop), VisualTraining(lr=1e-6, batch=count)
    visual = load_backbones(FeatureConfig(frames=frames), "random").visual
    work = 3 * gflop(visual, torch.randn(1, 3, CLIP_FRAMES, crop, crop))
    runtime = trainable(runtime)
    pictures = torch.randint(256, (count, CLIP_FRAMES, crop, crop, 3), dtype=torch.uint8, device=runtime.device)
    target = torch.rand(count, 2, device=runtime.device) * 2 - 1

    def regressor(layout: torch.memory_format) -> VisualRegressor:
        network = VisualRegressor(copy.deepcopy(visual), frames, config.dropout)
        return network.to(runtime.device).to(memory_format=layout).train()

    def plain(layout: torch.memory_format) -> Step:
        network = regressor(layout)

        def loss(pictures: Tensor, target: Tensor) -> Tensor:
            clips = network.normalised(pictures).contiguous(memory_format=layout)
            return ccc_loss(network.head(network.dropout(network.backbone(clips))).float(), target)

        return Step(loss, torch.optim.SGD(network.parameters(), config.lr), replace(runtime, compile=False))

    eager = EAGER[runtime.precision]
    steps = {
        f"{OURS} {runtime.precision}": visual_step(regressor(torch.channels_last_3d), config, 1, runtime),
        eager: plain(torch.contiguous_format),
        f"channels-last, {eager}": plain(torch.channels_last_3d),
    }
    for name, step in steps.items():
        assert step(pictures, target).isfinite(), name
    found: Peers = {f"{name}, batch {count}": (partial(step, pictures, target), count) for name, step in steps.items()}
    compare(f"visual, a training step, {crop}x{crop}", found, eager, work)


@pytest.fixture
def compare(race: Any, chosen: Any, question: Any, ceiling: Any) -> Callable[[str, Peers, str, float], None]:
    """compare(shape, peers, against, GFLOP a clip): a row each, against the best of those whose names begin so."""

    def measure(shape: str, found: Peers, against: str, work: float) -> None:
        found = chosen(found, OURS, against)
        optional = [name for name in found if not name.startswith((OURS, against))]
        timings = race({name: call for name, (call, _) in found.items()}, warmup=1, optional=optional)
        per_clip = {name: timings[name].median / count for name, (_, count) in found.items()}
        reference = np.nanmin([time for name, time in per_clip.items() if name.startswith(against)])
        for name, time in per_clip.items():
            precision = next(each for each in ("fp32", "bf16", "fp16") if each in name)
            question.row(
                shape,
                name,
                timings[name],
                ms_per_clip=time,
                clips_per_s=1e3 / time,
                ratio=float(reference / time),
                gflop=work,
                gflop_per_s=1e3 * work / time,
                floor_ms=ceiling.floor(0, work * 1e9, precision),
            )

    return measure
