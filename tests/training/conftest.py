"""Small features that carry valence and arousal, small models, and the runtime of the tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from jmt_fast.config import AudioConfig, JMTConfig
from jmt_fast.data import clip_times
from jmt_fast.features import VideoFeatures
from jmt_fast.models import JMT, AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training import LabelledVideo

DIM, VISUAL = 32, 24


@pytest.fixture
def runtime() -> Runtime:
    return Runtime.choose("cpu", "fp32", compile=False)


@pytest.fixture
def make_video() -> Callable[..., LabelledVideo]:
    """make_video(name, frames, stride, noise): arousal is in the audio features, valence in the visual ones."""
    mixing = np.random.default_rng(77)
    to_visual, to_audio = mixing.normal(size=(2, VISUAL)), mixing.normal(size=(2, DIM))

    def make(
        name: str = "a", frames: int = 900, stride: int = 8, noise: float = 0.3, unlabelled: slice = slice(0)
    ) -> LabelledVideo:
        random = np.random.default_rng(list(name.encode()))
        timestamps = 0.5 + np.arange(frames) / 30
        waves = random.uniform(0.05, 0.4, (2, 2, 3)), random.uniform(0, 6, (2, 2, 3))
        angle = timestamps[:, None, None] * waves[0][0] * 2 * np.pi + waves[1][0]
        labels = (0.4 * np.sin(angle).sum(2) / np.sqrt(3)).astype(np.float32)
        times = clip_times(timestamps, stride)
        truth = np.stack([np.interp(times, timestamps, labels[:, d]) for d in range(2)], 1)
        hidden = truth * 2
        visual = hidden * [1, 0.2] @ to_visual + noise * random.normal(size=(len(times), VISUAL))
        audio = hidden * [0.2, 1] @ to_audio + noise * random.normal(size=(len(times), DIM))
        labels[unlabelled] = -5
        clips = torch.from_numpy(np.concatenate((visual, audio), 1).astype(np.float32))
        features = VideoFeatures(name, stride, times, clips, VISUAL, timestamps, np.ones(frames, bool))
        return LabelledVideo(features, labels)

    return make


@pytest.fixture
def train(make_video: Callable[..., LabelledVideo]) -> list[LabelledVideo]:
    return [make_video(f"train{n}", 700 + 131 * n, unlabelled=slice(100 * n, 150 * n)) for n in range(5)]


@pytest.fixture
def validation(make_video: Callable[..., LabelledVideo]) -> list[LabelledVideo]:
    return [make_video(f"validation{n}", 600 + 77 * n) for n in range(2)]


@pytest.fixture
def make_model() -> Callable[..., JMT]:
    def make(seed: int = 0, **fields: object) -> JMT:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return JMT(JMTConfig(**{"dim": DIM, "ff_dim": DIM, "visual_dim": VISUAL, **fields}))  # type: ignore[arg-type]

    return make


@pytest.fixture
def audio_backbone() -> AudioBackbone:
    with torch.random.fork_rng([]):
        torch.manual_seed(9)
        return AudioBackbone(AudioConfig(blocks=(1, 1, 1, 1), features=DIM, gru=DIM)).eval()
