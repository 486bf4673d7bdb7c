from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jmt_fast.data import labelled, read_affwild2, read_annotation, reconcile, resample
from jmt_fast.errors import DataError


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "trial.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "valence,arousal\n0.5,-0.25\n-5,-5\n1,-1\n",
        "valence,arousal\r\n0.5,-0.25\r\n-5,-5\r\n1,-1\r\n\r\n",
        "\ufeffValence, Arousal\n 0.5 , -0.25\n-5.0,-5.000\n1,-1",
        "valence,arousal\n0.5,-0.25\n-5,-5\n1,-1\n\n  \n",
    ],
)
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


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
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
    ],
)
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


def test_all_wrong_lines_are_named(tmp_path: Path) -> None:
    lines = ["0,0"] * 40
    for index in (3, 7, 8, *range(20, 35)):
        lines[index] = "x,0"
    path = written(tmp_path, "valence,arousal\n" + "\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_affwild2(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:5: valence 'x' is not a number")
    assert message.endswith("; 17 more rows are wrong, lines 9, 10, 22, 23, 24, 25, 26, 27, 28, 29, ...")


def table(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_a_table_with_times(tmp_path: Path) -> None:
    text = '\ufeffsubject,Arousal, time ,valence\r\n"Ann, B",0.5,0,-1\r\n\r\nx,,0.5,0.25\r\ny,-5,1.25,\r\nz,1,2,0\r\n'
    found = read_annotation(table(tmp_path, text))
    assert found.times is not None
    assert found.times.tolist() == [0, 0.5, 1.25, 2]
    np.testing.assert_array_equal(found.values, np.array([[-1, 0.5], [0.25, -5], [-5, -5], [0, 1]], np.float32))


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("time,valence\n0,0\n", 1, "one column `arousal`"),
        ("time,time,valence,arousal\n", 1, "one column `time`"),
        ("time,valence,arousal\n0,0,0\n1,0\n", 3, "3 columns"),
        ("time,valence,arousal\n0,0,0\n\n0,0,0\n", 4, "does not come after 0"),
        ("time,valence,arousal\n0:01,0,0\n", 2, "time '0:01' is not a number"),
        ("time,valence,arousal\ninf,0,0\n", 2, "does not come after"),
        ("time,valence,arousal\n1,0,nan\n", 2, "arousal 'nan' is not a number"),
        ("time,valence,arousal\n1,2,0\n", 2, "outside"),
        ("seconds,valence,arousal\n1,0,0\n", 1, "header"),
    ],
)
def test_wrong_tables_name_file_and_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_annotation(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert reason in message


@pytest.mark.parametrize("rate", [0.5, 1, 7.3, 25, 30, 1000])
@pytest.mark.parametrize("fps", [12.5, 30, 59.94])
def test_any_rate_is_resampled_to_the_frames(rate: float, fps: float) -> None:
    """A trace that is linear in time comes back exactly, wherever the samples lie, and the ends are held."""
    times = np.arange(0, 10 + 1 / rate, 1 / rate)
    stamps = np.arange(np.ceil(10 * fps)) / fps
    slope = np.random.default_rng().uniform(-0.08, 0.08, 2)
    labels, warning = resample(np.outer(times, slope), times, stamps, "v")
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels, np.outer(stamps, slope), atol=1e-6)
    assert warning is None


def test_what_is_not_annotated_is_not_bridged() -> None:
    times = np.array([0, 1, 2, 3, 4.0])
    values = np.array([[0, 0], [0.1, 0.1], [-5, -5], [0.3, 0.3], [0.4, -5]])
    stamps = np.array([0, 0.5, 0.9996, 1.0004, 1.1, 2, 2.9, 2.9996, 3.0, 3.1, 4.0])
    labels, warning = resample(values, times, stamps, "v")
    assert labelled(labels).tolist() == [True, True, True, True, False, False, False, True, True, False, False]
    np.testing.assert_allclose(labels[labelled(labels), 0], [0, 0.05, 0.1, 0.1, 0.3, 0.3], atol=1e-4)
    assert (labels[~labelled(labels)] == -5).all()
    assert warning is None


def test_resample_tells_what_is_left_over() -> None:
    stamps = np.arange(100) / 10
    labels, warning = resample(np.zeros((5, 2)), np.array([8.0, 9, 10, 11, 12]), stamps, "v")
    assert labelled(labels).nonzero()[0].tolist() == list(range(75, 100))
    assert warning == (
        "v: annotation from 8.00 to 12.00 s, frames from 0.00 to 9.90 s; 1 of 5 rows are not used, "
        "75 frames outside count as not annotated"
    )
    for rows, frames in ((0, 4), (3, 0)):
        labels, warning = resample(np.zeros((rows, 2)), np.arange(rows), np.arange(frames), "v")
        assert (labels == np.full((frames, 2), -5)).all()
        assert warning is not None
    labels, warning = resample([[0.5, 0.5]], [1.0], [0.0, 1.0, 2.0], "v")
    assert labelled(labels).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="increasing"):
        resample(np.zeros((2, 2)), [1, 1], [0.0], "v")


def afew(folder: Path, frames: object) -> Path:
    path = folder / "001.json"
    path.write_text(json.dumps({"video_id": "x", "frames": frames, "actor": "A"}))
    return path


def test_afew_va_rows_belong_to_the_frames_of_their_keys(tmp_path: Path) -> None:
    frames = {"00003": {"valence": 10, "arousal": -10.0}, "00000": {"valence": -3.0, "arousal": 7, "landmarks": []}}
    found = read_annotation(afew(tmp_path, frames))
    assert found.times is None
    np.testing.assert_array_equal(found.values, np.array([[-0.3, 0.7], [-5, -5], [-5, -5], [1, -1]], np.float32))
    assert read_annotation(afew(tmp_path, {})).values.shape == (0, 2)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ({"00001": {"valence": 11, "arousal": 0}}, "frame '00001': valence 11 is not a number from -10 to 10"),
        ({"00001": {"valence": 1}}, "frame '00001': arousal None"),
        ({"00001": {"valence": "1", "arousal": 0}}, "valence '1'"),
        ({"00001": {"valence": True, "arousal": 0}}, "valence True"),
        ({"00001": {"valence": float("nan"), "arousal": 0}}, "valence nan"),
        ({"00001": [1, 2]}, "valence None"),
        ({"one": {"valence": 0, "arousal": 0}}, "frame 'one'"),
        ({"99999999999": {"valence": 0, "arousal": 0}}, "frame '99999999999'"),
        ({"1": {"valence": 0, "arousal": 0}, "01": {"valence": 0, "arousal": 0}}, "frame '01'"),
        ([], "no `frames`"),
    ],
)
def test_wrong_clips_of_afew_va_are_named(tmp_path: Path, frames: object, reason: str) -> None:
    path = afew(tmp_path, frames)
    with pytest.raises(DataError) as caught:
        read_annotation(path)
    assert str(caught.value).startswith(str(path))
    assert reason in str(caught.value)
