from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmt_fast.data import clip_times, smooth, to_frames


def test_interpolation_is_linear_in_time_and_held_at_the_ends() -> None:
    values = [[0.0, 1.0], [1.0, -1.0]]
    trace = to_frames([1.0, 3.0], values, [0.0, 1.0, 1.5, 2.9, 3.0, 9.0])
    assert trace.dtype == np.float32
    np.testing.assert_allclose(trace, [[0, 1], [0, 1], [0.25, 0.5], [0.95, -0.9], [1, -1], [1, -1]], atol=1e-6)


def test_stride_1_at_30_fps_gives_the_clips_themselves() -> None:
    stamps = 3.2 + np.arange(200) / 30
    values = np.random.default_rng().uniform(-1, 1, (200, 2)).astype(np.float32)
    np.testing.assert_allclose(to_frames(clip_times(stamps, 1), values, stamps), values, atol=1e-6)


def test_values_are_clipped_before_interpolation() -> None:
    np.testing.assert_allclose(to_frames([0.0, 1.0], [[3.0, -9.0], [0.0, 0.0]], [0.0, 0.5]), [[1, -1], [0.5, -0.5]])


def test_one_clip_covers_all_frames() -> None:
    np.testing.assert_allclose(to_frames([0.0], [[0.5, -0.5]], [-1.0, 0.0, 1.0]), [[0.5, -0.5]] * 3)


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(1, 25),
    st.integers(1, 25),
    st.sampled_from(["uniform", "median"]),
)
def test_smoothing_matches_a_loop(seed: int, frames: int, valence: int, arousal: int, kind: str) -> None:
    trace = np.random.default_rng(seed).uniform(-1, 1, (frames, 2)).astype(np.float32)
    result = smooth(trace, (valence, arousal), kind=kind)
    assert result.shape == trace.shape
    assert result.dtype == np.float32
    reduce = {"uniform": np.mean, "median": np.median}[kind]
    for column, window in enumerate((valence, arousal)):
        for frame in range(frames):
            around = range(frame - window // 2, frame - window // 2 + window)
            inside = [float(trace[min(max(i, 0), frames - 1), column]) for i in around]
            assert result[frame, column] == pytest.approx(reduce(inside), abs=1e-6)


def test_smoothing_agrees_with_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    trace = np.random.default_rng().uniform(-1, 1, (300, 2))
    result = smooth(trace, (20, 50))
    for column, window in enumerate((20, 50)):
        expected = ndimage.uniform_filter1d(trace[:, column], window, mode="nearest")
        np.testing.assert_allclose(result[:, column], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "median"])
def test_a_constant_trace_stays_constant_to_its_ends(kind: str) -> None:
    trace = np.full((40, 2), 0.75, np.float32)
    np.testing.assert_allclose(smooth(trace, (20, 50), kind), trace, atol=1e-6)


def test_window_of_one_changes_nothing() -> None:
    trace = np.random.default_rng().uniform(-1, 1, (9, 2)).astype(np.float32)
    np.testing.assert_array_equal(smooth(trace, (1, 1)), trace)
    assert smooth(np.zeros((0, 2)), (5, 5)).shape == (0, 2)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="times"):
        to_frames([], np.zeros((0, 2)), [0.0])
    with pytest.raises(ValueError, match="times"):
        to_frames([1.0, 1.0], np.zeros((2, 2)), [0.0])
    with pytest.raises(ValueError, match="values"):
        to_frames([1.0], np.zeros((2, 2)), [0.0])
    with pytest.raises(ValueError, match="windows"):
        smooth(np.zeros((3, 2)), (0, 5))
    with pytest.raises(ValueError, match="kind"):
        smooth(np.zeros((3, 2)), (3, 5), "gauss")
