"""What a user can name: every way gives the same videos, each once, and what gives none is told."""

from __future__ import annotations

import io
import json
import os
import socket
from pathlib import Path

import pytest

from jmt_fast.errors import DataError, MediaError
from jmt_fast.inference import find_videos
from jmt_fast.media import probe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for name in ("b.mp4", "a.MKV", "sub/a.mp4", "sub/deep/new\nline.avi", "notes.txt", "p.jpg", "plain"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def relative(folder: Path, videos: list[Path]) -> list[str]:
    return [os.path.relpath(video, folder) for video in videos]


IN_FOLDER = ["a.MKV", "b.mp4", "sub/a.mp4", "sub/deep/new\nline.avi"]


def test_a_folder_is_searched_to_its_bottom(folder: Path) -> None:
    found = find_videos([folder])
    assert relative(folder, found.videos) == IN_FOLDER
    assert found.others == {".txt": 1, ".jpg": 1, "": 1}
    assert not found.unusable


def test_links_are_followed_and_loops_are_not(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "c.mp4").touch()
    (folder / "linked").symlink_to(other)
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "self.mp4").symlink_to(folder / "self.mp4")
    (folder / "gone.mp4").symlink_to(folder / "nothing.mp4")
    os.mkfifo(folder / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path may not be long
        server.bind("socket.mp4")
        os.chdir(here)
    odd = ["gone.mp4", "linked/c.mp4", "pipe.mp4", "self.mp4", "socket.mp4"]
    assert sorted(relative(folder, find_videos([folder]).videos)) == sorted(IN_FOLDER + odd)


def test_what_may_not_be_read_is_told(folder: Path) -> None:
    """In a process without root's rights: a folder is refused when it is searched, a file when it is opened."""
    for place in (folder, folder / "sub"):
        place.chmod(0o755)
    (folder / "sub" / "deep").chmod(0)
    (folder / "b.mp4").write_text("words")
    (folder / "b.mp4").chmod(0)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.chdir(folder)  # the folders above are root's alone
            if os.getuid() == 0:
                os.setuid(65534)
            found = find_videos(["."])
            with pytest.raises(MediaError) as caught:
                probe("b.mp4")
            os.write(writing, json.dumps([*map(str, found.videos), found.unusable, str(caught.value)]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        *videos, unusable, error = json.loads(pipe.read())
    os.waitpid(child, 0)
    (folder / "sub" / "deep").chmod(0o755)
    assert videos == ["a.MKV", "b.mp4", "sub/a.mp4"]
    assert unusable == {"./sub/deep": "the folder cannot be read: Permission denied; change its permissions"}
    assert error == "b.mp4: not readable: permission denied; change its permissions"


def test_names_that_are_no_utf8(folder: Path) -> None:
    name = os.fsdecode(b"b\xff\xfe.mp4")
    (folder / name).touch()
    assert name in relative(folder, find_videos([folder]).videos)
    listing = io.BytesIO(os.fsencode(folder) + b"/b\xff\xfe.mp4\n")
    assert relative(folder, find_videos(["-"], listing).videos) == [name]


def test_patterns(folder: Path) -> None:
    assert relative(folder, find_videos([folder / "*.mp4"]).videos) == ["b.mp4"]
    assert relative(folder, find_videos([folder / "**" / "a.*"]).videos) == ["a.MKV", "sub/a.mp4"]
    assert relative(folder, find_videos([folder / "**"]).videos).count("sub/a.mp4") == 1
    (folder / "x[1].mp4").touch()
    assert relative(folder, find_videos([folder / "x[1].mp4"]).videos) == ["x[1].mp4"]
    nothing = find_videos([folder / "*.mov"])
    assert list(nothing.unusable.values()) == ["matches no file; check the pattern"]
    folders = find_videos([folder / "su*"])  # it matches a folder alone
    assert list(folders.unusable.values()) == ["matches no file; check the pattern"]


def test_a_table_names_videos_beside_it(folder: Path) -> None:
    table = folder / "list.csv"
    table.write_text("name,video\n001,b.mp4\n002,sub/a.mp4\n003,b.mp4\n004,gone.mp4\n")
    assert relative(folder, find_videos([table]).videos) == ["b.mp4", "sub/a.mp4", "gone.mp4"]
    for content, reason in (
        ("name\n1\n", "column `video`"),
        ("video\n", "no rows"),
        ("video,n\na.mp4,1\n,2\n", "row 2"),
    ):
        table.write_text(content)
        with pytest.raises(DataError, match=f"list.csv: .*{reason}"):
            find_videos([table])
    with pytest.raises(DataError, match="no such file"):
        find_videos([folder / "none.parquet"])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_a_list(folder: Path, end: bytes) -> None:
    names = [b"b.mp4", b"sub/a.mp4", *([b"new\nline.mp4"] if end == b"\0" else [])]
    listing = io.BytesIO(end.join(os.path.join(os.fsencode(folder), name) for name in names) + end)
    assert relative(folder, find_videos(["-"], listing).videos) == [os.fsdecode(name) for name in names]


@pytest.mark.parametrize("content", [b"", b"\n\r\n"])
def test_an_empty_list_is_told(content: bytes) -> None:
    found = find_videos(["-"], io.BytesIO(content))
    assert not found.videos
    assert found.unusable == {"-": "the list on standard input is empty; check what writes it"}


def test_each_video_once_in_the_order_named(folder: Path) -> None:
    found = find_videos([folder / "b.mp4", folder, folder / "sub" / ".." / "b.mp4", folder / "gone.mp4"])
    assert relative(folder, found.videos) == ["b.mp4", "a.MKV", *IN_FOLDER[2:], "gone.mp4"]


def test_a_folder_without_videos_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").mkdir()
    found = find_videos([tmp_path / "empty.mp4"])
    assert not found.videos
    assert "no video in this folder" in found.unusable[str(tmp_path / "empty.mp4")]
