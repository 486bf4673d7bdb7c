from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jmt_fast.data import labelled, read_affwild2, reconcile
from jmt_fast.errors import DataError


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "trial.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("text", [
    "valence,arousal\n0.5,-0.25\n-5,-5\n1,-1\n",
    "valence,arousal\r\n0.5,-0.25\r\n-5,-5\r\n1,-1\r\n\r\n",
    "\ufeffValence, Arousal\n 0.5 , -0.25\n-5.0,-5.000\n1,-1",
    "valence,arousal\n0.5,-0.25\n-5,-5\n1,-1\n\n  \n",
])
def test_rows_come_back_in_order(tmp_path: Path, text: str) -> None:
    rows = read_affwild2(written(tmp_path, text))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.array([[0.5, -0.25], [-5, -5], [1, -1]], np.float32))


def test_random_rows_survive_the_file(tmp_path: Path) -> None:
    values = np.random.default_rng().uniform(-1, 1, (500, 2)).astype(np.float32)
    text = "valence,arousal\n" + "".join(f"{v},{a}\n" for v, a in values)
    np.testing.assert_array_equal(read_affwild2(written(tmp_path, text)), values)


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    assert read_affwild2(written(tmp_path, "valence,arousal\n")).shape == (0, 2)


@pytest.mark.parametrize(("text", "line", "reason"), [
    ("", 1, "header"),
    ("0.1,0.2\n", 1, "header"),
    ("arousal,valence\n0,0\n", 1, "header"),
    ("valence,arousal\n0,0\nx,0\n", 3, "valence 'x' is not a number"),
    ("valence,arousal\n0,nan\n", 2, "arousal 'nan' is not a number"),
    ("valence,arousal\n0,\n", 2, "arousal '' is not a number"),
    ("valence,arousal\n0,0\n0,1.5\n", 3, "outside"),
    ("valence,arousal\n-inf,0\n", 2, "outside"),
    ("valence,arousal\n-4,0\n", 2, "outside"),
    ("valence,arousal\n0,0,0\n", 2, "2 columns"),
    ("valence,arousal\n0.5\n", 2, "2 columns"),
    ("valence,arousal\n0,0\n\n0,0\n", 3, "2 columns"),
])
def test_errors_name_file_and_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_affwild2(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert reason in message
    assert "\n" not in message


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path, written(tmp_path, b"\xff\xfe\x00\x01")):
        with pytest.raises(DataError, match=str(path)):
            read_affwild2(path)


def test_labelled_needs_both_dimensions() -> None:
    labels = np.array([[[0, 0], [-5, 0]], [[0, -5], [-5, -5]]], np.float32)
    assert labelled(labels).tolist() == [[True, False], [False, False]]
    with pytest.raises(ValueError, match="labels"):
        labelled(np.zeros((3, 3)))


@pytest.mark.parametrize(("rows", "frames"), [(10, 10), (12, 10), (7, 10), (0, 4), (4, 0)])
def test_reconcile_never_shifts(rows: int, frames: int) -> None:
    labels = np.random.default_rng().uniform(-1, 1, (rows, 2)).astype(np.float32)
    fitted, warning = reconcile(labels, frames, "video1")
    assert fitted.shape == (frames, 2)
    assert fitted.dtype == np.float32
    kept = min(rows, frames)
    np.testing.assert_array_equal(fitted[:kept], labels[:kept])
    assert (fitted[kept:] == -5).all()
    if rows == frames:
        assert warning is None
    else:
        assert warning is not None
        for part in ("video1", f"{rows} annotation rows", f"{frames} frames"):
            assert part in warning
