"""Frames that are shrunk as they are decoded, against the whole frame's conversion and a resize in FP64."""

from __future__ import annotations

import av
import numpy as np
import pytest

from jmt_fast.media import probe, select
from jmt_fast.media.colour import ToRGB, resized_size

SIZES = [(640, 360), (360, 640), (641, 359), (300, 258), (1080, 1920), (1500, 300)]  # width, height

RGB = {"codec": "ffv1", "suffix": "mkv", "pixel_format": "bgr0"}


def triangle(source: int, target: int) -> np.ndarray:
    """(target, source) weights of linear resampling with antialiasing; at the ends the edge pixel is repeated."""
    step = source / target
    weights = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * step - 0.5
        taps = np.arange(np.floor(centre - step), np.ceil(centre + step) + 1)
        values = np.maximum(0, 1 - np.abs(taps - centre) / step)
        np.add.at(weights[row], np.clip(taps, 0, source - 1).astype(int), values / values.sum())
    return weights


def error(frame: av.VideoFrame, shorter: int) -> np.ndarray:
    """Distance, in grey levels, of the shrunk frame from the whole one resized in FP64."""
    whole, got = ToRGB()(frame).astype(np.float64), ToRGB(shorter)(frame)
    tall, wide = resized_size(frame.height, frame.width, shorter)
    assert got.shape == (tall, wide, 3) and min(tall, wide) == shorter
    down, across = triangle(frame.height, tall), triangle(frame.width, wide)
    return np.abs(got - np.einsum("ij,jkc,lk->ilc", down, whole, across, optimize=True))


def squares(width: int, height: int, block: int) -> np.ndarray:
    """Squares of `block` pixels, each of any colour."""
    shape = (-(-height // block), -(-width // block), 3)
    colours = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8, endpoint=True)
    return colours.repeat(block, 0).repeat(block, 1)[:height, :width]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12", "rgb24"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("block", [1, 24])
def test_frames_are_shrunk_as_the_media_graph_shrinks(size, pixel_format, block):
    """Noise and saturated edges. FFmpeg's weights are rounded, and add up a little differently at the frame's edge."""
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(squares(*size, block)), "rgb24")
    off = error(picture.reformat(format=pixel_format), 256)
    assert off.mean() < 0.3
    assert off[1:-1, 1:-1].max() < 2
    assert off.max() < 8


@pytest.mark.parametrize("fields", [{}, {"rotation": 90}, {"rotation": 180}, {"rotation": 270}, RGB], ids=str)
def test_videos_turned_or_not(film, fields):
    path = film(size=(96, 64), keyframes=11, **fields)
    whole = {index: frame for index, _, frame in select(path, range(0, 40, 7))}
    shrunk = {index: frame for index, _, frame in select(path, range(0, 40, 7), shorter=48)}
    assert shrunk.keys() == whole.keys()
    for index, frame in shrunk.items():
        assert (
            frame.shape == ((72, 48, 3) if fields.get("rotation") in (90, 270) else (48, 72, 3))
            and frame.flags.c_contiguous
        )
        down, across = (triangle(whole[index].shape[axis], frame.shape[axis]) for axis in (0, 1))
        expected = np.einsum("ij,jkc,lk->ilc", down, whole[index].astype(np.float64), across)
        assert np.abs(frame - expected).max() < 3


@pytest.mark.parametrize("shorter", [64, 200])
def test_small_frames_stay_as_they_are(film, shorter):
    path = film(size=(96, 64))
    for one, other in zip(select(path, range(9), shorter=shorter), select(path, range(9)), strict=True):
        np.testing.assert_array_equal(one[2], other[2])


def test_a_size_that_changes_on_the_way(tmp_path):
    """Every frame comes out in the size that the first one shrinks to."""
    path = tmp_path / "sizes.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for number, (width, height) in enumerate([(96, 64), (96, 64), (200, 100), (40, 30)]):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
            encoder.time_base = stream.time_base = 1 / stream.average_rate
            picture = np.full((height, width, 3), 50 * number + 20, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = number, encoder.time_base
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream = stream
                packet.pts = packet.dts = round(number * encoder.time_base / stream.time_base)
                container.mux(packet)
    assert (probe(path).width, probe(path).height) == (96, 64)
    got = [frame for _, _, frame in select(path, range(4), shorter=32)]
    assert [frame.shape for frame in got] == 4 * [(32, 48, 3)]
    assert [round(float(frame.mean())) for frame in got] == pytest.approx([20, 70, 120, 170], abs=2)
