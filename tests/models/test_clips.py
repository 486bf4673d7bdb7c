"""Clips that share frames: the features of each are those it has on its own, whatever its neighbours share with it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, fx, nn

from jmt_fast.config import CLIP_FRAMES, FeatureConfig, FrameConfig, VisualConfig
from jmt_fast.models import Clips, VisualBackbone, onednn
from jmt_fast.models.clips import SLOTS, SharingNetwork
from jmt_fast.models.inference_copy import FastCopy, fast_inference
from jmt_fast.runtime import Runtime

CROP = 32
WITH_WINOGRAD = VisualConfig(blocks=(2, 1), widths=(64, 66))
WITHOUT = VisualConfig(blocks=(1, 1), widths=(16, 24))
CHAIN = torch.arange(CLIP_FRAMES)


def every(shift: int, clips: int) -> Tensor:
    """Clips that begin `shift` sampled frames apart."""
    return shift * torch.arange(clips)[:, None] + CHAIN


ROWS = {
    "one clip": every(1, 1),
    "stride 4": every(1, SLOTS + 3),  # far enough for the kept maps to be moved more than once
    "stride 8": every(2, SLOTS),
    "stride 12, nothing kept": every(3, 4),
    "the first frame repeated": (every(2, 9) - 9).clamp(min=0),
    "the last clip off the grid": torch.cat([every(2, 4), CHAIN[None] + 9]),
    "one still": torch.zeros(5, CLIP_FRAMES, dtype=torch.int64),
    "two videos": torch.cat([every(2, 5), every(1, 5) + 20]),
    "backwards": every(1, 6).flip(0),
    "at random": torch.randint(0, 30, (6, CLIP_FRAMES), generator=torch.Generator().manual_seed(0)),
}


@pytest.fixture(scope="module", params=[WITH_WINOGRAD, WITHOUT], ids=["winograd", "plain"])
def network(request: pytest.FixtureRequest) -> fx.GraphModule:
    """Fused, in FP32, from a backbone without batch norms: their place in it is of no concern here."""
    backbone = VisualBackbone(request.param, CROP)
    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, nn.BatchNorm3d):
            backbone.set_submodule(name, nn.Identity())
        elif isinstance(layer, nn.Conv3d):
            layer.bias = nn.Parameter(torch.randn(layer.out_channels) / 10)
    traced = fx.symbolic_trace(backbone.eval().requires_grad_(False))
    for node in list(traced.graph.nodes):
        if isinstance(onednn.module_of(traced, node), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.recompile()
    return onednn.fuse(traced, torch.Size((3, CLIP_FRAMES, CROP, CROP)))


def alone(network: Callable[[Tensor], Tensor], clips: Clips) -> Tensor:
    """Each clip through the whole network by itself."""
    layout = torch.channels_last_3d
    return torch.cat([network(part.stacked().contiguous(memory_format=layout)) for part in clips.split(1)])


def cut(rows: Tensor) -> Clips:
    return Clips(torch.randn(int(rows.max()) + 1, 3, CROP, CROP), rows)


@pytest.mark.parametrize("case", ROWS)
def test_each_clip_has_the_features_that_it_has_alone(network: fx.GraphModule, case: str) -> None:
    clips = cut(ROWS[case])
    torch.testing.assert_close(SharingNetwork(network)(clips), alone(network, clips), rtol=1e-5, atol=1e-5)


def test_nothing_is_left_of_the_batch_before(network: fx.GraphModule) -> None:
    sharing = SharingNetwork(network)
    for _ in range(2):
        clips = cut(every(1, 3))
        torch.testing.assert_close(sharing(clips), alone(network, clips), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shift", "once"), [(1, 19), (2, 30)])
def test_what_clips_share_is_computed_once(network: fx.GraphModule, shift: int, once: int) -> None:
    """Positions through the stem and through the block's two spatial convolutions, of 12 clips."""
    sharing, seen = SharingNetwork(network), {"stem": 0, "first": 0, "second": 0}

    def counted(name: str, layer: nn.Module) -> nn.Module:
        class Counted(type(layer)):  # type: ignore[misc]
            def forward(self, x: Tensor) -> Tensor:
                seen[name] += x.shape[2]
                return super().forward(x)

            def halves(self, rows: list[Tensor], out: list[Tensor]) -> None:
                seen[name] += rows[0].shape[2]
                super().halves(rows, out)

        layer.__class__ = Counted
        return layer

    kinds = {name: type(getattr(sharing, name)) for name in seen}
    try:
        for name in seen:
            counted(name, getattr(sharing, name))
        sharing(cut(every(shift, 12)))
    finally:
        for name, kind in kinds.items():
            getattr(sharing, name).__class__ = kind
    assert seen == {"stem": once, "first": 8 + 11 * (shift + 2), "second": 8 + 11 * (shift + 4)}


def test_threads_do_not_mix_their_clips(network: fx.GraphModule) -> None:
    sharing, clips = SharingNetwork(network), [cut(every(1 + number % 2, 12)) for number in range(6)]
    with ThreadPoolExecutor(3) as pool:
        for part, features in zip(clips, pool.map(sharing, clips), strict=True):
            torch.testing.assert_close(features, alone(network, part), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def backbone() -> VisualBackbone:
    return VisualBackbone(WITHOUT, CROP)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_fast_copy_takes_clips_and_batches_alike(backbone: VisualBackbone, count: int, threads: int) -> None:
    clips, before = cut(every(2, count)), torch.get_num_threads()
    plain = fast_inference(backbone, torch.empty(2, 3, CLIP_FRAMES, CROP, CROP), Runtime.choose("cpu", "fp32"))
    assert plain.sharing is None  # small maps gain nothing
    copies = [plain]
    if isinstance(plain.network, fx.GraphModule) and not plain.fixed:
        sharing = SharingNetwork(plain.network)
        copies.append(FastCopy(plain.network, clips.stacked()[:1], plain.runtime, fixed=False, sharing=sharing))
    try:
        torch.set_num_threads(threads)
        expected = plain(clips.stacked())
        for fast in copies:
            torch.testing.assert_close(fast(clips), expected, rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_the_full_size_shares() -> None:
    config = FeatureConfig()
    full = VisualBackbone(config.visual, config.frames.crop)
    runtime = Runtime.choose("cpu", "fp32")
    if not onednn.supports(runtime.dtype):
        pytest.skip("needs oneDNN")
    fast = fast_inference(full, torch.empty(2, 3, CLIP_FRAMES, 224, 224), runtime)
    assert fast.sharing is not None
    clips = Clips(torch.randn(10, 3, 224, 224), every(2, 2))
    torch.testing.assert_close(fast(clips), fast(clips.stacked()), rtol=1e-4, atol=1e-4)


def test_wrong_shapes_name_the_argument(backbone: VisualBackbone) -> None:
    config = FrameConfig(resize=CROP, crop=CROP)
    fast = fast_inference(backbone, torch.empty(2, 3, CLIP_FRAMES, CROP, CROP), Runtime.choose("cpu", "fp32"))
    for wrong in (
        Clips(torch.randn(9, 3, config.crop, config.crop + 1), every(1, 2)),
        Clips(torch.randn(9, 3, config.crop, config.crop), every(1, 2)[:, :7]),
        Clips(torch.randn(9, 3, config.crop, config.crop), every(1, 2)[:0]),
    ):
        with pytest.raises(ValueError, match="batch"):
            fast(wrong)


def test_parts_and_their_sum() -> None:
    first, second = cut(every(1, 3)), cut(every(2, 4))
    both = Clips.cat([first, second])
    assert both.shape == (7, 3, CLIP_FRAMES, CROP, CROP)
    assert torch.equal(both.stacked(), torch.cat([first.stacked(), second.stacked()]))
    assert [len(part) for part in both.split(3)] == [3, 3, 1]
    assert torch.equal(torch.cat([part.stacked() for part in both.split(3)]), both.stacked())
    assert torch.equal(first.stacked()[1, :, 2], first.frames[3])
