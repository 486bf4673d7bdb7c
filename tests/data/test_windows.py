"""Clip windows against an oracle in exact integer arithmetic, one clip at a time."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmt_fast.config import STRIDES
from jmt_fast.data import chains, clip_frames, clip_times, sequences, shown

CLOCKS = (1000, 12800, 15360, 30000, 44100, 90000)  # units a second of the containers in use

SLACK = Fraction("0.00061")  # no difference between a tick of these clocks and a multiple of 1/30 s is exactly this

strides = st.sampled_from(STRIDES)


@st.composite
def recordings(draw: st.DrawFn) -> list[Fraction]:
    """Exact timestamps: a clock of a container, non-zero start, variable steps, now and then a long gap."""
    clock = draw(st.sampled_from(CLOCKS))
    first = draw(st.integers(-2 * clock, 3600 * clock))
    usual = max(1, clock // draw(st.sampled_from([1, 10, 24, 25, 30, 60])))
    step = st.one_of(st.just(usual), st.integers(1, 2 * usual), st.integers(clock, 5 * clock))
    steps = draw(st.lists(step, max_size=60))
    ticks = np.cumsum([first, *steps]).tolist()
    return [Fraction(tick, clock) for tick in ticks]


def as_seconds(times: list[Fraction]) -> np.ndarray:
    return np.array([float(time) for time in times])


def slow_times(stamps: list[Fraction], stride: int) -> list[Fraction]:
    times = [stamps[0]]
    while times[-1] + Fraction(stride, 30) <= stamps[-1] + SLACK:
        times.append(times[-1] + Fraction(stride, 30))
    return times if stamps[-1] - times[-1] <= SLACK else [*times, stamps[-1]]


def slow_shown(stamps: list[Fraction], at: Fraction) -> int:
    return max((index for index, stamp in enumerate(stamps) if stamp <= at + SLACK), default=0)


@settings(deadline=None)
@given(recordings(), strides)
def test_clips_match_the_exact_oracle(stamps: list[Fraction], stride: int) -> None:
    times = slow_times(stamps, stride)
    found = clip_times(as_seconds(stamps), stride)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, as_seconds(times), rtol=0, atol=1e-9)
    some = np.unique(np.linspace(0, len(times) - 1, 40).astype(int))
    frames = clip_frames(as_seconds(stamps), found)[some]
    assert frames.dtype == np.int64
    expected = [[slow_shown(stamps, times[n] - Fraction(4 * k, 30)) for k in range(7, -1, -1)] for n in some]
    np.testing.assert_array_equal(frames, expected)


@settings(deadline=None)
@given(st.integers(0, 3000), strides, st.integers(1, 20))
def test_every_clip_lies_in_exactly_one_sequence_of_its_chain(count: int, stride: int, length: int) -> None:
    phases = 32 // stride
    rows = sequences(count, stride, length)
    assert rows.dtype == np.int64
    assert rows.shape[1] == length
    np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.arange(count))
    assert ((rows >= 0).sum(1) >= 1).all()
    assert (np.diff((rows >= 0).astype(int), axis=1) <= 0).all(), "padding before a clip"
    for number, row in enumerate(rows):
        clips = row[row >= 0]
        assert (clips % phases == number % phases).all()
        assert (np.diff(clips) == phases).all()
    for phase, chain in enumerate(chains(count, stride)):
        own = rows[phase::phases]
        np.testing.assert_array_equal(own[own >= 0], chain)
        np.testing.assert_array_equal(chain, [n for n in range(count) if n % phases == phase])


@settings(deadline=None)
@given(st.integers(1, 1500), strides, st.integers(1, 20))
def test_a_block_of_clips_holds_exactly_its_sequences(count: int, stride: int, length: int) -> None:
    phases = 32 // stride
    rows = sequences(count, stride, length)
    block = phases * length
    for number in range(-(-count // block)):
        own = rows[number * phases : (number + 1) * phases]
        clips = np.arange(number * block, min((number + 1) * block, count))
        np.testing.assert_array_equal(np.sort(own[own >= 0]), clips)


@settings(deadline=None)
@given(recordings(), strides)
def test_clips_of_a_chain_lie_32_ticks_apart_except_the_closing_one(stamps: list[Fraction], stride: int) -> None:
    times = clip_times(as_seconds(stamps), stride)
    for chain in chains(len(times), stride):
        for before, clip in pairwise(chain):
            if clip == len(times) - 1:
                assert 0 < times[clip] - times[before] < 32 / 30 + 1e-5
            else:
                assert times[clip] - times[before] == pytest.approx(32 / 30, abs=1e-8)


@pytest.mark.parametrize("start", [0.0, 1.4, 5000.0])
def test_at_30_fps_a_clip_has_dilation_4_over_32_frames(start: float) -> None:
    stamps = start + np.arange(300) / 30
    times = clip_times(stamps, 1)
    assert len(times) == 300
    frames = clip_frames(stamps, times)
    wanted = np.arange(300)[:, None] - 4 * np.arange(7, -1, -1)
    np.testing.assert_array_equal(frames, np.maximum(wanted, 0))


@pytest.mark.parametrize(("fps", "factor"), [(15, 0.5), (60, 2), (120, 4)])
def test_other_rates_show_the_same_moments(fps: int, factor: float) -> None:
    stamps = np.arange(10 * fps) / fps
    frames = clip_frames(stamps, np.array([5.0]))
    np.testing.assert_array_equal(frames[0], np.floor((150 - 4 * np.arange(7, -1, -1)) * factor))


def test_one_frame_gives_one_clip_of_that_frame() -> None:
    times = clip_times([7.25], 8)
    np.testing.assert_array_equal(times, [7.25])
    np.testing.assert_array_equal(clip_frames([7.25], times), np.zeros((1, 8)))
    np.testing.assert_array_equal(sequences(1, 8, 8), [[0] + [-1] * 7])


def test_closing_clip_ends_at_the_last_frame() -> None:
    stamps = np.arange(11) / 30
    np.testing.assert_allclose(clip_times(stamps, 4), [0, 4 / 30, 8 / 30, 10 / 30])
    np.testing.assert_allclose(clip_times(stamps[:9], 4), [0, 4 / 30, 8 / 30])


def test_a_clock_of_milliseconds_shows_the_same_frames() -> None:
    exact = np.arange(600) / 30
    rounded = np.round(exact, 3)  # Matroska, WebM: every third frame is stamped 0.33 ms late
    times = clip_times(exact, 4)
    np.testing.assert_allclose(clip_times(rounded, 4), times, atol=5.1e-4)
    np.testing.assert_array_equal(clip_frames(rounded, times), clip_frames(exact, times))
    assert shown([0.0, 0.1], [0.0985]).tolist() == [0]


def test_in_a_gap_the_frame_before_it_stays_shown() -> None:
    stamps = np.array([0.0, 1 / 30, 10.0])
    times = clip_times(stamps, 32)
    frames = clip_frames(stamps, times)
    assert (frames[(times > 2) & (times < 10)] == 1).all()
    assert frames[-1].tolist() == [1] * 7 + [2]


@pytest.mark.parametrize("stamps", [[], [[0.0]], [1.0, 0.5], [0.0, float("nan")]])
def test_wrong_timestamps_are_refused(stamps: list) -> None:
    with pytest.raises(ValueError, match="timestamps"):
        clip_times(stamps, 4)


@pytest.mark.parametrize("stride", [0, 3, 64, -4])
def test_wrong_stride_is_refused(stride: int) -> None:
    for call in (lambda: clip_times([0.0], stride), lambda: chains(3, stride), lambda: sequences(3, stride, 8)):
        with pytest.raises(ValueError, match="stride"):
            call()


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        sequences(3, 4, 0)
    with pytest.raises(ValueError, match="count"):
        sequences(-1, 4, 8)
    with pytest.raises(ValueError, match="times"):
        clip_frames([0.0], [[0.0]])
