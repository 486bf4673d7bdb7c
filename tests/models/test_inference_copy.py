"""The fast copy against the network it copies: errors measured against FP64, bounds from plain PyTorch's own error."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from jmt_fast.config import AudioConfig, FeatureConfig, FrameConfig, VisualConfig
from jmt_fast.models import onednn
from jmt_fast.models.inference_copy import FastCopy, fast_inference
from jmt_fast.models.weights import load_backbones
from jmt_fast.runtime import DTYPES, Runtime

CASES = {
    # maps of 16, 8, 4 rows; of 18, 9, 5: odd ones are not split; of 23, 12
    "visual, 3 stages": ("visual", VisualConfig(blocks=(1, 2, 1), widths=(64, 66, 72)), 32),
    "visual, odd rows": ("visual", VisualConfig(blocks=(2, 1, 1), widths=(64, 66, 68), features=40), 36),
    "visual, odd crop": ("visual", VisualConfig(blocks=(1, 1), widths=(16, 64), pooling="average"), 45),
    "visual, flatten": ("visual", VisualConfig(blocks=(1, 1), widths=(16, 32), pooling="flatten", features=24), 32),
    "audio": ("audio", VisualConfig(blocks=(1,), widths=(8,)), 32),
}


def cpu(precision: str) -> Runtime:
    if not onednn.supports(DTYPES[precision]):
        pytest.skip(f"needs a processor that convolves in {precision}")
    return Runtime.choose("cpu", precision)


def make(case: str, rows: int) -> tuple[nn.Module, Tensor]:
    """A backbone with batch norms that do something, and a batch for it."""
    part, visual, crop = CASES[case]
    config = FeatureConfig(frames=FrameConfig(resize=crop, crop=crop), visual=visual, audio=AudioConfig(features=128))
    backbones = load_backbones(config, "random")
    module = getattr(backbones, part)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return module, torch.randn(rows, 3, 8, crop, crop) if part == "visual" else torch.randn(rows, 1, 64, 107)


@torch.no_grad()
def truth(module: nn.Module, batch: Tensor) -> Tensor:
    return copy.deepcopy(module).double()(batch.double())


@torch.no_grad()
def plain(module: nn.Module, batch: Tensor, dtype: torch.dtype) -> Tensor:
    return copy.deepcopy(module).to(dtype)(batch.to(dtype))


def error(features: Tensor, exact: Tensor) -> float:
    """Root mean square, relative to the exact features'."""
    return float((features.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_no_less_accurate_than_plain_pytorch(case: str, precision: str) -> None:
    runtime = cpu(precision)
    module, batch = make(case, rows=3)
    fast = fast_inference(module, batch, runtime)(batch)
    exact = truth(module, batch)
    assert fast.dtype == torch.float32
    # FP32: Winograd's sums cost a little; bf16: plain PyTorch rounds after each batch norm and addition as well
    assert error(fast, exact) <= (2 if precision == "bf16" else 6) * error(plain(module, batch, runtime.dtype), exact)


@torch.no_grad()
def test_the_small_networks_take_the_paths_they_are_here_for() -> None:
    def kinds(case: str) -> list[type]:
        module, batch = make(case, rows=1)
        return [type(layer) for layer in fast_inference(module, batch, cpu("fp32")).network.modules()]

    assert kinds("visual, 3 stages").count(onednn.RowWinograd) == 2 + 3 + 1
    assert kinds("visual, odd rows").count(onednn.RowWinograd) == 4
    assert kinds("visual, odd crop").count(onednn.RowWinograd) == 1
    assert kinds("audio").count(onednn.FusedConvolution) == 20
    for case in CASES:
        assert not {nn.BatchNorm2d, nn.BatchNorm3d} & set(kinds(case))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_any_number_of_rows(rows: int, threads: int) -> None:
    module, batch = make("visual, flatten", rows=7)
    fast = fast_inference(module, batch[:3], cpu("fp32"))
    expected, before = truth(module, batch)[:rows], torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = fast(batch[:rows])
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert got.shape == expected.shape
    assert error(got, expected) < 1e-5


def test_any_strides_and_dtype() -> None:
    module, batch = make("visual, 3 stages", rows=2)
    fast = fast_inference(module, batch, cpu("fp32"))
    other = batch.transpose(1, 2).contiguous().transpose(1, 2).double()
    torch.testing.assert_close(fast(other), fast(batch), rtol=1e-4, atol=1e-5)


def test_without_onednn_short_batches_are_padded() -> None:
    module, batch = make("audio", rows=5)
    runtime = Runtime.choose("cpu", "fp32")
    widths: list[int] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            widths.append(len(x))
            return module(x)

    fast = FastCopy(Watched(), batch[:3], runtime, fixed=True)
    assert error(fast(batch), truth(module, batch)) < 1e-5
    assert widths == [3, 3]


def test_the_module_stays_as_it_was_and_the_copy_too() -> None:
    module, batch = make("visual, flatten", rows=2)
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fast = fast_inference(module, batch, cpu("bf16"))
    first = fast(batch)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.equal(fast(batch), first)
    assert not torch.backends.cudnn.benchmark


def test_features_can_be_trained_on() -> None:
    module, batch = make("audio", rows=2)
    features = fast_inference(module, batch, cpu("fp32"))(batch)
    layer = nn.Linear(features.shape[1], 1)
    layer(features).sum().backward()
    torch.testing.assert_close(layer.weight.grad, features.sum(0, keepdim=True))


def test_wrong_shapes_name_the_argument() -> None:
    module, batch = make("audio", rows=2)
    fast = fast_inference(module, batch, cpu("fp32"))
    for wrong in (batch[:, :, :32], batch[0], batch[:0]):
        with pytest.raises(ValueError, match="batch"):
            fast(wrong)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("rows", [2, 4, 14])
@torch.no_grad()
def test_winograd_is_the_convolution(rows: int, relu: bool) -> None:
    convolution = nn.Conv3d(20, 36, (1, 3, 3), padding=(0, 1, 1))
    x = torch.randn(2, 20, 3, rows, 9).contiguous(memory_format=torch.channels_last_3d)
    expected = copy.deepcopy(convolution).double()(x.double())
    expected = expected.relu() if relu else expected
    winograd = onednn.RowWinograd(onednn.FusedConvolution(convolution, relu))
    got = onednn.merge_rows(winograd(onednn.split_rows(x)))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_rows_split_and_merge() -> None:
    x = torch.randn(3, 5, 2, 6, 7).contiguous(memory_format=torch.channels_last_3d)
    split = onednn.split_rows(x)
    assert split.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(split[4], x[1, :, :, 1::2])
    assert torch.equal(onednn.merge_rows(split), x)


@torch.no_grad()
def test_a_map_used_twice_is_not_fused_away() -> None:
    class Twice(nn.Module):
        """The convolution's own output is needed beside its ReLU."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1))
            self.second = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            maps = self.first(x)
            return (self.second(self.relu(maps)) + maps).amax((2, 3, 4))

    module, batch = Twice(), torch.randn(2, 3, 8, 6, 6)
    network = onednn.fuse(fx.symbolic_trace(copy.deepcopy(module)), batch.shape[1:])
    got = network(batch.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(got, module(batch), rtol=1e-5, atol=1e-5)
