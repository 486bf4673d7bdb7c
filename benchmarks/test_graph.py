"""How fast are frames and sound made ready for the networks: the DALI graph, or torchvision and torch.stft?

Both get the same frames, decoded by PyAV beforehand, and the same sound windows, and leave the same tensors on the same
device; that they agree is checked before they are timed. A second run of the graph against itself (`again`) shows the
noise of the machine. The last test adds the decoding: a whole video to clips, inside the graph (by NVDEC, on a CPU by
DALI's own decoder), or by PyAV with the graph behind; and each decoder alone, with nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from benchmarks.decoding import decoded_by_pyav, decoded_in_graph, missing, planned, to_clips
from jmt_fast.config import FrameConfig, SpectrogramConfig
from jmt_fast.data import OpenRecording, Recording
from jmt_fast.data.graph import ClipGraph
from jmt_fast.media import select

CONFIG, SOUND = FrameConfig(), SpectrogramConfig()
SHAPES = [(8, 640, 360), (64, 640, 360), (32, 1920, 1080)]
VIDEOS = [(1800, 640, 360), (600, 1920, 1080)] if torch.cuda.is_available() else [(128, 640, 360)]
PERIOD = 24  # frames after which the pictures of a video come again
STRIDE = 8  # thirtieths of a second between clips
DECODED, FED = "decoded in the graph", "PyAV, then the graph"
GRAPH, AGAIN, PEER = "DALI graph", "DALI graph, again", "torchvision + torch.stft"


@pytest.fixture(scope="module")
def graph(device) -> ClipGraph:
    return ClipGraph(CONFIG, SOUND, device)


@pytest.fixture(scope="module")
def video(tmp_path_factory, device) -> Callable[[int, int, int], Path]:
    """video(frames, width, height): H.264 for a GPU; VP9, the one that DALI decodes on a CPU, for a CPU."""
    codec = "libx264" if device.type == "cuda" else "libvpx-vp9"
    fast = {"preset": "veryfast"} if device.type == "cuda" else {"deadline": "realtime", "cpu-used": "8"}
    folder = tmp_path_factory.mktemp("video")

    def picture(k: int, rows: np.ndarray, columns: np.ndarray, grain: np.ndarray) -> np.ndarray:
        turn = 2 * np.pi * k / PERIOD
        waves = [np.sin(rows / 30 + turn), np.cos(columns / 50 - turn), np.sin((rows + columns) / 70 + turn)]
        return (127.5 + 90 * np.stack(waves, axis=-1) + grain).clip(0, 255).astype(np.uint8)

    def make(frames: int, width: int, height: int) -> Path:
        path = folder / f"{frames}x{width}x{height}.mkv"
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        grain = np.random.default_rng(0).normal(0, 6, (height, width, 3))
        pictures = [picture(k, rows, columns, grain) for k in range(min(frames, PERIOD))]
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=30, options=fast)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for k in range(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures[k % PERIOD], format="rgb24")))
            container.mux(stream.encode(None))
        return path

    return make


def torchvision_frames(device: torch.device) -> Callable[[np.ndarray], torch.Tensor]:
    transform = v2.Compose(
        [
            v2.Resize(CONFIG.resize, antialias=True),
            v2.CenterCrop(CONFIG.crop),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(CONFIG.mean, CONFIG.std),
        ]
    )
    return lambda frames: transform(torch.from_numpy(frames).to(device).permute(0, 3, 1, 2))


def torch_log_mel(device: torch.device) -> Callable[[np.ndarray], torch.Tensor]:
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + SOUND.high_hz / 700), SOUND.mels + 2) / 2595) - 1)
    hertz = np.arange(SOUND.n_fft // 2 + 1) * SOUND.sample_rate / SOUND.n_fft
    low, peak, high = (corners[k : k + SOUND.mels, None] for k in range(3))
    bank = np.maximum(0, np.minimum((hertz - low) / (peak - low), (high - hertz) / (high - peak)))
    filters = torch.from_numpy(bank.astype(np.float32)).to(device)
    hann = torch.hann_window(SOUND.window, periodic=True, device=device)

    def run(windows: np.ndarray) -> torch.Tensor:
        signal = torch.from_numpy(windows).to(device)
        spectrum = torch.stft(signal, SOUND.n_fft, SOUND.hop, SOUND.window, hann, return_complex=True)
        mel = filters @ spectrum.abs().square()
        decibels = 10 * torch.log10(mel.clamp(min=10 ** (SOUND.floor_db / 10)))
        return ((decibels - SOUND.mean_db) / SOUND.std_db).unsqueeze(1)

    return run


@pytest.mark.parametrize(("frames", "width", "height"), SHAPES)
def test_frames(graph, device, video, race, question, frames, width, height):
    decoded = np.stack([frame for _, _, frame in select(video(frames, width, height), range(frames))])
    peer = torchvision_frames(device)
    difference = (graph.frames([decoded])[0] - peer(decoded)).abs().mean() * 255 * max(CONFIG.std)
    assert difference < 0.5, "grey levels: the peers compute different things"
    timings = race(
        {
            GRAPH: lambda: graph.frames([decoded]),
            AGAIN: lambda: graph.frames([decoded]),
            PEER: lambda: peer(decoded),
        }
    )
    question.race(f"{frames} frames {width}x{height}", timings, PEER, items=frames)


@pytest.mark.parametrize("count", [4, 32])
def test_sound(graph, device, race, question, count):
    windows = 0.1 * np.random.default_rng(0).standard_normal((count, SOUND.samples), dtype=np.float32)
    peer = torch_log_mel(device)
    torch.testing.assert_close(graph.spectrograms(windows), peer(windows), rtol=0, atol=1e-3)
    timings = race(
        {
            GRAPH: lambda: graph.spectrograms(windows),
            AGAIN: lambda: graph.spectrograms(windows),
            PEER: lambda: peer(windows),
        }
    )
    question.race(f"{count} windows", timings, PEER, items=count)


@pytest.mark.parametrize(("frames", "width", "height"), VIDEOS)
def test_decoding(graph, device, video, race, question, frames, width, height):
    recording = OpenRecording(Recording("video", video(frames, width, height)))
    why, clips = missing(recording, graph), len(planned(recording, STRIDE))
    if not why:
        first, other = (to_clips(recording, graph, STRIDE, in_graph)[0].frames for in_graph in (True, False))
        difference = (first - other).abs().mean() * 255 * max(CONFIG.std)
        assert difference < 6, "grey levels: the peers see different frames"  # neighbours are 13 apart

    def whole(in_graph: bool) -> Callable[[], object]:
        return lambda: to_clips(recording, graph, STRIDE, in_graph)

    timings = race(
        {
            DECODED: why or whole(True),
            f"{DECODED}, again": why or whole(True),
            FED: whole(False),
            "the graph's decoder alone": why or (lambda: decoded_in_graph(recording, graph)),
            "PyAV alone": lambda: decoded_by_pyav(recording, graph, STRIDE),
        },
        warmup=1,
    )
    for name, timing in timings.items():
        ratio = {} if name.endswith("alone") else {"ratio": timings[FED].median / timing.median}
        question.row(
            f"{frames} frames {width}x{height} {recording.info.codec}", name, timing, **ratio,
            items=clips, clips_per_s=1e3 * clips / timing.median, frames_per_s=1e3 * frames / timing.median,
        )  # fmt: skip
