"""Clip labels against an oracle that looks at one clip and one frame at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmt_fast.config import STRIDES
from jmt_fast.data import clip_labels, clip_times


def oracle(labels: np.ndarray, stamps: np.ndarray, time: float, mode: str, lag: float) -> list[float] | None:
    """Exact in units of 1/90 s: all times here are whole multiples."""
    ticks, end = np.rint(stamps * 90).astype(int), round((time + lag) * 90)
    if not ticks[0] <= end <= ticks[-1]:
        return None
    last = max(i for i, tick in enumerate(ticks) if tick <= end)
    inside = {i for i, tick in enumerate(ticks) if end - 96 < tick <= end} if mode == "mean" else set()
    chosen = [labels[i] for i in sorted(inside | {last}) if labels[i][0] != -5 and labels[i][1] != -5]
    return np.mean(chosen, axis=0).tolist() if chosen else None


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(STRIDES),
    st.sampled_from(["end", "mean"]),
    st.sampled_from([0.0, 0.2, 1.0, -0.3, 100.0]),
    st.sampled_from([1, 3, 30, 200]),
)
def test_labels_match_the_oracle(seed: int, stride: int, mode: str, lag: float, widest: int) -> None:
    rng = np.random.default_rng(seed)
    stamps = np.cumsum(rng.integers(1, widest + 1, rng.integers(1, 120))) / 90
    labels = rng.uniform(-1, 1, (len(stamps), 2)).astype(np.float32)
    labels[rng.random(labels.shape) < 0.2] = -5
    times = clip_times(stamps, stride)
    values, valid = clip_labels(labels, stamps, times, mode=mode, lag=lag)
    assert values.dtype == np.float32
    assert valid.dtype == bool
    assert values.shape == (len(times), 2)
    assert valid.shape == (len(times),)
    for clip in np.unique(np.linspace(0, len(times) - 1, 100).astype(int)):
        expected = oracle(labels, stamps, times[clip], mode, lag)
        assert valid[clip] == (expected is not None)
        np.testing.assert_allclose(values[clip], expected or [-5, -5], atol=1e-6)


def test_window_of_the_mean_is_32_frames_at_30_fps() -> None:
    stamps = np.arange(100) / 30
    labels = np.zeros((100, 2), np.float32)
    labels[50] = 1
    values, _ = clip_labels(labels, stamps, stamps, mode="mean")
    np.testing.assert_array_equal(np.flatnonzero(values[:, 0]), np.arange(50, 82))
    np.testing.assert_allclose(values[50:82], 1 / 32)


def test_lag_reads_later_labels() -> None:
    stamps = np.arange(30) / 30
    labels = np.column_stack([stamps, -stamps]).astype(np.float32)
    values, valid = clip_labels(labels, stamps, stamps, lag=0.2)
    np.testing.assert_array_equal(values[:24], labels[6:])
    assert valid.tolist() == [True] * 24 + [False] * 6


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        clip_labels(np.zeros((3, 2)), [0.0, 1.0], [0.0])
    with pytest.raises(ValueError, match="mode"):
        clip_labels(np.zeros((1, 2)), [0.0], [0.0], mode="median")
