"""Opened recordings: real files, written by conftest, read through jmt_fast.media."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jmt_fast.data import OpenRecording, Recording, affwild2, clip_frames, clip_times
from jmt_fast.errors import DataError, MediaError
from jmt_fast.media.images import Jpeg

Make = Callable[..., Path]
TIMES = [0.5, 0.53, 0.6, 0.7, 0.71, 1.0, 1.5]
LEVELS = [0, 40, 80, 120, 160, 200, 240]


def annotated(path: Path, rows: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("valence,arousal\n" + "".join(f"{i / 10},{-i / 10}\n" for i in range(rows)))
    return path


@pytest.fixture
def video(tmp_path: Path, make_video: Make) -> Path:
    return make_video(tmp_path / "v.mp4", LEVELS, TIMES)


def test_timestamps_and_frames_are_the_videos(video: Path) -> None:
    opened = OpenRecording(Recording("v", video))
    np.testing.assert_allclose(opened.timestamps, TIMES, atol=1e-5)
    wanted = np.unique(clip_frames(opened.timestamps, clip_times(opened.timestamps, 4)))
    found = list(opened.frames(wanted))
    assert [index for index, _ in found] == wanted.tolist()
    for index, frame in opened.frames([0, 3, 6]):
        assert frame is not None
        assert frame.shape == (48, 64, 3)
        assert frame.dtype == np.uint8
        assert abs(float(frame.mean()) - LEVELS[index]) < 25  # black may come as 16 by the choice of range
    assert [round(float(frame.mean()) / 40) for _, frame in opened.frames([1, 2, 3, 4, 5]) if frame is not None] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_crops_replace_the_frames_and_missing_ones_are_none(video: Path, tmp_path: Path, make_crops: Make) -> None:
    crops = make_crops(tmp_path / "crops", {0: 10, 1: 60, 4: 200})
    (crops / "00004.jpg").write_bytes(b"no picture")
    opened = OpenRecording(Recording("v", video, crops=crops))
    assert len(opened.timestamps) == len(TIMES)
    found = dict(opened.pictures(range(7)))
    assert [index for index, crop in found.items() if crop is None] == [2, 3, 5, 6]
    for index, level in ((0, 10), (1, 60), (4, 200)):
        crop = found[index]
        assert isinstance(crop, Jpeg)
        assert crop.shape == (112, 112, 3)
        np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(crop.data.tobytes()))), level, atol=2)
    plain = OpenRecording(Recording("v", video))
    for (index, frame), (other, picture) in zip(plain.frames(range(7)), plain.pictures(range(7)), strict=True):
        assert index == other
        np.testing.assert_array_equal(frame, picture)


def test_crops_behind_the_last_frame_give_a_warning(video: Path, tmp_path: Path, make_crops: Make) -> None:
    crops = make_crops(tmp_path / "crops", {0: 10, 7: 20, 9: 30})
    opened = OpenRecording(Recording("v", video, crops=crops))
    with pytest.warns(UserWarning, match="v: 2 face crops lie behind the last of 7 frames"):
        crops = opened.pictures([0, 6])
    assert [crop is None for _, crop in crops] == [False, True]


@pytest.mark.parametrize("rows", [7, 5, 9])
def test_labels_fit_the_frames(video: Path, tmp_path: Path, rows: int, recwarn: pytest.WarningsRecorder) -> None:
    labels = OpenRecording(Recording("v", video, annotated(tmp_path / "v.txt", rows))).labels()
    assert labels.shape == (7, 2)
    kept = min(rows, 7)
    np.testing.assert_allclose(labels[:kept, 0], np.arange(kept) / 10, atol=1e-6)
    assert (labels[kept:] == -5).all()
    messages = [str(warning.message) for warning in recwarn if "annotation rows" in str(warning.message)]
    assert len(messages) == (rows != 7)
    assert all(f"v: {rows} annotation rows for 7 frames" in message for message in messages)


def test_without_annotation_nothing_is_labelled(video: Path) -> None:
    labels = OpenRecording(Recording("v", video)).labels()
    assert labels.shape == (7, 2)
    assert labels.dtype == np.float32
    assert (labels == -5).all()


def test_sound_of_the_video_or_of_a_file_that_begins_with_it(tmp_path: Path, make_video: Make, make_wav: Make) -> None:
    rng = np.random.default_rng(7)
    own, other = rng.uniform(-0.5, 0.5, (2, 16_000))
    video = make_video(tmp_path / "v.mov", LEVELS, TIMES, sound=own, sound_start=0.5)
    silent = make_video(tmp_path / "s.mov", LEVELS, TIMES)
    wav = make_wav(tmp_path / "o.wav", other)

    window = OpenRecording(Recording("v", video)).sound(16_000).window(1.0, 16_000)
    assert window.shape == (16_000,)
    np.testing.assert_allclose(window[8_000:], own[:8_000], atol=1e-3)
    np.testing.assert_array_equal(window[:7_990], 0)

    early = make_video(tmp_path / "e.mov", LEVELS, TIMES, sound=own, sound_start=0.25)
    for path, begin in ((video, 0.5), (silent, 0.5), (early, 0.25)):
        window = OpenRecording(Recording("x", path, sound=wav)).sound(16_000).window(begin + 0.5, 8_000)
        np.testing.assert_allclose(window, other[:8_000], atol=1e-3)
    np.testing.assert_array_equal(OpenRecording(Recording("s", silent)).sound().window(1.0, 47_040), np.zeros(47_040))


def test_bad_files_are_named(video: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"none\.mp4"):
        OpenRecording(Recording("x", tmp_path / "none.mp4"))
    with pytest.raises(DataError, match=r"none\.txt"):
        OpenRecording(Recording("x", video, tmp_path / "none.txt")).labels()


def test_an_affwild2_folder_opens(tmp_path: Path, make_video: Make, make_crops: Make) -> None:
    (tmp_path / "batch1").mkdir()
    make_video(tmp_path / "batch1" / "duo.mp4", LEVELS, TIMES)
    annotated(tmp_path / "annotations" / "VA_Estimation_Challenge" / "Train_Set" / "duo_left.txt", 7)
    make_crops(tmp_path / "cropped_aligned" / "duo_left", {2: 99})
    (recording,) = affwild2(tmp_path)
    opened = OpenRecording(recording)
    assert [index for index, crop in opened.pictures(range(7)) if crop is not None] == [2]
    np.testing.assert_allclose(opened.labels()[:, 0], np.arange(7) / 10, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*annotation from")
def test_a_table_with_times_is_laid_on_the_frames(tmp_path: Path, make_video: Make) -> None:
    """Its 0 is where the file begins: with the first frame, or with the sound before it."""
    csv = tmp_path / "trace.csv"
    csv.write_text("time,valence,arousal\n" + "".join(f"{i / 10},{i / 100},{-i / 100}\n" for i in range(16)))
    for name, start, begin in (("v", None, 0.5), ("e", 0.25, 0.25)):
        sound = None if start is None else np.zeros(16_000)
        video = make_video(tmp_path / f"{name}.mov", LEVELS, TIMES, sound=sound, sound_start=start or 0)
        opened = OpenRecording(Recording(name, video, csv))
        assert opened.begin == pytest.approx(begin, abs=1e-4)
        labels = opened.labels()
        np.testing.assert_allclose(labels[:, 0], (np.array(TIMES) - begin) / 10, atol=1e-5)
        np.testing.assert_allclose(labels[:, 1], -(np.array(TIMES) - begin) / 10, atol=1e-5)


def test_a_folder_without_a_rate_has_no_clock(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="`fps` in a manifest"):
        OpenRecording(Recording("x", tmp_path))
