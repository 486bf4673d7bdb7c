"""JPEGs decoded inside the graph, against Pillow's decode fed to the same graph."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from nvidia.dali import fn
from PIL import Image

from jmt_fast.config import FrameConfig
from jmt_fast.data.graph import ClipGraph, ops
from jmt_fast.errors import DataError
from jmt_fast.media.images import Jpeg

CONFIG = FrameConfig(resize=48, crop=40)
LEVEL = 1.001  # grey levels: both are libjpeg-turbo, whose versions may round otherwise; here the difference is 0


@pytest.fixture(scope="module")
def graph() -> ClipGraph:
    return ClipGraph(CONFIG)


def jpeg(rng: np.random.Generator, height: int = 112, width: int = 112, mode: str = "RGB", **options) -> bytes:
    """Noise over a colour ramp, where every way to interpolate chroma gives other pixels."""
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = np.stack([2 * rows, 2 * columns, 255 - rows - columns], -1) % 256
    picture = np.clip(ramp + rng.integers(-60, 61, ramp.shape), 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(data, "JPEG", **{"quality": 90, **options})
    return data.getvalue()


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def levels(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of two normalised batches in grey levels."""
    return float(((a - b).abs() * 255 * torch.tensor(CONFIG.std).view(3, 1, 1)).max())


def without_tables(data: bytes) -> bytes:
    """Whole and of the right size, but its quantisation tables are called comments: no decoder can read it."""
    return data.replace(b"\xff\xdb", b"\xff\xfe")


ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((112, 112), {}),
        ((112, 112), {"subsampling": 0}),
        ((97, 131), {"subsampling": 1, "progressive": True}),
        ((48, 48), {"restart_marker_blocks": 2}),
        ((31, 200), {"mode": "L"}),
        ((64, 80), {"mode": "CMYK"}),
        ((60, 90), {"exif": ORIENTED}),
        ((1, 1), {}),
    ],
)
def test_as_pillow_decodes_it(graph, size, options):
    rng = np.random.default_rng(0)
    data = [jpeg(rng, *size, **options) for _ in range(3)]
    jpegs, arrays = [Jpeg.of(each) for each in data], [opened(each) for each in data]
    assert all(encoded.shape == array.shape for encoded, array in zip(jpegs, arrays, strict=True))
    where = {"crop_x": [0.3], "crop_y": [0.9], "mirror": [True]}
    assert levels(graph.frames([jpegs], **where)[0], graph.frames([arrays], **where)[0]) <= LEVEL
    [decoded], [fed] = graph.resized([jpegs]), graph.resized([arrays])
    assert decoded.dtype == torch.uint8 and decoded.shape == fed.shape
    assert (decoded.int() - fed.int()).abs().max() <= LEVEL


def test_sizes_may_differ_and_calls_may_be_large(graph):
    rng = np.random.default_rng(1)
    data = [jpeg(rng, *rng.integers(20, 90, 2)) for _ in range(30)] * 10
    sequences = [data[:1], data[1:4], data[4:]]
    got = graph.frames([[Jpeg.of(each) for each in sequence] for sequence in sequences])
    want = graph.frames([[opened(each) for each in sequence] for sequence in sequences])
    assert [len(part) for part in got] == [1, 3, 296]
    assert max(levels(a, b) for a, b in zip(got, want, strict=True)) <= LEVEL
    with pytest.raises(ValueError, match="different sizes"):
        graph.resized([[Jpeg.of(each) for each in data[:2]]])


def test_a_bad_one_among_forty_is_found_and_fails_no_later_call(graph):
    rng = np.random.default_rng(2)
    data = [jpeg(rng) for _ in range(41)]
    jpegs = [Jpeg.of(each) for each in data]
    want = graph.frames([jpegs])[0]
    jpegs[17] = Jpeg.of(without_tables(data[17]))
    for call in (graph.frames, graph.resized):
        with pytest.raises(DataError, match="media graph on cpu"):
            call([jpegs])
    kept = graph.decodable([*enumerate(jpegs), (41, None), (42, opened(data[0]))])
    assert [index for index, frame in kept] == list(range(43))
    assert [index for index, frame in kept if frame is None] == [17, 41]
    good = [index for index in range(41) if index != 17]
    assert torch.equal(graph.frames([[jpegs[index] for index in good]])[0], want[good])


def test_a_graph_that_decodes_nothing_does_not_blame_the_files(monkeypatch):
    """With a decoder that is broken, or no memory, all frames would silently become black."""
    graph = ClipGraph(CONFIG)
    frames = [(0, Jpeg.of(jpeg(np.random.default_rng(3))))]
    monkeypatch.setattr(ops, "jpeg", lambda data, device: fn.decoders.image(data * np.uint8(0), device="cpu"))
    with pytest.raises(DataError, match="media graph on cpu"):
        graph.decodable(frames)


def test_jpegs_and_arrays_do_not_mix(graph):
    data = jpeg(np.random.default_rng(3))
    for call in (graph.frames, graph.resized):
        with pytest.raises(ValueError, match="some frames are Jpegs"):
            call([[Jpeg.of(data), opened(data)]])
