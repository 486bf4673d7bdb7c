"""How fast do files become frames, clips and sound on a CPU? Against OpenCV, PyAV used plainly, and torchcodec.

Peers read the same H.264 file of 640x360 at 30 fps, encoded here as x264 does by default (B-frames, groups of 250), and
give pictures of one size, which are compared before anything is timed. `again` is a second run of ours: the noise.
OpenCV and torchcodec are no dependencies; where one is missing, or finds no FFmpeg, its row says so.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
import torch

from jmt_fast.config import FeatureConfig
from jmt_fast.data.graph import ClipGraph
from jmt_fast.media import MediaInfo, SoundReader, probe, select
from jmt_fast.models.inference_copy import fast_inference
from jmt_fast.models.weights import load_backbones
from jmt_fast.runtime import Runtime

WIDTH, HEIGHT, FRAMES, SECONDS = 640, 360, 600, 20
SMALL = (398, 224)
EVERY = 4
OURS, AGAIN = "jmt-fast", "jmt-fast, again"
CLIPS = 8  # drawn at random


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> MediaInfo:
    """Waves that wander behind a grain that stays, with a tone."""
    path = tmp_path_factory.mktemp("media") / "film.mp4"
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    grain = np.random.default_rng(0).normal(0, 4, (HEIGHT, WIDTH, 3))
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=30, options={"g": "250", "sc_threshold": "0"})
        video.codec_context.thread_type = "FRAME"  # one slice a frame, as the encoder's own program has by default
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound: Any = container.add_stream("aac", rate=48_000, layout="stereo")
        for k in range(FRAMES):
            waves = [np.sin(rows / 30 + k / 9), np.cos(columns / 50 - k / 9), np.sin((rows + columns) / 70 + k / 31)]
            picture = (127.5 + 90 * np.stack(waves, axis=-1) + grain).clip(0, 255).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000 * SECONDS, dtype=np.float32) / 48_000)
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]).astype(np.float32), "fltp", "stereo")
        frame.sample_rate, frame.time_base = 48_000, Fraction(1, 48_000)
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return probe(path)


def ours(info: MediaInfo) -> np.ndarray:
    """As `features` and `train` read videos whose middle they look at."""
    return np.stack([frame for _, _, frame in select(info.path, range(0, info.frames, EVERY), info, shorter=SMALL[1])])


def plainly(info: MediaInfo) -> np.ndarray:
    with av.open(str(info.path)) as container:
        decoded = enumerate(container.decode(video=0))
        return np.stack([frame.reformat(*SMALL, "rgb24").to_ndarray() for k, frame in decoded if k % EVERY == 0])


def opencv(info: MediaInfo) -> Callable[[], np.ndarray] | str:
    try:
        import cv2
    except ImportError as error:
        return f"not installed ({error})"

    def read() -> np.ndarray:
        capture, frames = cv2.VideoCapture(str(info.path)), []
        for k in range(info.frames):
            capture.grab()
            if k % EVERY == 0:
                frames.append(cv2.resize(capture.retrieve()[1], SMALL))
        return np.stack(frames)

    return read


def torchcodec(info: MediaInfo) -> Callable[[int], np.ndarray] | str:
    """Frames start, start + 4, ... of a clip, by a decoder made anew."""
    try:
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(str(info.path))
    except (ImportError, OSError, RuntimeError) as error:
        return f"cannot be loaded ({str(error).strip().partition(chr(10))[0]})"

    def read(start: int) -> np.ndarray:
        decoder = VideoDecoder(str(info.path), dimension_order="NHWC")
        return decoder.get_frames_at(list(range(start, start + 8 * EVERY, EVERY))).data.numpy()

    return read


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """Of one size, and the same pictures but for the rule of colour and of shrinking."""
    return one.shape == other.shape and np.abs(one.astype(np.int16) - other).mean() < 6


def test_every_fourth_frame(film: MediaInfo, race: Callable, question: Any) -> None:
    cv, expected = opencv(film), ours(film)
    assert close(expected, plainly(film))
    if callable(cv):
        assert close(expected, cv()[..., ::-1])
    peers = {
        OURS: lambda: ours(film),
        AGAIN: lambda: ours(film),
        "OpenCV": cv,
        "PyAV, plainly": lambda: plainly(film),
    }
    against = "OpenCV" if callable(cv) else "PyAV, plainly"
    question.race(f"each {EVERY}th of {FRAMES} frames, to 224", race(peers, warmup=1), against, items=FRAMES // EVERY)


def test_clips_at_random(film: MediaInfo, race: Callable, question: Any) -> None:
    starts = np.random.default_rng(0).integers(0, FRAMES - 8 * EVERY, CLIPS).tolist()
    codec = torchcodec(film)

    def clip(start: int) -> np.ndarray:
        return np.stack([frame for _, _, frame in select(film.path, range(start, start + 8 * EVERY, EVERY), film)])

    def plain(start: int) -> np.ndarray:
        with av.open(str(film.path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            container.seek(round(film.timestamps[start] / stream.time_base), stream=stream)
            wanted, frames = set(np.round(film.timestamps[start : start + 8 * EVERY : EVERY], 3)), []
            for frame in container.decode(stream):
                if round(frame.time, 3) in wanted:
                    frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == 8:
                    break
        return np.stack(frames)

    def each(read: Callable[[int], np.ndarray]) -> Callable[[], list[np.ndarray]]:
        return lambda: [read(start) for start in starts]

    assert all(close(clip(start), plain(start)) for start in starts)
    if callable(codec):
        assert all(close(clip(start), codec(start)) for start in starts)
    peers = {
        OURS: each(clip),
        AGAIN: each(clip),
        "torchcodec, a decoder a clip": each(codec) if callable(codec) else codec,
        "PyAV, threaded": each(plain),
    }
    against = "torchcodec, a decoder a clip" if callable(codec) else "PyAV, threaded"
    question.race(f"{CLIPS} clips of 8 frames at random", race(peers, warmup=1), against, items=CLIPS)


def test_what_a_clip_costs_beside_its_network(film: MediaInfo, race: Callable, question: Any) -> None:
    """Sound, spectrogram and resize of as many clips as there are threads, against R(2+1)D-18's time for them."""
    config, count = FeatureConfig(), torch.get_num_threads()
    graph = ClipGraph(config.frames, config.sound, device="cpu")
    frames = [frame for _, _, frame in select(film.path, range(0, 32 * count, EVERY), film)]
    inputs = torch.randn(count, 3, 8, config.frames.crop, config.frames.crop)
    runtime = Runtime.choose("cpu")
    network = fast_inference(load_backbones(config, "random").visual, inputs, runtime)
    sound = SoundReader(film.path, config.sound.sample_rate)

    def prepared() -> tuple[torch.Tensor, torch.Tensor]:
        windows = np.stack([sound.window(2 + number * 32 / 30, config.sound.samples) for number in range(count)])
        return graph.frames([frames])[0], graph.spectrograms(windows)

    assert prepared()[0].shape == (8 * count, 3, 224, 224)
    name = f"R(2+1)D-18, {runtime.precision}"
    timings = race({OURS: prepared, AGAIN: prepared, name: lambda: network(inputs)}, warmup=1)
    question.race(f"sound, spectrogram, resize of {count} clips", timings, name, items=count)
