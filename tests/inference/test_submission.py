"""The challenge's file: its rows, in its order, from the frames that they name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jmt_fast.errors import DataError
from jmt_fast.inference import Trace
from jmt_fast.inference.submission import HEADER, write_submission


def a_folder(folder: Path, **frames: int) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    values = {}
    for trial, count in frames.items():
        values[trial] = np.random.default_rng(count).uniform(-1, 1, (count, 2)).astype(np.float32)
        trace = Trace.build(Path(f"{trial}.mp4"), np.arange(count) / 30, values[trial], np.ones(count, bool))
        trace.save(folder / f"{trial}.parquet")
    return values


def rows(path: Path) -> list[tuple[str, float, float]]:
    head, *lines = path.read_text().splitlines()
    assert head == HEADER
    return [(where, float(valence), float(arousal)) for where, valence, arousal in (line.split(",") for line in lines)]


def test_every_frame_of_every_trial(tmp_path: Path) -> None:
    values = a_folder(tmp_path / "traces", **{"9-15-1920x1080_left": 7, "130-25-1280x720": 12})
    (tmp_path / "traces" / "_index.parquet").write_bytes(b"a ledger")
    (tmp_path / "traces" / "130-25-1280x720.csv").write_text("the same in another format")
    written = write_submission(tmp_path / "traces", tmp_path / "out.txt")
    found = rows(tmp_path / "out.txt")
    assert (written.rows, written.trials, written.warnings) == (19, 2, [])
    assert [where for where, *_ in found] == [
        *(f"130-25-1280x720/{n:05d}.jpg" for n in range(1, 13)),
        *(f"9-15-1920x1080_left/{n:05d}.jpg" for n in range(1, 8)),
    ]
    expected = np.concatenate([values["130-25-1280x720"], values["9-15-1920x1080_left"]])
    assert np.allclose([pair for _, *pair in found], expected, atol=1e-6)


def test_the_samples_rows_and_no_others(tmp_path: Path) -> None:
    values = a_folder(tmp_path / "traces", b=10, a=4, extra=3)
    asked = [("b", 2), ("b", 1), ("b", 10), *(("a", n) for n in range(1, 7))]
    lines = [f"{trial}/{number:05d}.jpg,0,0" for trial, number in asked]
    (tmp_path / "sample.txt").write_bytes("\r\n".join([HEADER, *lines, "", ""]).encode("utf-8-sig"))
    written = write_submission(tmp_path / "traces", tmp_path / "out.txt", tmp_path / "sample.txt")
    found = rows(tmp_path / "out.txt")
    assert [where for where, *_ in found] == [line.split(",")[0] for line in lines]
    for (trial, number), (_, *pair) in zip(asked, found, strict=True):
        assert np.allclose(pair, values[trial][min(number, len(values[trial])) - 1], atol=1e-6)
    assert len(written.warnings) == 2
    assert any("4 frames" in line and "6 in the sample" in line and "repeated" in line for line in written.warnings)
    assert any("extra" in line for line in written.warnings)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (f"{HEADER}\na/00001.jpg,0,0\nmissing/00001.jpg,0,0\n", "1 of its 2 trials have no trace: missing"),
        (f"{HEADER}\na/00001.jpg,0,0\na/00001.jpg,0,0\n", "sample.txt:3: a/00001.jpg comes a second time"),
        (f"{HEADER}\na/first.jpg,0,0\n", "sample.txt:2: expected <trial>/00001.jpg"),
        (f"{HEADER}\na/00000.jpg,0,0\n", "sample.txt:2"),
        ("a/00001.jpg,0,0\n", "sample.txt:1: found"),
        (f"{HEADER}\n", "no rows"),
        (None, "the sample cannot be read"),
    ],
)
def test_a_wrong_sample_writes_nothing(tmp_path: Path, sample: str | None, reason: str) -> None:
    a_folder(tmp_path / "traces", a=3)
    if sample is not None:
        (tmp_path / "sample.txt").write_text(sample)
    with pytest.raises(DataError, match=reason):
        write_submission(tmp_path / "traces", tmp_path / "out.txt", tmp_path / "sample.txt")
    assert not (tmp_path / "out.txt").exists()


def test_a_folder_without_traces_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no traces"):
        write_submission(tmp_path, tmp_path / "out.txt")
    with pytest.raises(DataError, match="cannot be listed"):
        write_submission(tmp_path / "none", tmp_path / "out.txt")
