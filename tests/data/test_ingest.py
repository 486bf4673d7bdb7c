"""`prepare`: what is counted, what differs, what fails, and that nothing shifts."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jmt_fast.data import OpenRecording, Recording, find_afew_va, find_affwild2, labelled, prepare
from jmt_fast.data.layouts import Found

Make = Callable[..., Path]
FRAMES = 12
TIMES = [index / 25 for index in range(FRAMES)]
LEVELS = list(range(0, 240, 20))


def annotated(path: Path, rows: int, unlabelled: tuple[int, ...] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["-5,-5" if index in unlabelled else f"{index / 100},{-index / 100}" for index in range(rows)]
    path.write_text("\n".join(["valence,arousal", *lines]) + "\n")
    return path


@pytest.fixture
def wild(tmp_path: Path, make_video: Make, make_crops: Make) -> Path:
    """Four videos; the second shows two people."""
    train = tmp_path / "VA_Estimation_Challenge" / "Train_Set"
    for name, rows in (("a", FRAMES), ("b_left", FRAMES), ("b_right", FRAMES), ("c", FRAMES + 2), ("d", FRAMES - 3)):
        annotated(train / f"{name}.txt", rows, unlabelled=(1, 2))
    (tmp_path / "videos").mkdir()
    for name in "abcd":
        make_video(tmp_path / "videos" / f"{name}.mp4", LEVELS, TIMES, sound=np.zeros(8_000))
    make_crops(tmp_path / "cropped_aligned" / "a", dict.fromkeys(range(FRAMES), 100))
    make_crops(tmp_path / "cropped_aligned" / "b_left", dict.fromkeys((0, 4, 5), 100))
    make_crops(tmp_path / "cropped_aligned" / "b_right", {})
    make_crops(tmp_path / "cropped_aligned" / "c", dict.fromkeys((3, FRAMES, FRAMES + 1), 100))
    return tmp_path


def test_counts_and_differences(wild: Path) -> None:
    prepared = prepare(find_affwild2(wild), folds=4)
    assert not prepared.failed
    assert not prepared.warnings
    counts = {
        name: (each.rows, each.labelled, each.frames, each.jpegs, each.no_jpeg)
        for name, each in prepared.counts.items()
    }
    assert counts == {
        "a": (12, 10, 12, 12, 0),
        "b_left": (12, 10, 12, 3, 9),
        "b_right": (12, 10, 12, 0, 12),
        "c": (14, 10, 12, 3, 11),
        "d": (9, 7, 12, None, None),
    }
    assert {name: each.differences for name, each in prepared.counts.items()} == {
        "a": (),
        "b_left": (),
        "b_right": ("the folder of face crops is empty: every frame is black",),
        "c": (
            "14 annotation rows for 12 frames; the last 2 rows are not used",
            "3 JPEGs up to number 14 for 12 frames; 2 outside of 1 to 12 are not used",
        ),
        "d": (
            "9 annotation rows for 12 frames; the last 3 frames count as not annotated",
            "no folder of face crops: the video's whole frames are used",
        ),
    }
    assert prepared.splits() == {
        "train": {"trials": 5, "videos": 4, "rows": 59, "labelled": 47, "frames": 60, "jpegs": 18, "no_jpeg": 32}
    }


def test_nothing_shifts(wild: Path) -> None:
    """Row i, JPEG i + 1 and frame i stay together, whatever else differs."""
    for recording in prepare(find_affwild2(wild)).recordings:
        with pytest.warns(UserWarning) if recording.name in ("c", "d") else nullcontext():
            labels = OpenRecording(recording).labels()
        rows = np.flatnonzero(labelled(labels))
        np.testing.assert_allclose(labels[rows, 0], rows / 100, atol=1e-6)


def test_folds_keep_a_video_together_and_leave_the_test_split_out(wild: Path) -> None:
    annotated(wild / "VA_Estimation_Challenge" / "Test_Set" / "a_left.txt", FRAMES)
    prepared = prepare(find_affwild2(wild), folds=3, seed=2)
    folds = {each.name: each.fold for each in prepared.recordings}
    assert folds["a_left"] is None
    assert folds["b_left"] == folds["b_right"]
    assert {folds[name] for name in ("a", "b_left", "c", "d")} == {0, 1, 2}
    table = prepared.folds()
    assert [row["fold"] for row in table] == [0, 1, 2]
    assert sum(row["trials"] for row in table) == 5
    assert sum(row["groups"] for row in table) == 4
    assert sum(row["labelled"] for row in table) == 47
    again = prepare(find_affwild2(wild), folds=3, seed=2)
    assert again.recordings == prepared.recordings


def test_too_few_videos_for_the_folds(wild: Path) -> None:
    prepared = prepare(find_affwild2(wild), folds=5)
    assert {each.fold for each in prepared.recordings} == {None}
    assert prepared.warnings == ["4 videos or subjects are too few for 5 folds: the fold is left empty; lower --folds"]
    assert prepared.folds() == []


def test_what_fails_is_named_and_the_rest_goes_on(wild: Path) -> None:
    train = wild / "VA_Estimation_Challenge" / "Train_Set"
    lines = (train / "a.txt").read_text().splitlines()
    lines[5] = "0.1;0.2"
    (train / "a.txt").write_text("\n".join(lines))
    whole = (wild / "videos" / "b.mp4").read_bytes()
    (wild / "videos" / "b.mp4").write_bytes(whole[: len(whole) // 3])
    annotated(train / "gone.txt", 4)
    prepared = prepare(find_affwild2(wild), folds=2)
    assert [each.name for each in prepared.recordings] == ["c", "d"]
    assert {each.fold for each in prepared.recordings} == {0, 1}
    assert prepared.failed.keys() == {"a", "b_left", "b_right", "gone"}
    assert str(prepared.failed["a"]).startswith(f"{train / 'a.txt'}:6: expected 2 columns")
    for name in ("b_left", "b_right"):
        assert str(wild / "videos" / "b.mp4") in str(prepared.failed[name])
    everything = json.loads(json.dumps(prepared.as_dict()))
    assert everything["failed"].keys() == prepared.failed.keys()
    assert everything["trials"]["c"]["differences"] == list(prepared.counts["c"].differences)


def test_annotations_without_any_label_and_without_rows(wild: Path) -> None:
    train = wild / "VA_Estimation_Challenge" / "Train_Set"
    annotated(train / "a.txt", FRAMES, tuple(range(FRAMES)))
    (train / "c.txt").write_text("valence,arousal\n")
    counts = prepare(find_affwild2(wild)).counts
    assert counts["a"].differences == ("no frame is annotated",)
    assert counts["c"].differences[:2] == (
        "0 annotation rows for 12 frames; the last 12 frames count as not annotated",
        "no frame is annotated",
    )


def test_jpegs_of_other_names_do_not_count(wild: Path) -> None:
    crops = wild / "cropped_aligned" / "a"
    (crops / "00003.jpg").rename(crops / "3.jpg")
    (crops / "00004.jpg").rename(crops / "frame_00004.jpg")
    (crops / "00005.jpg").rename(crops / "00005.JPG")
    (crops / "00006.jpg").rename(crops / "000006.jpg")
    counts = prepare(find_affwild2(wild)).counts["a"]
    assert (counts.jpegs, counts.no_jpeg) == (FRAMES - 4, 4)
    assert counts.differences == ("4 JPEGs are not named as 00001.jpg is and are not used",)


def test_a_video_without_sound_and_one_that_is_not_annotated(tmp_path: Path, make_video: Make) -> None:
    recording = Recording("v", make_video(tmp_path / "v.mp4", LEVELS, TIMES))
    [counts] = prepare(Found([recording])).counts.values()
    assert (counts.rows, counts.labelled, counts.frames, counts.jpegs) == (0, 0, FRAMES, None)
    assert counts.differences == ("the video has no sound: silence is used",)
    wav = tmp_path / "v.wav"
    wav.touch()
    assert not prepare(Found([replace(recording, sound=wav)])).counts["v"].differences


@pytest.fixture
def afew(tmp_path: Path) -> Path:
    """Three clips of two actors; the second one's JSON knows a frame that has no picture, and one picture is lost."""
    for number, (actor, pictures, keys) in enumerate(
        (("Ann", range(6), range(6)), ("Ann", (0, 1, 3, 4), range(6)), ("Bob", range(6), range(4))), start=1
    ):
        folder = tmp_path / f"{number:02d}" / f"{number:03d}"
        folder.mkdir(parents=True)
        for index in pictures:
            Image.new("RGB", (64, 48), (40 * index,) * 3).save(folder / f"{index:05d}.png")
        frames = {f"{index:05d}": {"valence": index, "arousal": -index, "landmarks": []} for index in keys}
        (folder / f"{folder.name}.json").write_text(json.dumps({"actor": actor, "frames": frames}))
    return tmp_path


def test_afew_va(afew: Path) -> None:
    prepared = prepare(find_afew_va(afew), folds=2)
    assert not prepared.failed
    counts = {
        name: (each.rows, each.labelled, each.frames, each.jpegs, each.no_jpeg)
        for name, each in prepared.counts.items()
    }
    assert counts == {"001": (6, 6, 6, 6, 0), "002": (6, 5, 5, 4, 1), "003": (4, 4, 6, 6, 0)}
    assert {name: each.differences for name, each in prepared.counts.items()} == {
        "001": (),
        "002": ("6 annotation rows for 5 frames; the last 1 rows are not used",),
        "003": ("4 annotation rows for 6 frames; the last 2 frames count as not annotated",),
    }
    folds = {each.name: each.fold for each in prepared.recordings}
    assert folds["001"] == folds["002"] != folds["003"]

    opened = OpenRecording(prepared.recordings[1])
    np.testing.assert_allclose(opened.timestamps, np.arange(5) / 25)
    assert [frame is None for _, frame in opened.frames(range(5))] == [False, False, True, False, False]
    assert [int(frame.mean()) for _, frame in opened.frames([1, 4]) if frame is not None] == [40, 160]
    with pytest.warns(UserWarning, match="6 annotation rows for 5 frames"):
        np.testing.assert_allclose(opened.labels()[:, 1], -np.arange(5) / 10, atol=1e-6)
    assert not opened.sound().window(0.2, 4_410).any()


def test_progress_reaches_the_end(wild: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    prepare(find_affwild2(wild), progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == [0, 1, 2, 3, 4, 5]
    assert {total for _, total, _ in seen} == {5}
    assert [name for _, _, name in seen] == ["a", "b_left", "b_right", "c", "d", ""]
