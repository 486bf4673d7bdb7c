from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jmt_fast.errors import MediaError
from jmt_fast.media.stills import Stills


def picture(path, level: int, mode: str = "RGB", size=(20, 12)):
    Image.new("RGB", size, (level, level, level)).convert(mode).save(path)


def test_the_number_in_the_name_is_the_frame(tmp_path):
    picture(tmp_path / "00001.png", 40)
    picture(tmp_path / "00004.jpg", 120)
    picture(tmp_path / "00002.png", 90, "L")
    picture(tmp_path / "00005.png", 204, "P")
    picture(tmp_path / "cover.png", 255)
    (tmp_path / "00003.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    (tmp_path / "001.json").write_text("{}")
    clip = Stills(tmp_path, 25.0)
    assert clip.pictures == 5
    assert (clip.info.frames, clip.info.fps, clip.info.width, clip.info.height) == (6, 25.0, 20, 12)
    assert np.allclose(clip.info.timestamps, np.arange(6) / 25)
    seen = dict(clip.frames(range(6)))
    assert [index for index, frame in seen.items() if frame is None] == [0, 3]
    for index, level in ((1, 40), (2, 90), (4, 120), (5, 204)):
        assert seen[index].shape == (12, 20, 3) and seen[index].dtype == np.uint8
        assert np.allclose(seen[index], level, atol=2)


def test_bad_folders_are_named(tmp_path):
    for folder, reason in ((tmp_path / "gone", "not a readable folder"), (tmp_path, "no numbered pictures")):
        with pytest.raises(MediaError, match=reason):
            Stills(folder, 25.0)
    (tmp_path / "00000.png").write_bytes(b"")
    with pytest.raises(MediaError, match=r"00000\.png: not a picture"):
        Stills(tmp_path, 25.0)
    picture(tmp_path / "0.jpg", 9)
    with pytest.raises(MediaError, match="a second picture of frame 0"):
        Stills(tmp_path, 25.0)
