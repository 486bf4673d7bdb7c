"""Hundreds of videos through one process: nothing of a video stays behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jmt_fast.config import FeatureConfig
from jmt_fast.data import OpenRecording, Recording
from jmt_fast.errors import MediaError
from jmt_fast.features import Extractor
from jmt_fast.models import load_backbones
from jmt_fast.runtime import Runtime

VIDEOS, PART = 600, 100


def resident() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
def test_memory_stays_flat_over_600_videos(
    film: Callable[..., Path], kit: SimpleNamespace, small_features: FeatureConfig, tmp_path: Path
) -> None:
    """Sound ones, silent ones, cut ones and one that is no video; the first 100 warm up."""
    sound = kit.Sound(kit.clicks([0.5, 1.0], 1.5, 48_000), 48_000)
    whole = [
        film(size=(320, 180), times=kit.steps(48), sound=sound),
        film(size=(320, 180), times=kit.steps(48), codec="libx265", suffix="mkv"),
        film(size=(160, 96), times=kit.steps(48), codec="libvpx-vp9", suffix="webm"),
    ]
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[1].read_bytes()[:-2000])
    text = tmp_path / "text.mp4"
    text.write_text("valence,arousal\n")
    videos = [*whole, cut, text]
    extractor = Extractor(
        small_features, load_backbones(small_features, "random", 0), Runtime.choose("cpu", "fp32", compile=False)
    )
    used, clips = [], 0
    for number in range(VIDEOS):
        try:
            opened = OpenRecording(Recording(str(number), videos[number % len(videos)]))
            clips += len(extractor.extract(opened, 8).times)
        except MediaError:
            assert videos[number % len(videos)] == text
        used.append(resident())
    assert clips > VIDEOS * 4
    after_warm_up, last = np.mean(used[2 * PART : 3 * PART]), np.mean(used[-PART:])
    assert last < 1.02 * after_warm_up, f"{after_warm_up:.0f} MB, then {last:.0f} MB"
