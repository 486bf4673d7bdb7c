from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from jmt_fast.config import FrameConfig
from jmt_fast.data.graph import ClipGraph
from jmt_fast.errors import MediaError
from jmt_fast.media import ImageFolder
from jmt_fast.media.images import Jpeg

EOI = b"\xff\xd9"


def pixels(jpeg: Jpeg) -> np.ndarray:
    """As the media graph decodes it, in its own size."""
    graph = ClipGraph(FrameConfig(resize=min(jpeg.shape[:2]), crop=8), threads=1)
    return graph.resized([[jpeg]])[0][0].numpy()


def encoded(picture: np.ndarray, mode: str = "RGB", **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(data, "JPEG", **options)
    return data.getvalue()


@pytest.fixture
def folder(tmp_path, kit):
    """Frames 0, 1, 3 and 4 of six; 3 is no JPEG and 4 is an empty file; 1 is progressive and of another size."""
    for index, size, progressive in ((0, (112, 112), False), (1, (96, 60), True)):
        Image.fromarray(kit.numbered(index + 9, *size)).save(
            tmp_path / f"{index + 1:05d}.jpg", quality=95, progressive=progressive
        )
    (tmp_path / "00004.jpg").write_bytes(b"no picture at all")
    (tmp_path / "00005.jpg").write_bytes(b"")
    return tmp_path


def test_frames_and_holes(folder, kit):
    seen = dict(enumerate(ImageFolder(folder, 6)))
    assert sorted(seen) == list(range(6))
    assert seen[0].shape == (112, 112, 3) and seen[1].shape == (60, 96, 3)
    for index in (0, 1):
        decoded = pixels(seen[index])
        assert kit.number_of(decoded) == index + 9
        assert decoded.shape == seen[index].shape and decoded.nbytes == seen[index].nbytes
        assert seen[index].data.tobytes() == (folder / f"{index + 1:05d}.jpg").read_bytes()
    assert all(seen[index] is None for index in (2, 3, 4, 5))


def test_any_order(folder, kit):
    frames = ImageFolder(folder, 6)
    for index in (3, 0, 4, 1, 2, 0):
        frame = frames[index]
        assert (frame is not None) == (index < 2)
        if frame is not None:
            assert kit.number_of(pixels(frame)) == index + 9
    assert len(frames) == 6


@pytest.mark.parametrize("subsampling", [0, 2], ids=["4:4:4", "4:2:0"])
def test_colours(tmp_path, subsampling):
    """Against the picture that was saved: a smooth one, so that JPEG itself loses little."""
    ramp = np.linspace(30, 220, 112)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, ::-1], np.full((1, 1), 90.0)), axis=2).astype(
        np.uint8
    )
    Image.fromarray(picture).save(tmp_path / "00001.jpg", quality=98, subsampling=subsampling)
    frame = pixels(ImageFolder(tmp_path, 1)[0])
    assert np.abs(frame.astype(int) - picture).max() <= 6
    assert np.abs(frame.astype(int) - picture).mean() <= 1.5


@pytest.mark.parametrize("progressive", [False, True])
def test_a_file_cut_short_is_no_picture(kit, progressive):
    """Decoders would paint the rest grey, or the rest of the detail; the end marker alone of a thumbnail is not it."""
    plain = encoded(kit.numbered(5, 112, 112), quality=95, progressive=progressive)
    thumbnail = b"\xff\xe1" + (2 + len(plain)).to_bytes(2) + plain
    whole = plain[:2] + thumbnail + plain[2:]
    assert Jpeg.of(plain).shape == Jpeg.of(whole).shape == (112, 112, 3)
    assert kit.number_of(pixels(Jpeg.of(whole))) == 5
    for data in (plain, whole):
        for end in np.linspace(0, len(data) - 1, 41).astype(int):
            assert Jpeg.of(data[:end]) is None
            assert Jpeg.of(data[:end] + bytes(len(data) - end)) is None  # as a crash of the file system leaves it
        assert Jpeg.of(data + bytes(100)).shape == (112, 112, 3)


def test_what_is_not_a_jpeg_of_a_usable_size(kit):
    data = encoded(kit.numbered(5, 112, 112))
    png = io.BytesIO()
    Image.fromarray(kit.numbered(5, 112, 112)).save(png, "PNG")
    at = data.index(b"\xff\xc0")
    bad = [data[: at + 5] + size + data[at + 9 :] for size in (b"\0\0\0\x70", b"\0\x70\0\0", b"\x40\x01\0\x70")]
    for each in (b"", b"\xff", b"\xff\xd8", b"\xff\xd8" + EOI, b"\xff" * 200 + EOI, data[1:], png.getvalue(), *bad):
        assert Jpeg.of(each) is None
    assert Jpeg.of(encoded(np.zeros((1, 2**14, 3), np.uint8))).shape == (1, 2**14, 3)
    assert Jpeg.of(encoded(np.zeros((2**14 + 1, 1, 3), np.uint8))) is None
    filled = data[:at] + b"\xff\xff" + data[at:]  # fill bytes before a marker
    assert np.array_equal(pixels(Jpeg.of(filled)), pixels(Jpeg.of(data)))


def test_wrong_use(tmp_path):
    with pytest.raises(MediaError, match="no such folder"):
        ImageFolder(tmp_path / "gone", 3)
    for index in (-1, 3):
        with pytest.raises(IndexError, match="3 frames"):
            ImageFolder(tmp_path, 3)[index]
