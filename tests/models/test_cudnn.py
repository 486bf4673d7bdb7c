"""Padded channels and two-dimensional views: the same numbers from the shapes that a GPU likes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn

from jmt_fast.config import VisualConfig
from jmt_fast.models import VisualBackbone, cudnn
from jmt_fast.models.inference_copy import _folded

CONFIGS = {
    "full width": VisualConfig(),
    "narrow": VisualConfig(blocks=(1, 2), widths=(12, 20), features=24),
    "flatten": VisualConfig(blocks=(1,), widths=(16,), pooling="flatten", features=8),
}


def convolutions(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)]


@pytest.mark.parametrize("case", CONFIGS)
@torch.no_grad()
def test_the_same_features(case: str) -> None:
    folded = _folded(VisualBackbone(CONFIGS[case], 32)).double()
    clips = torch.randn(2, 3, 8, 32, 32, dtype=torch.float64)
    aligned = cudnn.align(copy.deepcopy(folded))
    torch.testing.assert_close(aligned(clips), folded(clips), rtol=1e-10, atol=1e-10)


def test_every_width_between_two_convolutions_is_a_multiple_and_only_projections_stay_three_dimensional() -> None:
    aligned = cudnn.align(_folded(VisualBackbone(CONFIGS["full width"], 32)))
    layers = convolutions(aligned)
    assert {layer.out_channels % 8 for layer in layers} == {0}
    assert {layer.in_channels for layer in layers if layer.in_channels % 8} == {3}
    assert {layer.kernel_size for layer in layers if isinstance(layer, nn.Conv3d)} == {(1, 1, 1)}
    assert [layer.out_channels for layer in layers][:1] == [48]  # 45 in the stem


def test_the_views_copy_nothing() -> None:
    maps = torch.randn(2, 16, 4, 6, 5).contiguous(memory_format=torch.channels_last_3d)
    for frames in (maps.transpose(1, 2).flatten(0, 1), maps.flatten(3)):
        assert frames.data_ptr() == maps.data_ptr()
        assert frames.is_contiguous(memory_format=torch.channels_last)
    for layer in (
        cudnn.FrameConvolution(nn.Conv3d(16, 8, (1, 3, 3))),
        cudnn.TimeConvolution(nn.Conv3d(16, 8, (3, 1, 1))),
    ):
        assert layer(maps).is_contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def test_maps_that_others_read_too_are_not_padded() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (
                nn.Conv3d(3, 5, (1, 3, 3), padding=(0, 1, 1)),
                nn.Conv3d(5, 5, (3, 1, 1), padding=(1, 0, 0)),
            )

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            maps = self.first(clips)
            return maps + self.second(maps)

    module, clips = Residual(), torch.randn(2, 3, 4, 6, 6)
    aligned = cudnn.align(fx.symbolic_trace(copy.deepcopy(module)))
    assert {layer.out_channels for layer in convolutions(aligned)} == {5}
    torch.testing.assert_close(aligned(clips), module(clips))


def test_tuning_ends_with_its_block() -> None:
    assert not torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError), cudnn.tuned():
        assert torch.backends.cudnn.benchmark
        raise RuntimeError
    assert not torch.backends.cudnn.benchmark
