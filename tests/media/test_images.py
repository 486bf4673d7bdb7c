from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jmt_fast.errors import MediaError
from jmt_fast.media import ImageFolder, images


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
    seen = dict(images(folder, 6))
    assert sorted(seen) == list(range(6))
    assert [kit.number_of(seen[index]) for index in (0, 1)] == [9, 10]
    assert seen[0].shape == (112, 112, 3) and seen[1].shape == (60, 96, 3) and seen[0].dtype == np.uint8
    assert all(seen[index] is None for index in (2, 3, 4, 5))


def test_a_bad_file_does_not_spoil_the_next(folder, kit):
    frames = ImageFolder(folder, 6)
    for index in (3, 0, 4, 1, 2, 0):
        frame = frames[index]
        assert (frame is not None) == (index < 2)
        if frame is not None:
            assert kit.number_of(frame) == index + 9
    assert len(frames) == 6


@pytest.mark.parametrize("subsampling", [0, 2], ids=["4:4:4", "4:2:0"])
def test_colours(tmp_path, subsampling):
    """Against the picture that was saved: a smooth one, so that JPEG itself loses little."""
    ramp = np.linspace(30, 220, 112)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, ::-1], np.full((1, 1), 90.0)), axis=2).astype(
        np.uint8
    )
    Image.fromarray(picture).save(tmp_path / "00001.jpg", quality=98, subsampling=subsampling)
    frame = ImageFolder(tmp_path, 1)[0]
    assert np.abs(frame.astype(int) - picture).max() <= 6
    assert np.abs(frame.astype(int) - picture).mean() <= 1.5


def test_wrong_use(tmp_path):
    with pytest.raises(MediaError, match="no such folder"):
        ImageFolder(tmp_path / "gone", 3)
    for index in (-1, 3):
        with pytest.raises(IndexError, match="3 frames"):
            ImageFolder(tmp_path, 3)[index]
