from __future__ import annotations

import tracemalloc

import av
import numpy as np
import pytest

from jmt_fast.errors import MediaError
from jmt_fast.media import SoundReader, audio, probe

RATE = 44_100
TIMES = np.array([0.25, 0.7, 1.1, 1.73])
MILLISECOND = 1e-3

TRACKS = {
    "aac 48 kHz stereo": ({}, {"rate": 48_000}),
    "aac 16 kHz mono": ({}, {"rate": 16_000, "channels": 1, "layout": "mono"}),
    "aac 8 kHz mono": ({}, {"rate": 8_000, "channels": 1, "layout": "mono"}),
    "aac 5.1 mov": ({"suffix": "mov"}, {"rate": 48_000, "channels": 6, "layout": "5.1"}),
    "ac3 5.1 mkv": ({"suffix": "mkv"}, {"rate": 48_000, "channels": 6, "layout": "5.1(side)", "codec": "ac3"}),
    "opus webm": ({"suffix": "webm", "codec": "libvpx-vp9"}, {"rate": 48_000, "codec": "libopus"}),
    "mp3 mp4": ({}, {"rate": 48_000, "codec": "libmp3lame"}),
    "pcm avi": ({"suffix": "avi", "codec": "mpeg4", "b_frames": 0}, {"rate": 44_100, "codec": "pcm_s16le"}),
    "pcm 8 kHz avi": (
        {"suffix": "avi", "codec": "mjpeg", "pixel_format": "yuvj420p"},
        {"rate": 8_000, "channels": 1, "layout": "mono", "codec": "pcm_s16le"},
    ),
    "float pcm mkv": ({"suffix": "mkv"}, {"rate": 44_100, "codec": "pcm_f32le"}),
    "aac later": ({}, {"rate": 48_000, "start": 0.4}),
    "pcm later mkv": ({"suffix": "mkv"}, {"rate": 48_000, "start": 0.4, "codec": "pcm_s16le"}),
    "aac ts from 1.5 s": ({"suffix": "ts"}, {"rate": 48_000, "start": 1.5}),
}


@pytest.fixture
def track(film, kit):
    """track(film fields, sound fields) -> (path, click times on the container's clock)."""

    def make(fields: dict, rate: int, channels: int = 2, times=TIMES, start: float = 0.0, **sound):
        samples = kit.clicks(times, max(times) + 0.3, rate, channels)
        fields = {"times": kit.steps(60, start=1.5 if fields.get("suffix") == "ts" else 0.0)} | fields
        path = film(sound=kit.Sound(samples, rate, start, **{"layout": "stereo", **sound}), **fields)
        return path, np.asarray(times) + start

    return make


@pytest.mark.parametrize("case", TRACKS, ids=str)
def test_clicks_are_where_they_were_put(track, kit, case):
    fields, sound = TRACKS[case]
    path, times = track(fields, **sound)
    start, samples = audio(path, RATE)
    assert samples.dtype == np.float32 and samples.ndim == 1
    np.testing.assert_allclose(kit.click_times(start, samples, RATE), times, rtol=0, atol=MILLISECOND)
    info = probe(path).audio
    assert info is not None
    assert start == pytest.approx(info.offset, abs=1 / RATE)
    assert len(samples) / RATE == pytest.approx(info.duration, abs=0.05)


@pytest.mark.parametrize("case", ["aac 48 kHz stereo", "opus webm", "aac later", "aac ts from 1.5 s"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_windows_are_cut_from_the_whole_track(track, case, rate):
    path, _ = track(TRACKS[case][0], **TRACKS[case][1])
    start, samples = audio(path, rate)
    whole = np.concatenate([np.zeros(10 * rate, np.float32), samples, np.zeros(10 * rate, np.float32)])
    first = round(start * rate) - 10 * rate  # the clock's index of whole[0]
    with SoundReader(path, rate) as reader:
        for end_seconds, size in [
            (-1, 100),
            (0.1, 47_040),
            (0.5, 300),
            (0.5, 1),
            (0.5, 0),
            (0.9, 9_001),
            (1.7, rate),
            (5, 4 * rate),
        ]:
            window = reader.window(end_seconds, size)
            end = round(end_seconds * rate) - first
            assert window.dtype == np.float32
            np.testing.assert_array_equal(window, whole[end - size : end])
        assert reader.warning is None


def test_going_back_reads_again(track):
    path, _ = track({}, rate=48_000, times=[0.3, 5.0, 12.0])
    reader = SoundReader(path)
    early = reader.window(0.6, 20_000)
    assert early.any()
    reader.window(12.2, 20_000)
    np.testing.assert_array_equal(reader.window(0.6, 20_000), early)


def test_offset_moves_the_track(track, kit):
    path, times = track({}, rate=48_000)
    window = SoundReader(path, offset=3.0).window(6.0, 6 * RATE)
    np.testing.assert_allclose(kit.click_times(0, window, RATE), times + 3.0, rtol=0, atol=MILLISECOND)


def test_no_sound_is_silence(film):
    for path in (None, film()):
        with SoundReader(path) as reader:
            window = reader.window(1.0, 47_040)
            assert window.shape == (47_040,) and window.dtype == np.float32 and not window.any()
            assert reader.warning is None
    start, samples = audio(film())
    assert start == 0 and samples.shape == (0,) and samples.dtype == np.float32


def test_a_sound_file_of_its_own(kit, tmp_path):
    path = tmp_path / "own.wav"
    sound = kit.Sound(kit.clicks(TIMES, 2, 16_000), 16_000, codec="pcm_s16le")
    with av.open(str(path), "w") as container:
        for packet in kit.sound_packets(container, sound):
            container.mux(packet)
    np.testing.assert_allclose(kit.click_times(0, SoundReader(path).window(2, 2 * RATE), RATE), TIMES, atol=MILLISECOND)


def _sines(frequencies, seconds, rate):
    """(channels, N): one sine a channel, each of amplitude 0.5."""
    return 0.5 * np.sin(2 * np.pi * np.asarray(frequencies)[:, None] * np.arange(round(seconds * rate)) / rate)


def test_resampling_is_clean(film, kit):
    """A sine from 48 kHz, against the formula; 1e-4 is -80 dB, below what 16 bits of a quiet recording hold."""
    sound = kit.Sound(_sines([1000.0], 1.0, 48_000), 48_000, codec="pcm_f32le", layout="mono")
    _, samples = audio(film(suffix="mkv", sound=sound))
    truth = _sines([1000.0], 1.0, RATE)[0]
    assert abs(len(samples) - len(truth)) <= 1
    assert np.abs(samples[100:-100] - truth[100 : len(samples) - 100]).max() < 1e-4


@pytest.mark.parametrize(
    "layout, weights",
    [("mono", [1]), ("stereo", [1, 1]), ("5.1", [2**-0.5, 2**-0.5, 1, 0, 0.5, 0.5])],
)
def test_the_mix_follows_the_standard_with_weights_of_sum_one(film, kit, layout, weights):
    """ITU-R BS.775: front 0.707, centre 1, surround 0.707 * 0.707, no LFE, in relation to each other."""
    frequencies = 300.0 + 170.0 * np.arange(len(weights))
    channels = _sines(frequencies, 1.0, RATE)
    _, samples = audio(film(suffix="mkv", sound=kit.Sound(channels, RATE, codec="pcm_f32le", layout=layout)))
    expected = np.asarray(weights) / np.sum(weights) @ channels
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-5)


def test_loud_sound_stays_in_range(film, kit):
    loud = np.full((2, 20_000), 3.0)
    loud[:, ::2] = -3.0
    _, samples = audio(film(suffix="mkv", sound=kit.Sound(loud, RATE, codec="pcm_f32le")))
    assert np.abs(samples).max() == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_become_zero(film, kit, value):
    wave = _sines([440.0, 440.0], 0.5, RATE).astype(np.float32)
    broken = wave.copy()
    broken[:, 5_000:5_003] = value
    wave[:, 5_000:5_003] = 0
    _, samples = audio(film(suffix="mkv", sound=kit.Sound(broken, RATE, codec="pcm_f32le")))
    np.testing.assert_allclose(samples, wave[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        ({}, {"rate": 48_000}),
        ({"suffix": "mkv"}, {"rate": 44_100, "codec": "pcm_s16le"}),
        ({"suffix": "webm", "codec": "libvpx-vp9"}, {"rate": 48_000, "codec": "libopus"}),
    ],
    ids=["aac", "pcm", "opus"],
)
def test_a_gap_is_silent_and_shifts_nothing(track, kit, fields):
    path, times = track(fields[0], **fields[1], cuts=((0.8, 1.0),))
    start, samples = audio(path)
    np.testing.assert_allclose(kit.click_times(start, samples, RATE), times, rtol=0, atol=MILLISECOND)
    assert not samples[round(0.86 * RATE) : round(0.96 * RATE)].any()


def test_jitter_of_packet_times_leaves_no_seam(film, kit):
    rng = np.random.default_rng(7)
    jitter = rng.uniform(-0.005, 0.005, 1000)
    wave = _sines([440.0, 440.0], 2.0, RATE)
    sound = kit.Sound(wave, RATE, codec="pcm_f32le", delays=lambda n: 0.0 if n == 0 else float(jitter[n]))
    _, samples = audio(film(suffix="mkv", sound=sound))
    np.testing.assert_allclose(samples, wave[0], rtol=0, atol=1e-6)


def test_what_overlaps_is_dropped(film, kit):
    """From packet 40 on all times are 18 ms too early: the sound before stays whole, that behind loses its start."""
    seam, rate = 40 * 1024, RATE
    wave = np.where(np.arange(2 * rate) < seam, 0.25, 0.5)[None]
    wave[0, 60_000] = 0.75
    sound = kit.Sound(wave, rate, codec="pcm_f32le", layout="mono", delays=lambda n: -0.018 if n >= 40 else 0.0)
    _, samples = audio(film(suffix="mkv", sound=sound))
    assert (samples[:seam] == 0.25).all() and (samples[seam:] >= 0.5).all()
    assert np.argmax(samples) == pytest.approx(60_000 - 0.018 * rate, abs=rate * MILLISECOND)
    assert len(samples) == pytest.approx(2 * rate - 0.018 * rate, abs=rate * MILLISECOND)


def test_damaged_packets_become_silence_with_a_warning(track, kit):
    path, times = track({}, rate=48_000)
    broken = kit.damaged(path, "audio", range(30, 36))  # 0.62 s to 0.77 s: the second click
    reader = SoundReader(broken)
    window = reader.window(3.0, 3 * RATE)
    np.testing.assert_allclose(kit.click_times(0, window, RATE), times[[0, 2, 3]], rtol=0, atol=MILLISECOND)
    assert reader.warning is not None and "cannot be decoded" in reader.warning and "\n" not in reader.warning


def test_sound_that_breaks_off_becomes_silence_with_a_warning(film, kit, tmp_path):
    sound = kit.Sound(kit.clicks(np.arange(0.2, 6, 0.25), 6, 48_000), 48_000)
    path = film(times=kit.steps(180), sound=sound, options=(("movflags", "faststart"),))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader = SoundReader(cut)
    window = reader.window(6.0, 6 * RATE)
    assert window[: 2 * RATE].any() and not window[5 * RATE :].any()
    assert reader.warning is not None and str(cut) in reader.warning and "silence" in reader.warning


def test_memory_stays_flat(film, kit):
    """Two minutes of sound are 21 MB as float32; the reader may hold a few seconds."""
    noise = np.random.default_rng(3).uniform(-0.5, 0.5, (1, 120 * 8_000))
    path = film(times=(0.0,), suffix="mkv", sound=kit.Sound(noise, 8_000, codec="pcm_s16le", layout="mono"))
    with SoundReader(path) as reader:
        tracemalloc.start()
        for end in np.arange(1, 121, 0.5):
            assert reader.window(float(end), 47_040).any()
        reader.window(500.0, 100)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4e6


def test_wrong_arguments(film):
    with pytest.raises(ValueError, match="sample_rate"):
        SoundReader(None, 0)
    with pytest.raises(ValueError, match="samples"):
        SoundReader(None).window(1.0, -1)
    with pytest.raises(MediaError, match="no such file"):
        SoundReader(film().with_name("gone.mp4"))
