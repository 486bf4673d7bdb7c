"""From stored features to the sequences of a batch."""

from __future__ import annotations

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from jmt_fast.features import VideoFeatures
from jmt_fast.features.sequence import gather


def video(clips: torch.Tensor) -> VideoFeatures:
    return VideoFeatures("a", 8, np.arange(12) * 8 / 30, clips, 6, np.arange(100) / 30, np.ones(100, bool))


def test_padding_is_zero_and_rows_are_those_asked_for() -> None:
    clips = torch.randn(12, 10).bfloat16()
    audio, visual, present = gather(video(clips), np.array([[0, 4, 8], [3, 7, -1]]))
    assert present.tolist() == [[True] * 3, [True, True, False]]
    assert audio.dtype == visual.dtype == torch.float32 and audio.shape == (2, 3, 4) and visual.shape == (2, 3, 6)
    assert torch.equal(torch.cat((visual, audio), -1)[0], clips[[0, 4, 8]].float())
    assert not audio[1, 2].any() and not visual[1, 2].any()


def test_features_on_a_gpu_stay_there() -> None:
    """Where there is none, tensors without contents still refuse to be mixed with those of another device."""
    with FakeTensorMode():
        clips = torch.empty(12, 10, device="cuda")
        assert {tensor.device.type for tensor in gather(video(clips), np.array([[0, 4, -1]]))} == {"cuda"}
