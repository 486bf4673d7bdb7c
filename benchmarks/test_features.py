"""How many clips a second through the backbones? Our inference copies against torchvision's eager FP32 networks.

Each peer runs at its own best batch, found here; rows give milliseconds a clip. The work is the direct convolutions'
(2 FLOP a multiply-add) whatever an implementation really does, so gflop_per_s can exceed the machine's measured matrix
product, and `floor_ms` is what that product would need for the direct work in the peer's precision.
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

from jmt_fast.config import FeatureConfig
from jmt_fast.models.backbones import Backbones
from jmt_fast.models.inference_copy import fast_inference
from jmt_fast.models.weights import load_backbones
from jmt_fast.runtime import Runtime

BATCHES = {
    "cpu": {"visual": sorted({1, torch.get_num_threads()}), "audio": (1, 4, 16)},
    "cuda": {"visual": (8, 32), "audio": (64, 256)},
}
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


def peers(part: str, module: nn.Module, runtime: Runtime) -> dict[str, tuple[Callable[[], object], int, str]]:
    """name -> (call, clips a call, precision)."""
    eager = (r2plus1d_18() if part == "visual" else ThreeChannels()).eval().to(runtime.device)

    def plain(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            return eager(batch)

    found: dict[str, tuple[Callable[[], object], int, str]] = {}
    for clips in BATCHES[runtime.device.type][part]:
        batch = torch.randn(clips, *SAMPLES[part], device=runtime.device)
        fast = fast_inference(module, batch, runtime)
        found[f"jmt-fast {runtime.precision}, batch {clips}"] = (lambda f=fast, b=batch: f(b), clips, runtime.precision)
        found[f"torchvision eager fp32, batch {clips}"] = (lambda b=batch: plain(b), clips, "fp32")
    return found


@pytest.mark.parametrize("part", SAMPLES)
def test_clips_per_second(
    part: str, backbones: Backbones, runtime: Runtime, race: Any, question: Any, ceiling: Any
) -> None:
    module = getattr(backbones, part)
    work = gflop(module, torch.randn(1, *SAMPLES[part]))
    found = peers(part, module, runtime)
    timings = race({name: call for name, (call, _, _) in found.items()}, warmup=1)
    per_clip = {name: timings[name].median / found[name][1] for name in found}
    reference = min(per_clip[name] for name in found if name.startswith("torchvision"))  # at its best batch
    for name, (_, _, precision) in found.items():
        question.row(
            f"{part} {'x'.join(map(str, SAMPLES[part]))}",
            name,
            timings[name],
            ms_per_clip=per_clip[name],
            clips_per_s=1e3 / per_clip[name],
            ratio=reference / per_clip[name],
            gflop=work,
            gflop_per_s=1e3 * work / per_clip[name],
            floor_ms=ceiling.floor(0, work * 1e9, precision),
        )
    ours = min(per_clip[name] for name in found if name.startswith("jmt-fast"))
    assert ours < reference, f"{part}: {ours:.1f} ms a clip, torchvision {reference:.1f}"
