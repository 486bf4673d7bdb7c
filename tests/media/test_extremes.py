"""Files at the edges of what a camera, a phone or a screen recorder writes."""

from __future__ import annotations

import wave
from fractions import Fraction

import numpy as np
import pytest

from jmt_fast.errors import MediaError
from jmt_fast.media import audio, frames, probe, select


@pytest.mark.parametrize(
    "fields",
    [
        {"codec": "libvpx-vp9", "suffix": "webm"},
        {"codec": "mpeg4", "suffix": "avi", "b_frames": 0},
        {"codec": "mjpeg", "suffix": "avi", "pixel_format": "yuvj420p"},
        {"codec": "libx264", "suffix": "mp4", "pixel_format": "yuv444p"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (2, 2)], ids=str)
def test_frames_of_a_few_pixels(film, kit, fields, size):
    path = film(size=size, times=kit.steps(5), **fields)
    seen = list(frames(path))
    assert [index for index, _, _ in seen] == list(range(5)) == list(range(probe(path).frames))
    assert all(frame.shape == (size[1], size[0], 3) for _, _, frame in seen)


@pytest.mark.parametrize("rate", [Fraction(1, 2), Fraction(240)], ids=str)
@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("libvpx-vp9", "webm"), ("mpeg4", "avi")])
def test_very_slow_and_very_fast(film, kit, codec, suffix, rate):
    path = film(codec=codec, suffix=suffix, times=kit.steps(12, float(rate)), rate=rate, b_frames=0)
    info = probe(path)
    assert info.fps == pytest.approx(float(rate), rel=0.02) and info.frames == 12
    seen = [(kit.number_of(frame), seconds) for _, seconds, frame in frames(path, step=3)]
    assert [number for number, _ in seen] == [0, 3, 6, 9]
    assert [seconds for _, seconds in seen] == pytest.approx([n / float(rate) for n in (0, 3, 6, 9)], abs=1e-3)
    assert info.duration == pytest.approx(12 / float(rate), rel=0.02)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_8k(film, kit, codec):
    path = film(codec=codec, size=(7680, 4320), times=kit.steps(2), b_frames=0)
    assert [kit.number_of(frame) for _, _, frame in frames(path)] == [0, 1]


def test_the_size_changes_on_the_way(film, kit, tmp_path):
    """Two recordings joined byte by byte, as broadcasts are: all frames come in the size of the first."""
    first = film(suffix="ts", times=kit.steps(24, start=1.0), size=(96, 64), keyframes=12)
    second = film(suffix="ts", times=kit.steps(24, start=1.8), size=(160, 96), keyframes=12)
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    info = probe(path)
    seen = {index: frame for index, _, frame in frames(path)}
    assert info.frames == 48 and len(seen) >= 45
    for index, frame in seen.items():
        assert frame.shape == (64, 96, 3) and kit.number_of(frame) == index % 24


def test_a_file_that_grows(film, kit, tmp_path):
    """What was there at the probe is read; what has come since is for the next probe."""
    data = film(suffix="ts", times=kit.steps(90), b_frames=0).read_bytes()
    path = tmp_path / "grows.ts"
    path.write_bytes(data[: len(data) // 2 // 188 * 188])
    info = probe(path)
    reader = select(path, range(info.frames), info)
    seen = [next(reader)]
    path.write_bytes(data)
    seen += list(reader)
    assert [kit.number_of(frame) for _, _, frame in seen] == [index for index, _, _ in seen]
    assert 20 < info.frames < 90 and info.frames - 1 <= len(seen) <= info.frames and probe(path).frames == 90


def test_another_file_under_the_same_name(film, kit, tmp_path):
    """Frames at other times than the probe's are not taken for those it saw."""
    path = tmp_path / "replaced.mp4"
    path.write_bytes(film(times=kit.steps(40)).read_bytes())
    info = probe(path)
    path.write_bytes(film(times=kit.steps(40, start=0.0051)).read_bytes())
    for _ in range(2):
        with pytest.raises(MediaError, match=r"replaced\.mp4: "):
            list(select(path, range(40), info))
        path.write_bytes(b"no video any more")


def test_sixteen_channels(tmp_path):
    """The mean of all, whichever of them has the sound."""
    path = tmp_path / "sixteen.wav"
    tone = (16_000 * np.sin(2 * np.pi * 440 / 44_100 * np.arange(44_100))).astype("<i2")
    for channels in (range(16), [2], [12]):
        samples = np.zeros((44_100, 16), "<i2")
        samples[:, list(channels)] = tone[:, None]
        with wave.open(str(path), "wb") as file:
            file.setparams((16, 2, 44_100, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
        start, mono = audio(path)
        assert start == 0 and len(mono) == 44_100
        np.testing.assert_allclose(mono, tone / 32_768 * len(channels) / 16, atol=2e-4)


def test_telephone_sound(film, kit):
    path = film(suffix="mkv", sound=kit.Sound(kit.clicks([0.25, 0.75], 1.0, 8_000), 8_000, codec="pcm_s16le"))
    start, mono = audio(path)
    np.testing.assert_allclose(kit.click_times(start, mono, 44_100), [0.25, 0.75], atol=1e-3)
