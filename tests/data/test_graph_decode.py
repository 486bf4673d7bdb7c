"""Decoding inside the DALI graph on a CPU, against the same graph fed with frames that PyAV decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from jmt_fast.config import FrameConfig
from jmt_fast.data.graph import ClipGraph, can_decode
from jmt_fast.errors import MediaError
from jmt_fast.media import probe, select

CONFIG = FrameConfig(resize=72, crop=64)
MILLISECOND = Fraction(1, 1000)
FAST = {"deadline": "realtime", "cpu-used": "8"}
CODECS = {"libvpx-vp9": ("yuv420p", FAST), "libvpx": ("yuv420p", FAST), "mjpeg": ("yuvj420p", {})}
FRAMES = 45


@pytest.fixture(scope="module")
def graph() -> ClipGraph:
    return ClipGraph(CONFIG)


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """write(name, codec="libvpx-vp9", milliseconds=None, **options): a moving pattern of FRAMES frames, 160 x 96."""

    def make(name: str, codec: str = "libvpx-vp9", milliseconds: list[int] | None = None, **options: str) -> Path:
        rng = np.random.default_rng(0)
        pattern = rng.integers(0, 256, (12, 20, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        pixel_format, fast = CODECS[codec]
        path = tmp_path / name
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream(codec, rate=30, options=fast)
            stream.width, stream.height, stream.pix_fmt = 160, 96, pixel_format
            stream.time_base = stream.codec_context.time_base = MILLISECOND
            for k, time in enumerate(milliseconds or [round(1000 * k / 30) for k in range(FRAMES)]):
                frame = av.VideoFrame.from_ndarray(np.roll(pattern, 5 * k, axis=1), format="rgb24")
                frame.pts, frame.time_base = time, MILLISECOND
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


def exact(path: Path) -> np.ndarray:
    """All frames (F, H, W, 3) by PyAV, converted as DALI does it: BT.601, bilinear, with FFmpeg's exact rounding."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        chain = av.filter.Graph()
        flags = "bilinear+accurate_rnd+full_chroma_int"
        chain.link_nodes(
            chain.add_buffer(template=stream),
            chain.add("scale", f"in_color_matrix=bt601:flags={flags}"),
            chain.add("format", "rgb24"),
            chain.add("buffersink"),
        ).configure()
        for frame in container.decode(stream):
            chain.push(frame)
            frames.append(chain.pull().to_ndarray())
    return np.stack(frames)


def collect(graph: ClipGraph, path: Path, block: int) -> torch.Tensor:
    """All blocks, after a check of their indices and lengths."""
    blocks = list(graph.decoded(probe(path), block))
    assert [first for first, _ in blocks] == list(range(0, sum(len(frames) for _, frames in blocks), block))
    assert all(len(frames) == block for _, frames in blocks[:-1])
    return torch.cat([frames for _, frames in blocks])


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.webm", "libvpx-vp9"), ("a b.mp4", "libvpx-vp9"), ("a.webm", "libvpx"), ("a.mkv", "mjpeg"), ("ä.avi", "mjpeg")],
)
def test_equals_the_fed_graph(graph, write, name, codec):
    path = write(name, codec)
    got = collect(graph, path, block=16)
    assert got.shape == (FRAMES, 3, 64, 64)
    assert torch.equal(got, graph.frames([exact(path)])[0])


def test_equals_the_media_decoder(graph, write):
    path = write("a.webm")
    fed = graph.frames([[frame for _, _, frame in select(path, range(FRAMES))]])[0]
    assert torch.equal(collect(graph, path, block=16), fed)


@pytest.mark.parametrize("block", [1, 15, 44, 45, 46, 100])
def test_any_block_size(graph, write, block):
    path = write("a.mkv", "mjpeg")
    assert torch.equal(collect(graph, path, block), graph.frames([exact(path)])[0])


def test_variable_rate_and_late_start(graph, write):
    steps = np.random.default_rng(1).integers(5, 120, FRAMES)
    path = write("a.mkv", milliseconds=(1500 + np.cumsum(steps)).tolist())
    info = probe(path)
    assert not info.constant_rate and info.timestamps[0] > 1.4
    assert torch.equal(collect(graph, path, block=16), graph.frames([exact(path)])[0])


def test_one_frame(graph, write):
    path = write("a.mkv", "mjpeg", milliseconds=[40])
    assert collect(graph, path, block=8).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.webm", "libvpx-vp9", {}), ("a.mkv", "mjpeg", {}), ("a.mp4", "libvpx-vp9", {"movflags": "faststart"})],
)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_truncated_file_has_no_stale_frames(graph, write, name, codec, options, kept):
    """What comes out is what FFmpeg itself decodes of the file, down to a last packet that is cut, and nothing more."""
    path = write(name, codec, **options)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    want = exact(path)
    assert 0 < len(want) < FRAMES
    assert torch.equal(collect(graph, path, block=8), graph.frames([want])[0])


def test_damage_is_an_error_and_the_next_file_is_fine(graph, write):
    path = write("bad.mp4")
    good = write("good.webm")
    data = bytearray(path.read_bytes())
    info = probe(path)
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"bad\.mp4: .* after frame .*; use the PyAV decoder"):
        list(graph.decoded(info, 8))
    assert len(collect(graph, good, 16)) == FRAMES


def test_other_frames_than_the_probe_found_are_refused(graph, write):
    info = probe(write("a.mkv", "mjpeg"))
    with pytest.raises(MediaError, match="45 frames in the media graph, 44 in the probe"):
        list(graph.decoded(replace(info, frames=44, timestamps=info.timestamps[:44])))
    shifted = info.timestamps.copy()
    shifted[20:] += 0.01
    with pytest.raises(MediaError, match="frame times after frame 16 differ"):
        list(graph.decoded(replace(info, timestamps=shifted), 16))
    with pytest.raises(MediaError, match="the frame size changes after frame 0"):
        list(graph.decoded(replace(info, width=162), 16))
    with pytest.raises(ValueError, match="block"):
        next(graph.decoded(info, 0))


def test_files_that_cannot_be_opened(graph, write, tmp_path):
    info = probe(write("a.mkv", "mjpeg"))
    (tmp_path / "text.mkv").write_text("not a video")
    for path in (tmp_path / "gone.mkv", tmp_path / "text.mkv", tmp_path):
        with pytest.raises(MediaError, match="the media graph cannot open it"):
            next(graph.decoded(replace(info, path=path)))


def test_blocks_outlive_the_decoder(graph, write):
    path = write("a.mkv", "mjpeg")
    kept = [frames for _, frames in graph.decoded(probe(path), 8)]
    copies = [frames.clone() for frames in kept]
    for _ in range(3):
        next(graph.decoded(probe(path), 8))  # given up after the first block
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_can_decode_names_the_reason(write):
    info = probe(write("a.mkv", "mjpeg"))
    assert can_decode(info, "cpu") == (True, "mjpeg is decoded by DALI on the CPU")
    for change, reason in (
        ({"codec": "h264"}, "codec h264 is not one of vp8, vp9, mjpeg"),
        ({"pixel_format": "yuv422p10le"}, "pixel format yuv422p10le is not 8-bit 4:2:0"),
        ({"rotation": 90}, "the video is rotated by 90 degrees"),
        ({"timed": False}, "the container has no presentation times"),
    ):
        assert can_decode(replace(info, **change), "cpu") == (False, reason)
    if not torch.cuda.is_available():
        assert can_decode(info, "cuda") == (False, "no CUDA device is available")
    with pytest.raises(MediaError, match="rotated by 90 degrees; use the PyAV decoder"):
        next(ClipGraph(CONFIG).decoded(replace(info, rotation=90)))
