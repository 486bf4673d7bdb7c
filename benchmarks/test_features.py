"""How many clips a second through the backbones? Our inference copies against torchvision's eager FP32 networks.

Each peer runs at its own best batch, found here; rows give milliseconds a clip. Clips of one video share frames; in the
rows for them ours takes a block of them as the extractor does, for the features that separate clips would have. The
work is the direct convolutions' (2 FLOP a multiply-add) whatever an implementation really does, so gflop_per_s can
exceed the machine's measured matrix product, and `floor_ms` is what that product would need for the direct work in the
peer's precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18
from torchvision.models.video import r2plus1d_18

from jmt_fast.config import CLIP_FRAMES, FeatureConfig
from jmt_fast.features.extract import CLIPS_PER_BLOCK
from jmt_fast.models import Clips
from jmt_fast.models.backbones import Backbones
from jmt_fast.models.inference_copy import fast_inference
from jmt_fast.models.weights import load_backbones
from jmt_fast.runtime import Runtime

BATCHES = {
    "cpu": {"visual": sorted({1, torch.get_num_threads()}), "audio": (1, 4, 16)},
    "cuda": {"visual": (8, 32), "audio": (64, 256)},
}
OURS, PEER = "jmt-fast", "torchvision eager fp32"
SAMPLES = {"visual": (3, 8, 224, 224), "audio": (1, 64, 107)}


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


def torchvisions(part: str, batch: Tensor, runtime: Runtime) -> Callable[[], object]:
    network = (r2plus1d_18() if part == "visual" else ThreeChannels()).eval().to(runtime.device)

    def call() -> Tensor:
        with torch.inference_mode():
            return network(batch)

    return call


@pytest.mark.parametrize("part", SAMPLES)
def test_clips_per_second(part: str, backbones: Backbones, runtime: Runtime, compare: Any) -> None:
    """Clips that have nothing to do with each other."""
    found: dict[str, tuple[Callable[[], object], int]] = {}
    for count in BATCHES[runtime.device.type][part]:
        batch = torch.randn(count, *SAMPLES[part], device=runtime.device)
        found[f"{OURS} {runtime.precision}, batch {count}"] = ours(getattr(backbones, part), batch, runtime), count
        found[f"{PEER}, batch {count}"] = torchvisions(part, batch, runtime), count
    compare(f"{part} {'x'.join(map(str, SAMPLES[part]))}", found, getattr(backbones, part), SAMPLES[part])


@pytest.mark.parametrize("stride", [4, 8])
def test_clips_of_a_video(stride: int, backbones: Backbones, runtime: Runtime, compare: Any) -> None:
    """Clips that share frames, at the stride of the feature store and at that of `predict`."""
    block = consecutive(stride, runtime.device)
    found = {f"{OURS} {runtime.precision}, {len(block)} clips": (ours(backbones.visual, block, runtime), len(block))}
    for count in BATCHES[runtime.device.type]["visual"]:
        batch = block.split(count)[0].stacked()
        found[f"{PEER}, batch {count}"] = torchvisions("visual", batch, runtime), count
    compare(f"visual, clips of a video, stride {stride}", found, backbones.visual, SAMPLES["visual"])


@pytest.fixture
def compare(race: Any, question: Any, ceiling: Any, runtime: Runtime) -> Callable[..., None]:
    """compare(shape, peers, module, sample): a row each, against torchvision at its best batch."""

    def measure(
        shape: str, found: dict[str, tuple[Callable[[], object], int]], module: nn.Module, sample: tuple[int, ...]
    ) -> None:
        work = gflop(module, torch.randn(1, *sample))
        timings = race({name: call for name, (call, _) in found.items()}, warmup=1)
        per_clip = {name: timings[name].median / count for name, (_, count) in found.items()}
        reference = min(time for name, time in per_clip.items() if name.startswith(PEER))
        for name, time in per_clip.items():
            precision = "fp32" if name.startswith(PEER) else runtime.precision
            question.row(
                shape,
                name,
                timings[name],
                ms_per_clip=time,
                clips_per_s=1e3 / time,
                ratio=reference / time,
                gflop=work,
                gflop_per_s=1e3 * work / time,
                floor_ms=ceiling.floor(0, work * 1e9, precision),
            )
        best = min(time for name, time in per_clip.items() if name.startswith(OURS))
        assert best < reference, f"{shape}: {best:.1f} ms a clip, torchvision {reference:.1f}"

    return measure
