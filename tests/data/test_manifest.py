from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jmt_fast.data import Recording, load, read_manifest, write_manifest
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
    path = csv(
        collection,
        "name,comment,video,annotation,split,sound,person,fold,crops\n"
        f"001,x,{collection}/files/b.mp4,files/b.txt,test,files/b.wav,left,3,crops/b\n",
    )
    files = collection / "files"
    crops = collection / "crops" / "b"
    assert read_manifest(path) == [
        Recording("001", files / "b.mp4", files / "b.txt", "test", files / "b.wav", "left", 3, crops)
    ]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_written_manifests_come_back(collection: Path, suffix: str) -> None:
    files = collection / "files"
    recordings = [
        Recording("007", files / "a.mp4", files / "a.txt", "train", fold=1),
        Recording(
            'b, the "second"',
            files / "b.mp4",
            files / "b.txt",
            "validation",
            files / "b.wav",
            "right",
            2,
            collection / "crops" / "b",
        ),
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
    table = {
        "video": ["files/a.mp4", "files/b.mp4"],
        "annotation": pa.nulls(2),
        "split": ["train", None],
        "name": [1, 2],
        "fold": [3.0, None],
    }
    pq.write_table(pa.table(table), path)
    found = [(item.name, item.fold, item.split) for item in read_manifest(path)]
    assert found == [("1", 3, "train"), ("2", None, None)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("video,split\nfiles/a.mp4,train\n", "no columns `annotation`"),
        ("video,annotation,split,video\nfiles/a.mp4,,train,x\n", "2 columns `video`"),
        ("video,annotation,split\n", "no rows"),
        ("", "not a readable csv"),
        ("video,annotation,split\nfiles/a.mp4\n", "not a readable csv"),
        ("video,annotation,split\nfiles/a.mp4,,dev\n", "row 1: unknown split 'dev'"),
        ("video,annotation,split\nfiles/a.mp4,,\n,,train\n", "row 2: `video` is empty"),
        ("video,annotation,split,fold\nfiles/a.mp4,,,one\n", "row 1: fold 'one'"),
        ("video,annotation,split,name\nfiles/a.mp4,,,x/y\n", "row 1: name 'x/y'"),
        ("video,annotation,split,fold\nfiles/a.mp4,,,1.5\n", "row 1: fold '1.5' is not a whole number"),
        ("video,annotation,split,fps\nfiles/a.mp4,,,fast\n", "row 1: fps 'fast' is not a number"),
        ("video,annotation,split,fps\ncrops/b,,,0\n", "row 1: fps '0' is not a rate"),
        ("video,annotation,split\ncrops/b,,\n", "is a folder of pictures; give their rate in the column `fps`"),
        ("video,annotation,split\nfiles/a.mp4,,\nfiles/a.mp4,,\n", "names must be unique, these are not: a;"),
    ],
)
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


def test_subject_and_rate_of_pictures(collection: Path) -> None:
    path = csv(collection, "video,annotation,split,subject,fps\ncrops/b,,,Ann,25\nfiles/a.mp4,,,,\n")
    first, second = read_manifest(path)
    assert (first.subject, first.fps, second.subject, second.fps) == ("Ann", 25.0, None, None)
    written = collection / "again.parquet"
    write_manifest([first, second], written)
    assert read_manifest(written) == [first, second]


def test_a_failed_write_leaves_the_old_manifest(collection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv(collection, "video,annotation,split\nfiles/a.mp4,,\n")
    before = path.read_bytes()

    def full(table: pa.Table, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa.csv, "write_csv", full)
    with pytest.raises(DataError, match="No space left"):
        write_manifest([Recording("a", collection / "files" / "a.mp4")], path)
    assert path.read_bytes() == before
    assert not list(collection.glob(".*.part"))
