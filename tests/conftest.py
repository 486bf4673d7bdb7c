"""What tests of several floors use: videos whose frames carry their own number, and a small checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from jmt_fast.config import AudioConfig, FeatureConfig, FrameConfig, JMTConfig, VisualConfig
from jmt_fast.models import JMT, Checkpoint, load_backbones

BITS = 8
CLOCK = Fraction(1, 30_000)  # fine enough for every rate used here


def numbered(number: int, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: the bits of `number` as white and black columns above, their complement below."""
    bits = np.array([number >> k & 1 for k in range(BITS)], bool)
    columns = bits[np.minimum(np.arange(width) * BITS // width, BITS - 1)]
    picture = np.where(np.arange(height)[:, None] < height // 2, columns, ~columns)
    return np.repeat(picture[:, :, None].astype(np.uint8) * 255, 3, axis=2)


def number_of(frame: np.ndarray) -> int:
    """The number that `numbered` drew, read from the middles of the blocks; fails where the two halves disagree."""
    height, width = frame.shape[:2]
    middles = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    above, below = (frame[height * part // 4, middles].mean(axis=1) > 127 for part in (1, 3))
    assert (above != below).all(), f"the frame shows no clear number: {above} {below}"
    return int(sum(1 << k for k in range(BITS) if above[k]))


@dataclass(frozen=True)
class Sound:
    """Samples (channels, N) float32 that start at `start` seconds on the container's clock."""

    samples: np.ndarray
    rate: int
    start: float = 0.0
    codec: str = "aac"
    layout: str = "stereo"
    cuts: Sequence[tuple[float, float]] = ()  # spans of time whose packets are left out
    delays: Callable[[int], float] | None = None  # seconds added to the time of each packet by its number


def clicks(times: Iterable[float], seconds: float, rate: int, channels: int = 2) -> np.ndarray:
    """(channels, N) float32: 2 ms of 1.5 kHz under a Hann window, centred on each time from the track's start."""
    samples = np.zeros(round(seconds * rate), np.float32)
    half = round(0.001 * rate)
    burst = np.hanning(2 * half + 1) * np.cos(2 * np.pi * 1500 / rate * np.arange(-half, half + 1))
    for time in times:
        middle = round(time * rate)
        samples[middle - half : middle + half + 1] += 0.8 * burst
    return np.repeat(samples[None], channels, axis=0)


def click_times(start: float, samples: np.ndarray, rate: int) -> np.ndarray:
    """Times of the clicks' middles: the largest sample of each group that is over a third of the peak."""
    size = np.abs(samples)
    loud = np.flatnonzero(size > size.max() / 3)
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > rate // 50) + 1)
    return np.array([start + group[np.argmax(size[group])] / rate for group in groups])


@dataclass(frozen=True)
class Film:
    """How to write one test video; frame n shows the number `numbers[n]` (n by default)."""

    codec: str = "libx264"
    suffix: str = "mp4"
    size: tuple[int, int] = (96, 64)
    times: Sequence[float] = tuple(n / 30 for n in range(40))
    pixel_format: str = "yuv420p"
    keyframes: int = 12
    b_frames: int = 2
    rotation: int = 0
    sound: Sound | None = None
    options: tuple[tuple[str, str], ...] = ()  # of the container
    codec_options: tuple[tuple[str, str], ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    rate: Fraction = Fraction(30)


FAST = {
    "libx264": {"preset": "ultrafast", "crf": "12"},
    "libx265": {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none:pools=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "12", "b": "0"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "8", "b": "2M"},
    "mpeg4": {"qscale": "2"},
    "mjpeg": {"qscale": "2"},
}


def write(path: Path, film: Film) -> Path:
    """Encode and mux a film. Packets of both streams are interleaved by time, as recorders do."""
    with av.open(str(path), "w", options=dict(film.options)) as container:
        container.metadata.update(dict(film.metadata))
        muxed = [*_video_packets(container, film), *(_sound_packets(container, film.sound) if film.sound else [])]
        muxed.sort(key=lambda packet: float(packet.dts * packet.time_base))
        for packet in muxed:
            container.mux(packet)
    return path


def _video_packets(container: av.container.OutputContainer, film: Film) -> list[av.Packet]:
    stream = container.add_stream(film.codec, rate=film.rate)
    stream.width, stream.height = film.size
    stream.pix_fmt = film.pixel_format
    avi = film.suffix == "avi"  # its only clock is the frame rate
    stream.time_base = stream.codec_context.time_base = 1 / film.rate if avi else CLOCK
    stream.codec_context.gop_size = film.keyframes
    stream.codec_context.max_b_frames = film.b_frames if "vpx" not in film.codec and film.codec != "mjpeg" else 0
    stream.codec_context.thread_count = 1
    stream.options = {**FAST.get(film.codec, {}), **dict(film.codec_options)}
    if film.codec in ("mpeg4", "mjpeg"):
        stream.codec_context.qmin = stream.codec_context.qmax = 2
        stream.codec_context.bit_rate = 4_000_000
    if film.rotation:
        stream.set_display_rotation(-film.rotation)
    packets = []
    for number, time in enumerate(film.times):
        frame = av.VideoFrame.from_ndarray(numbered(number, *film.size), "rgb24").reformat(format=film.pixel_format)
        frame.pts = round(time / stream.codec_context.time_base)
        frame.time_base = stream.codec_context.time_base
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _sound_packets(container: av.container.OutputContainer, sound: Sound) -> list[av.Packet]:
    stream = container.add_stream(sound.codec, rate=sound.rate, layout=sound.layout)
    if sound.codec == "aac":
        stream.codec_context.bit_rate = 192_000
    wanted = stream.codec_context.format.name
    packets, size = [], 1024
    resampler = av.AudioResampler(wanted, sound.layout, sound.rate, frame_size=0)
    for at in range(0, sound.samples.shape[1], size):
        block = np.ascontiguousarray(sound.samples[:, at : at + size], np.float32)
        frame = av.AudioFrame.from_ndarray(block, "fltp", sound.layout)
        frame.sample_rate, frame.time_base = sound.rate, Fraction(1, sound.rate)
        frame.pts = round(sound.start * sound.rate) + at
        for ready in resampler.resample(frame):
            packets += stream.encode(ready)
    packets += stream.encode(None)
    for number, packet in enumerate(packets):
        late = round(sound.delays(number) / packet.time_base) if sound.delays else 0
        packet.pts, packet.dts = packet.pts + late, packet.dts + late
    return [p for p in packets if not any(low <= float(p.pts * p.time_base) < high for low, high in sound.cuts)]


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """film(codec=..., ...) -> path of a video with those fields of `Film`; equal requests share one file."""
    folder = tmp_path_factory.mktemp("films")
    made: dict[str, Path] = {}
    names = itertools.count()

    def make(**fields) -> Path:
        spec = Film(**fields)
        key = repr(spec) if spec.sound is None else None  # a repr shortens arrays: films with sound are not shared
        if key is None or key not in made:
            path = write(folder / f"{next(names)}.{spec.suffix}", spec)
            if key is None:
                return path
            made[key] = path
        return made[key]

    return make


def steps(count: int, rate: float = 30, start: float = 0.0) -> tuple[float, ...]:
    """Times of `count` frames at a constant rate."""
    return tuple(start + n / rate for n in range(count))


def damaged(path: Path, kind: str, numbers: Iterable[int], kept: float = 0.0) -> Path:
    """A copy in which these packets of the first stream of a kind hold zeros behind the share of them that is `kept`;
    the container around them is intact."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        packets = [packet for packet in container.demux(stream) if packet.size]
        for number in numbers:
            at = data.index(bytes(packets[number]), max(packets[number].pos or 0, 0))
            left = int(kept * packets[number].size)
            data[at + left : at + packets[number].size] = bytes(packets[number].size - left)
    copy = path.with_name(f"damaged-{kind}-{path.name}")
    copy.write_bytes(data)
    return copy


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers of this file, for tests that are imported without a package."""
    return SimpleNamespace(
        Sound=Sound,
        clicks=clicks,
        click_times=click_times,
        numbered=numbered,
        number_of=number_of,
        steps=steps,
        damaged=damaged,
        video_packets=_video_packets,
        sound_packets=_sound_packets,
        Film=Film,
    )


@pytest.fixture(scope="session")
def small_features() -> FeatureConfig:
    """Backbones that take milliseconds."""
    return FeatureConfig(
        frames=FrameConfig(resize=36, crop=32),
        visual=VisualConfig(blocks=(1, 1), widths=(8, 16), features=32),
        audio=AudioConfig(blocks=(1, 1, 1, 1), features=64, gru=48),
    )


@pytest.fixture(scope="session")
def small_checkpoint(small_features: FeatureConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `predict` and `evaluate` take, with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fusion = JMT(JMTConfig(dim=48, ff_dim=48, visual_dim=32))
        with torch.no_grad():
            for name, parameter in fusion.state_dict().items():  # predictions that move, so that a shift shows
                if name.startswith(("out", "valence", "arousal")) and parameter.ndim > 1:
                    parameter.mul_(4)
    Checkpoint(fusion, load_backbones(small_features, "random", 0), small_features).save(folder)
    return folder
