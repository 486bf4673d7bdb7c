"""The trial decode on a GPU: where the driver offers NVDEC, it must come out right, else NVDEC would never be used."""

from __future__ import annotations

import pytest
import torch

from jmt_fast.media.dali import trial
from jmt_fast.media.route import Nvdec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: decodes on it")


def test_it_comes_out_right_where_there_is_nvdec() -> None:
    decoder = Nvdec()
    if reason := decoder.refuses("h264", 640, 360):
        pytest.skip(reason)
    assert trial(0) is None
