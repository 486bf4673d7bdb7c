"""Data sets as they lie on disk: who is found in which file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jmt_fast.data import affwild2, find_afew_va, find_affwild2, load, read_manifest, write_manifest
from jmt_fast.errors import DataError


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def wild(tmp_path: Path) -> Path:
    """Aff-Wild2 as it lies on disk: two persons in one video, one of them under the plain name, crops for some."""
    root = tmp_path / "Aff-Wild2"
    for video in ("batch1/1-30.mp4", "batch1/two.avi", "batch2/duo.MP4", "batch2/up_left.mp4", "batch2/up.mp4"):
        touched(root / video)
    annotations = root / "annotations" / "VA_Estimation_Challenge"
    for trial in ("1-30", "two_left", "two_right", "duo", "duo_right"):
        touched(annotations / "Train_Set" / f"{trial}.txt")
    for trial in ("up_left", "up", "up_main"):
        touched(annotations / "Validation_Set" / f"{trial}.txt")
    touched(annotations / "Train_Set" / "._1-30.txt")
    for trial in ("1-30", "two_right"):
        touched(root / "cropped_aligned" / trial / "00001.jpg")
    touched(root / "cropped_aligned" / "1-30" / "video.mp4")
    return root


def test_affwild2_finds_video_person_and_crops(wild: Path) -> None:
    found = {item.name: item for item in load(wild)}
    assert {name: (item.video.name, item.person, item.split) for name, item in found.items()} == {
        "1-30": ("1-30.mp4", "0", "train"),
        "two_left": ("two.avi", "left", "train"),
        "two_right": ("two.avi", "right", "train"),
        "duo": ("duo.MP4", "0", "train"),
        "duo_right": ("duo.MP4", "right", "train"),
        "up": ("up.mp4", "0", "validation"),
        "up_left": ("up_left.mp4", "0", "validation"),
        "up_main": ("up.mp4", "main", "validation"),
    }
    assert {name: item.crops for name, item in found.items() if item.crops} == {
        "1-30": wild / "cropped_aligned" / "1-30",
        "two_right": wild / "cropped_aligned" / "two_right",
    }
    for name, item in found.items():
        assert item.annotation is not None
        assert item.annotation.name == f"{name}.txt"


@pytest.mark.parametrize("place", ["VA_Estimation_Challenge", "6th_ABAW/VA_Estimation_Challenge"])
def test_affwild2_annotations_in_other_places(wild: Path, place: str) -> None:
    before = affwild2(wild)
    (wild / place).parent.mkdir(exist_ok=True)
    (wild / "annotations" / "VA_Estimation_Challenge").rename(wild / place)
    assert [(item.name, item.split) for item in affwild2(wild)] == [(item.name, item.split) for item in before]
    touched(wild / "copy" / "VA_Estimation_Challenge" / "Train_Set" / "1-30.txt")
    if "/" in place:
        with pytest.raises(DataError, match="several annotation folders"):
            affwild2(wild)
    else:
        assert len(affwild2(wild)) == len(before)


def test_affwild2_survives_a_manifest_and_a_circle_of_links(wild: Path) -> None:
    (wild / "batch1" / "up again").symlink_to(wild)
    found = affwild2(wild)
    write_manifest(found, wild / "manifest.csv")
    assert read_manifest(wild / "manifest.csv") == found


def test_affwild2_test_set(wild: Path) -> None:
    touched(wild / "annotations" / "VA_Estimation_Challenge" / "Test_Set" / "up_right.txt")
    last = affwild2(wild)[-1]
    assert (last.name, last.split, last.video.name) == ("up_right", "test", "up.mp4")


def test_trials_without_video_are_named(wild: Path) -> None:
    train = wild / "annotations" / "VA_Estimation_Challenge" / "Train_Set"
    touched(train / "gone.txt")
    with pytest.raises(DataError, match=r"1 trials cannot be used: .*gone\.txt: trial gone has no video;"):
        affwild2(wild)
    touched(wild / "cropped_aligned" / "gone" / "00001.jpg")
    with pytest.raises(DataError, match=r"gone has face crops but no video, .* clock and sound; add gone\.mp4"):
        affwild2(wild)


def test_doubtful_folders_are_refused(wild: Path) -> None:
    other = touched(wild / "batch2" / "1-30.avi")
    with pytest.raises(DataError, match=r"trial 1-30 has 2 videos: .*1-30\.mp4, .*1-30\.avi"):
        affwild2(wild)
    other.unlink()
    touched(wild / "annotations" / "VA_Estimation_Challenge" / "Validation_Set" / "duo.txt")
    with pytest.raises(DataError, match="trial duo is in Train_Set and Validation_Set; remove one"):
        affwild2(wild)


def test_folders_without_annotations_say_what_was_looked_for(tmp_path: Path) -> None:
    touched(tmp_path / "a.mp4")
    for root in (tmp_path, tmp_path / "a.mp4", tmp_path / "none"):
        with pytest.raises(DataError, match="VA_Estimation_Challenge") as caught:
            affwild2(root)
        assert str(caught.value).startswith(str(root))
    (tmp_path / "VA_Estimation_Challenge" / "Train_Set").mkdir(parents=True)
    with pytest.raises(DataError, match="no annotations; looked for"):
        load(tmp_path)


def test_refused_trials_leave_the_others(wild: Path) -> None:
    before = {item.name: item for item in affwild2(wild)}
    touched(wild / "batch2" / "1-30.avi")
    annotations = wild / "annotations" / "VA_Estimation_Challenge"
    touched(annotations / "Validation_Set" / "duo.txt")
    touched(annotations / "Validation_Set" / "gone.txt")
    found = find_affwild2(wild)
    assert found.failed.keys() == {"1-30", "duo", "gone"}
    assert {item.name: item for item in found.recordings} == {
        name: item for name, item in before.items() if name not in found.failed
    }
    with pytest.raises(DataError, match="3 trials cannot be used"):
        affwild2(wild)


def clip(root: Path, name: str, clip: object) -> Path:
    folder = root / name
    touched(folder / "00000.png")
    (folder / f"{folder.name}.json").write_text(json.dumps(clip))
    return folder


def test_afew_va_finds_clips_and_actors(tmp_path: Path) -> None:
    entry = {"landmarks": [[1.5, 2.5]], "valence": 3.0, "arousal": -7.0}
    folders = [
        clip(tmp_path, "01/002", {"video_id": "000150240", "actor": "Ann B", "frames": {"00000": entry}}),
        clip(tmp_path, "01/001", {"frames": {}, "actor": ""}),
        clip(tmp_path, "02/101", {"frames": {"00000": entry}}),
    ]
    touched(tmp_path / "01" / "notes.json")
    found = find_afew_va(tmp_path, fps=24)
    assert not found.failed
    assert [(item.name, item.video, item.subject) for item in found.recordings] == [
        ("001", folders[1], None),
        ("002", folders[0], "Ann B"),
        ("101", folders[2], None),
    ]
    assert all(item.annotation == item.video / f"{item.name}.json" for item in found.recordings)
    assert {(item.split, item.fps, item.person) for item in found.recordings} == {(None, 24, "0")}


def test_afew_va_names_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no clips of AFEW-VA; looked for <clip>/<clip>\.json"):
        find_afew_va(tmp_path)
    clip(tmp_path, "01/001", {"frames": {}})
    clip(tmp_path, "02/001", {"frames": {}})
    clip(tmp_path, "01/003", ["no", "clip"])
    broken = clip(tmp_path, "01/004", {}) / "004.json"
    broken.write_text('{"frames": {\n"00000": {')
    found = find_afew_va(tmp_path)
    assert [item.name for item in found.recordings] == ["001"]
    assert found.failed.keys() == {"02/001", "01/003", "01/004"}
    assert "second clip 001" in str(found.failed["02/001"])
    assert "no `frames`" in str(found.failed["01/003"])
    assert str(found.failed["01/004"]).startswith(f"{broken}:2: not JSON")
