"""`report video` and `submit`, as a user calls them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from jmt_fast.inference import Trace

Film = Callable[..., Path]
PLAIN = ("--device", "cpu", "--precision", "fp32", "--no-compile")


def a_trace(path: Path, video: str = "x.mp4") -> Path:
    return Trace.build(Path(video), np.arange(9) / 30, np.zeros((9, 2), np.float32), np.ones(9, bool)).save(path)


def test_from_prediction_to_page(run: Callable, small_checkpoint: Path, film: Film, tmp_path: Path) -> None:
    video = Path(shutil.copy(film(), tmp_path / "talk.mp4"))
    out = tmp_path / "traces"
    for format in ("parquet", "jsonl", "eaf", "vtt"):
        result = run("predict", video, "--checkpoint", small_checkpoint, "--out", out, "--format", format, *PLAIN)
        assert (result.code, result.out) == (0, f"{out / f'talk.{format}'}\n")
    result = run("report", "video", out / "talk.parquet")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{out / 'talk.html'}\n"
    assert '"url":"../talk.mp4"' in (out / "talk.html").read_text()
    result = run("report", "video", out, "--overlay", "--out", tmp_path / "site")
    assert result.code == 0
    assert result.out.splitlines() == [
        str(tmp_path / "site" / name) for name in ("index.html", "pages/talk.html", "pages/talk.overlay.mp4")
    ]
    frames = pyarrow.parquet.read_table(out / "talk.parquet").num_rows
    result = run("submit", out, "--out", tmp_path / "predictions.txt")
    assert (result.code, result.out) == (0, f"{frames} rows of 1 trials written to {tmp_path / 'predictions.txt'}\n")


def test_exit_codes(run: Callable, tmp_path: Path) -> None:
    a_trace(tmp_path / "good.csv")
    (tmp_path / "bad.csv").write_text("nothing")
    result = run("report", "video", tmp_path)
    assert result.code == 3
    [error] = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert "bad.csv" in error
    assert "good.csv: its video is not beside it" in result.err
    (tmp_path / "good.csv").unlink()
    result = run("report", "video", tmp_path)
    assert result.code == 1
    assert "none of the 1 traces" in result.err
    assert run("report", "video", tmp_path / "none.csv").code == 1
    assert run("report", "video").code == 2
    assert run("submit", tmp_path).code == 2
    assert run("submit", tmp_path / "none", "--out", tmp_path / "x.txt").code == 1


def test_submit_warns_of_what_does_not_fit(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    a_trace(tmp_path / "traces" / "a.parquet")
    (tmp_path / "sample.txt").write_text("image_location,valence,arousal\na/00010.jpg,,\n")
    result = run("submit", tmp_path / "traces", "--out", tmp_path / "out.txt", "--sample", tmp_path / "sample.txt")
    assert result.code == 0
    assert "warning: a: 9 frames in the trace, 10 in the sample: the last value is repeated" in result.err
    assert (tmp_path / "out.txt").read_text().splitlines()[1] == "a/00010.jpg,0.000000,0.000000"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(run: Callable, tmp_path: Path) -> None:
    trace = a_trace(tmp_path / "a.csv")
    tmp_path.chmod(0o500)
    result = run("report", "video", trace)
    tmp_path.chmod(0o700)
    assert result.code == 1
    assert "cannot be written: Permission denied" in result.err


def test_names_of_any_bytes_are_printed_as_they_are(start: Callable, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.csv")
    a_trace(tmp_path / name)
    process = start("report", "video", tmp_path / name, errors="surrogateescape")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == f"{tmp_path / os.fsdecode(bytes([255]))}.html\n"
