"""The trial decode on a GPU: where the driver offers NVDEC, it must come out right, else NVDEC would never be used."""

from __future__ import annotations

import pytest
import torch

from jmt_fast.media.dali import trial
from jmt_fast.media.route import CODECS, ENCODERS, Nvdec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: decodes on it")


@pytest.mark.parametrize("codec", CODECS)
def test_it_comes_out_right_where_there_is_nvdec(codec: str) -> None:
    decoder = Nvdec()
    if reason := decoder.refuses(codec, 640, 360):
        pytest.skip(reason)
    assert trial(0, ENCODERS[codec]) is None
