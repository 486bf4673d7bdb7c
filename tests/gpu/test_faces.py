"""The face detector on a GPU reads the same maps as on a CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from jmt_fast.faces.centerface import CenterFace, CenterFaceNet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: compares CPU and GPU")


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-3), (torch.bfloat16, 5e-2)])
def test_maps_are_those_of_a_cpu(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    net = CenterFaceNet().eval()
    seen: list[list[torch.Tensor]] = []
    for device, precision in (("cpu", torch.float32), ("cuda", dtype)):
        finder = CenterFace(copy.deepcopy(net), device, precision, threshold=2.0)
        finder.net.register_forward_hook(lambda module, inputs, maps: seen.append([part.cpu() for part in maps]))
        pictures = np.random.default_rng(0).integers(0, 256, (1, 720, 1280, 3), np.uint8)
        assert [len(faces) for faces in finder(pictures)] == [0]
    for expected, found in zip(*seen, strict=True):
        assert (found - expected).abs().max() < bound * expected.abs().max()
