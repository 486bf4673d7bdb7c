"""The fast copies of the backbones on a GPU: compiled, padded, and as accurate as plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from jmt_fast.config import FeatureConfig
from jmt_fast.models.inference_copy import fast_inference
from jmt_fast.models.weights import load_backbones
from jmt_fast.runtime import Runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: compiles for one")


def inputs(part: str) -> tuple[nn.Module, Tensor]:
    config = FeatureConfig.preset("demo")
    crop = config.frames.crop
    sample = (3, 8, crop, crop) if part == "visual" else (1, 64, config.sound.columns)
    return getattr(load_backbones(config, "random"), part), torch.randn(11, *sample)


@pytest.mark.parametrize("part", ["visual", "audio"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compile", [False, True])
@torch.no_grad()
def test_no_less_accurate_than_plain_pytorch(part: str, precision: str, compile: bool) -> None:
    module, batch = inputs(part)
    runtime = Runtime.choose("cuda", precision, compile)
    got = fast_inference(module, batch[:4], runtime)(batch)
    assert got.dtype == torch.float32
    assert got.device.type == "cuda"
    exact = copy.deepcopy(module).double()(batch.double())
    plain = copy.deepcopy(module).to("cuda", runtime.dtype)(batch.to("cuda", runtime.dtype))
    # folded batch norms and TF32 sums differ from plain FP32 by more than its own error, never by bf16's
    floor = 2e-3 if precision == "fp32" else 0.0
    bound = max(2 * float((plain.cpu().double() - exact).norm() / exact.norm()), floor)
    assert float((got.cpu().double() - exact).norm() / exact.norm()) <= bound


def test_short_batches_compile_nothing_new() -> None:
    module, batch = inputs("visual")
    fast = fast_inference(module, batch[:4], Runtime.choose("cuda", "bf16", True))
    whole = fast(batch[:4])
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in (1, 2, 3):
            torch.testing.assert_close(fast(batch[:rows]), whole[:rows], rtol=2e-2, atol=2e-2)
