from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jmt_fast.data import Recording, affwild2, load, read_manifest, write_manifest
from jmt_fast.errors import DataError


def touched(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A folder with the files that the manifests of this module name."""
    for name in ("a.mp4", "b.mp4", "a.txt", "b.txt", "b.wav"):
        touched(tmp_path / "files" / name)
    (tmp_path / "crops" / "b").mkdir(parents=True)
    return tmp_path


def csv(folder: Path, text: str) -> Path:
    path = folder / "manifest.csv"
    path.write_text(text)
    return path


def test_a_minimal_csv_gets_the_defaults(collection: Path) -> None:
    path = csv(collection, "video,annotation,split\nfiles/a.mp4,files/a.txt,train\nfiles/b.mp4,,\n")
    first, second = read_manifest(path)
    folder = collection / "files"
    assert first == Recording("a", folder / "a.mp4", folder / "a.txt", "train")
    assert second == Recording("b", folder / "b.mp4")
    assert (second.person, second.fold, second.sound, second.crops) == ("0", None, None, None)
    assert load(path) == [first, second]


def test_optional_columns_and_others(collection: Path) -> None:
    path = csv(collection, "name,comment,video,annotation,split,sound,person,fold,crops\n"
                           f"001,x,{collection}/files/b.mp4,files/b.txt,test,files/b.wav,left,3,crops/b\n")
    files = collection / "files"
    crops = collection / "crops" / "b"
    assert read_manifest(path) == [
        Recording("001", files / "b.mp4", files / "b.txt", "test", files / "b.wav", "left", 3, crops)]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_written_manifests_come_back(collection: Path, suffix: str) -> None:
    files = collection / "files"
    recordings = [
        Recording("007", files / "a.mp4", files / "a.txt", "train", fold=1),
        Recording("b, the \"second\"", files / "b.mp4", files / "b.txt", "validation", files / "b.wav", "right", 2,
                  collection / "crops" / "b"),
        Recording("c", files / "b.mp4"),
    ]
    (collection / "lists").mkdir()
    path = collection / "lists" / f"manifest.{suffix}"
    write_manifest(recordings, path)
    read = read_manifest(path)
    for one, other in zip(read, recordings, strict=True):
        for kind in ("video", "annotation", "sound", "crops"):
            file, wanted = getattr(one, kind), getattr(other, kind)
            assert (file and os.path.normpath(file)) == (wanted and os.path.normpath(wanted))
        assert (one.name, one.split, one.person, one.fold) == (other.name, other.split, other.person, other.fold)
    assert str(collection).encode() not in path.read_bytes(), "paths must be relative"

    moved = collection.with_name(collection.name + "-moved")
    collection.rename(moved)
    assert [item.name for item in read_manifest(moved / "lists" / path.name)] == [item.name for item in recordings]


def test_paths_through_links_stay_valid(collection: Path) -> None:
    (collection / "deep" / "er").mkdir(parents=True)
    (collection / "link").symlink_to(collection / "deep" / "er")
    (collection / "files" / "alias.mp4").symlink_to(collection / "files" / "a.mp4")
    path = collection / "link" / "manifest.csv"
    write_manifest([Recording("x", collection / "files" / "alias.mp4")], path)
    (read,) = read_manifest(path)
    assert read.video.name == "alias.mp4"
    assert read.video.samefile(collection / "files" / "a.mp4")


def test_parquet_types_of_other_writers(collection: Path) -> None:
    """Numbers for names, and folds as floats: pandas has no integers beside empty fields."""
    path = collection / "manifest.parquet"
    table = {"video": ["files/a.mp4", "files/b.mp4"], "annotation": pa.nulls(2), "split": ["train", None],
             "name": [1, 2], "fold": [3.0, None]}
    pq.write_table(pa.table(table), path)
    found = [(item.name, item.fold, item.split) for item in read_manifest(path)]
    assert found == [("1", 3, "train"), ("2", None, None)]


@pytest.mark.parametrize(("text", "reason"), [
    ("video,split\nfiles/a.mp4,train\n", "no columns `annotation`"),
    ("video,annotation,split,video\nfiles/a.mp4,,train,x\n", "2 columns `video`"),
    ("video,annotation,split\n", "no rows"),
    ("", "not a readable csv"),
    ("video,annotation,split\nfiles/a.mp4\n", "not a readable csv"),
    ("video,annotation,split\nfiles/a.mp4,,dev\n", "row 1: unknown split 'dev'"),
    ("video,annotation,split\nfiles/a.mp4,,\n,,train\n", "row 2: `video` is empty"),
    ("video,annotation,split,fold\nfiles/a.mp4,,,one\n", "row 1: fold 'one'"),
    ("video,annotation,split,name\nfiles/a.mp4,,,x/y\n", "row 1: name 'x/y'"),
    ("video,annotation,split\nfiles/a.mp4,,\nfiles/a.mp4,,\n", "names must be unique, these are not: a;"),
])
def test_wrong_manifests_are_named(collection: Path, text: str, reason: str) -> None:
    path = csv(collection, text)
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert reason in message
    assert "\n" not in message


def test_missing_files_are_counted_and_the_first_listed(collection: Path) -> None:
    rows = "".join(f"files/no{i}.mp4,files/a.txt,train\n" for i in range(5))
    path = csv(collection, "video,annotation,split\nfiles/a.mp4,files/none.txt,train\n" + rows)
    with pytest.raises(DataError, match=r"6 files are missing: .*none\.txt, .*no0\.mp4, .*no1\.mp4 and 3 more"):
        read_manifest(path)


def test_unreadable_manifests_are_named(collection: Path) -> None:
    broken = collection / "broken.parquet"
    broken.write_bytes(b"PAR1 not really")
    latin = collection / "latin.csv"
    latin.write_bytes("video,annotation,split\nfiles/\xe9.mp4,,\n".encode("latin-1"))
    for path in (broken, latin, collection / "none.csv", collection / "files" / "a.txt"):
        with pytest.raises(DataError, match=path.name):
            load(path)
    with pytest.raises(DataError, match="cannot write"):
        write_manifest([], collection / "no folder" / "manifest.csv")
    with pytest.raises(DataError, match=r"\.csv or \.parquet"):
        write_manifest([], collection / "manifest.json")


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
        "1-30": wild / "cropped_aligned" / "1-30", "two_right": wild / "cropped_aligned" / "two_right"}
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
    with pytest.raises(DataError, match="1 trials have neither video nor face crops: gone;"):
        affwild2(wild)
    touched(wild / "cropped_aligned" / "gone" / "00001.jpg")
    with pytest.raises(DataError, match="crops but no video, which is needed for clock and sound: gone;"):
        affwild2(wild)


def test_doubtful_folders_are_refused(wild: Path) -> None:
    other = touched(wild / "batch2" / "1-30.avi")
    with pytest.raises(DataError, match=r"trial 1-30 has 2 videos: .*1-30\.mp4, .*1-30\.avi"):
        affwild2(wild)
    other.unlink()
    touched(wild / "annotations" / "VA_Estimation_Challenge" / "Validation_Set" / "duo.txt")
    with pytest.raises(DataError, match="trial duo is also in Train_Set"):
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
