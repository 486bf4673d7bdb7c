"""`predict` over a collection, with real processes and real kills: complete, resumable, every failure listed."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest

from jmt_fast.inference import engines

Film = Callable[..., Path]
PLAIN = ("--device", "cpu", "--precision", "fp32", "--no-compile")


@pytest.fixture
def junk(film: Film, kit: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder in which seven of eleven are no videos, and the others have odd names."""
    good = film(times=kit.steps(20))
    folder = tmp_path / "in"
    for name in (b"a.mp4", b"sub/a.mp4", b"new\nline 'and' \"quotes\".mp4", b"b\xff.mp4"):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(good, path)
    (folder / "words.mp4").write_text("words")
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes(good.read_bytes()[:1500])
    os.mkfifo(folder / "pipe.mp4")
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as server:  # a socket's path may not be long
        server.bind("socket.mp4")
    (folder / "self.mp4").symlink_to(folder / "self.mp4")
    shutil.copy(Path(__file__).parents[2] / "docs" / "demo.png", folder / "picture.mp4")
    (folder / "sub" / "above").symlink_to(folder)
    (folder / "notes.txt").touch()
    return folder


def test_a_folder_of_junk(run: Callable, small_checkpoint: Path, junk: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("predict", junk, junk / "*.mov", "--checkpoint", small_checkpoint, "--out", out, *PLAIN)
    first = run(*given, "--workers", "1")
    assert first.code == 3
    errors = sorted(line for line in first.err.splitlines() if line.startswith("error: "))
    assert [line.partition(".m")[0].rpartition("/")[2] for line in errors] == [
        "*", "cut", "empty", "picture", "pipe", "self", "socket", "words",
    ]  # fmt: skip
    assert "8 of 12 videos failed" in first.err
    assert "left out: .txt 1" in first.err
    printed = first.out.splitlines()
    assert sorted(printed) == sorted(str(path) for path in out.iterdir() if path.name != "_index.parquet")
    assert len(printed) == 4
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    second = run(*given)
    assert second.code == 3
    assert not second.out
    assert "4 of 12 videos were done before" in second.err
    assert len([line for line in second.err.splitlines() if line.endswith("--retry-failed tries again)")]) == 7
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path.name != "_index.parquet")
    shutil.copy(junk / "a.mp4", junk / "words.mp4")
    third = run(*given, "--workers", "0", "--retry-failed")
    assert third.out.splitlines() == [str(out / "words.parquet")]
    table = pandas.read_parquet(out / "_index.parquet")
    assert sorted(table["status"]) == ["done"] * 5 + ["failed"] * 6
    assert set(table["rows"]) == {0, 20}


def children(process: subprocess.Popen) -> list[int]:
    """The processes that work for it."""
    found = []
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):  # ended since it was listed
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def ended(pid: int) -> bool:
    """Waits for the end of a process."""
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_kills_lose_at_most_what_was_in_work(
    start: Callable, run: Callable, small_checkpoint: Path, film: Film, kit: SimpleNamespace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    good = film(times=kit.steps(400), size=(160, 128))
    videos = [Path(shutil.copy(good, tmp_path / f"{number}.mp4")) for number in range(20)]
    given = ("predict", *videos, "--checkpoint", small_checkpoint, "--out", out, *PLAIN)
    process = start(*given)
    process.stdout.readline()
    [worker] = children(process)
    os.kill(worker, signal.SIGKILL)
    refused = run(*given)
    assert refused.code == 1
    assert f"another run is at work here (process {process.pid} on {os.uname().nodename}" in refused.err
    assert len(refused.err.splitlines()) == 1
    process.stdout.readline()
    process.stdout.readline()
    while not (workers := children(process)):  # until the dead one is replaced
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert all(map(ended, workers))
    there = {path.name for path in out.iterdir() if not path.name.startswith(("_index", "."))}
    for name in there:
        assert len(pandas.read_parquet(out / name)) == 400
    assert 3 <= len(there) < 20
    last = run(*given, "--workers", "0")
    assert last.code == 0, last.err
    assert 20 - len(there) <= len(last.out.splitlines()) <= 20 - len(there) + 2
    assert {path.name for path in out.iterdir()} == {"_index.parquet", *(f"{video.stem}.parquet" for video in videos)}
    assert set(pandas.read_parquet(out / "_index.parquet")["status"]) == {"done"}


def test_a_list_on_stdin(
    run: Callable, small_checkpoint: Path, film: Film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{film()}\n".encode())))
    result = run("predict", "-", "--checkpoint", small_checkpoint, "--out", tmp_path, *PLAIN)
    assert result.out.splitlines() == [str(tmp_path / f"{film().stem}.parquet")]


@pytest.mark.parametrize("source", ["list", "manifest", "folder", "pattern"])
def test_nothing_to_predict_is_a_failure(
    run: Callable, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """One line, and no output folder."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    (tmp_path / "rows.csv").write_text("video\n")
    given, reason = {
        "list": ("-", "the list on standard input is empty"),
        "manifest": (tmp_path / "rows.csv", "the table has no rows"),
        "folder": (tmp_path / "folder", "no video in this folder"),
        "pattern": (tmp_path / "folder" / "*", "matches no file"),
    }[source]
    result = run("predict", given, "--checkpoint", small_checkpoint, "--out", tmp_path / "out", *PLAIN)
    assert result.code == 1
    [line] = result.err.splitlines()
    assert line.startswith(f"error: {given}: ") and reason in line
    assert not (tmp_path / "out").exists()


def test_a_video_that_kills_its_process_is_quarantined(
    run: Callable, small_checkpoint: Path, film: Film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "inference"))
    from deadly import DeadlyRecipe

    monkeypatch.setattr(engines, "Recipe", DeadlyRecipe)
    videos = [Path(shutil.copy(film(), tmp_path / f"{name}.mp4")) for name in ("one", "deadly", "two")]
    out = tmp_path / "out"
    given = ("predict", *videos, "--checkpoint", small_checkpoint, "--out", out, *PLAIN)
    result = run(*given)
    assert result.code == 3, result.err
    [error] = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert error == f"error: {videos[1]}: its process died of SIGSEGV"
    assert "1 of 3 videos failed" in result.err and "Traceback" not in result.err
    assert sorted(result.out.splitlines()) == [str(out / "one.parquet"), str(out / "two.parquet")]
    table = pandas.read_parquet(out / "_index.parquet").set_index("name")
    assert table["status"].to_dict() == {"one": "done", "deadly": "quarantined", "two": "done"}
    assert table["error"]["deadly"] == f"{videos[1]}: its process died of SIGSEGV"
    again = run(*given)
    assert again.code == 3 and not again.out


def test_gpus_of_a_cluster_are_asked_for_by_number(
    run: Callable, small_checkpoint: Path, film: Film, tmp_path: Path
) -> None:
    given = ("predict", film(), "--checkpoint", small_checkpoint, "--out", tmp_path, "--engine", "ray")
    for device in ("cuda", "cuda:1", "gpu"):
        result = run(*given, "--device", device)
        assert result.code == 2
        assert "--gpus N" in result.err
    assert run(*given, "--device", "cpu", "--gpus", "1").code == 2


def test_more_gpus_than_there_are(run: Callable, small_checkpoint: Path, film: Film, tmp_path: Path) -> None:
    given = ("predict", film(), "--checkpoint", small_checkpoint, "--out", tmp_path)
    result = run(*given, "--gpus", "99")
    assert result.code == 1
    assert "99 GPUs asked for, this machine has" in result.err
    assert run(*given, "--gpus", "1", "--device", "cpu").code == 2


def test_a_limit_that_the_model_alone_exceeds(
    run: Callable, small_checkpoint: Path, film: Film, tmp_path: Path
) -> None:
    given = ("predict", film(), "--checkpoint", small_checkpoint, "--out", tmp_path, *PLAIN)
    result = run(*given, "--memory", "0.1")
    assert result.code == 1
    assert "took more than 0.1 GiB of memory before its first video" in result.err


def test_an_output_folder_that_cannot_be_written(run: Callable, small_checkpoint: Path, film: Film) -> None:
    """/sys refuses every file, as a read-only disk does."""
    result = run("predict", film(), "--checkpoint", small_checkpoint, "--out", "/sys", *PLAIN)
    assert result.code == 1
    assert "/sys: the output folder cannot be written" in result.err
    assert len(result.err.splitlines()) == 1
