"""`predict`, `probe`, `doctor` and the rules that all verbs share: one line an error, exit codes, nothing lost."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas
import pyarrow.parquet
import pytest

from jmt_fast.media import probe

Film = Callable[..., Path]
PLAIN = ("--device", "cpu", "--precision", "fp32", "--no-compile")


def bad_files(film: Film, kit: SimpleNamespace, folder: Path) -> dict[str, Path]:
    """One file of each kind that cannot be predicted."""
    good = film(sound=kit.Sound(kit.clicks([0.5], 1.2, 44_100), 44_100))
    content = good.read_bytes()
    files = {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "text": b"these are words, not pictures\n" * 50,
    }
    paths = {}
    for name, data in files.items():
        paths[name] = folder / f"{name}.mp4"
        paths[name].write_bytes(data)
    paths["vanished"] = folder / "vanished.mp4"
    paths["folder"] = folder / "folder.mp4"
    paths["folder"].mkdir()
    return paths


def test_bad_files_are_listed_and_the_good_ones_done(
    run: Callable, small_checkpoint: Path, film: Film, kit: SimpleNamespace, tmp_path: Path
) -> None:
    good = film(sound=kit.Sound(kit.clicks([0.5], 1.2, 44_100), 44_100))
    bad = bad_files(film, kit, tmp_path)
    out = tmp_path / "out"
    result = run("predict", bad["empty"], good, *[bad[name] for name in bad if name != "empty"],
                 "--checkpoint", small_checkpoint, "--out", out, *PLAIN)  # fmt: skip
    assert result.code == 3
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(bad)
    for path in bad.values():
        assert sum(str(path) in line for line in errors) == 1
    assert "Traceback" not in result.err
    assert result.out.splitlines() == [str(out / f"{good.stem}.parquet")]
    table = pyarrow.parquet.read_table(out / f"{good.stem}.parquet")
    assert table.column_names == ["person", "frame", "time", "valence", "arousal", "valid"]
    assert table.num_rows == probe(good).frames
    assert {path.name for path in out.iterdir()} == {f"{good.stem}.parquet", "_index.parquet"}


def test_all_bad_is_a_failure(run: Callable, small_checkpoint: Path, tmp_path: Path) -> None:
    result = run("predict", tmp_path / "none.mp4", "--checkpoint", small_checkpoint, "--out", tmp_path / "out", *PLAIN)
    assert result.code == 1
    assert "none.mp4" in result.err


def test_csv_smoothing_and_plot(run: Callable, small_checkpoint: Path, film: Film, tmp_path: Path) -> None:
    video = film()
    for out, more in (("plain", ()), ("smooth", ("--smooth", "20,50", "--plot"))):
        assert run("predict", video, "--checkpoint", small_checkpoint, "--out", tmp_path / out, "--format", "csv",
                   *more, *PLAIN).code == 0  # fmt: skip
    plain, smooth = (pandas.read_csv(tmp_path / out / f"{video.stem}.csv") for out in ("plain", "smooth"))
    assert smooth["valence"].std() <= plain["valence"].std()
    assert plain["time"].equals(smooth["time"])
    assert (tmp_path / "smooth" / f"{video.stem}.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    "arguments",
    [("predict",), ("nonsense",), ("predict", "a.mp4", "--checkpoint", "c", "--out", "o", "--smooth", "x"),
     ("predict", "a.mp4", "--checkpoint", "c", "--out", "o", "--stride", "5"), ("train", "--out", "o"),
     ("train", "--data", "d", "--out", "o", "--set", "nothing"),
     ("train", "--data", "d", "--out", "o", "--model", "x")],
)  # fmt: skip
def test_wrong_usage_exits_2(run: Callable, collection: Path, backbones: Path, arguments: tuple[str, ...]) -> None:
    given = [str(collection / "manifest.csv") if each == "d" else each for each in arguments]
    extra = ("--backbones", backbones) if "--data" in given else ()
    result = run(*given, *extra)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_a_missing_checkpoint_is_one_line(run: Callable, film: Film, tmp_path: Path) -> None:
    result = run("predict", film(), "--checkpoint", tmp_path / "none", "--out", tmp_path, *PLAIN)
    assert result.code == 1
    assert re.fullmatch(r"error: .*none: no such checkpoint folder.*\n", result.err)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jmt_fast", "--debug", "probe", str(tmp_path / "none.mp4")]
    shown = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr


def test_a_full_disk_is_one_line_and_keeps_what_was_done(
    start: Callable, small_checkpoint: Path, film: Film, kit: SimpleNamespace, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the full disk: the first trace fits, the second does not."""
    short, long = film(times=kit.steps(20)), film(times=kit.steps(240))
    process = start(
        "predict", short, long, "--checkpoint", small_checkpoint, "--out", tmp_path, "--format", "csv", *PLAIN,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
    )  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"{long.stem}.csv" in line
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {f"{short.stem}.csv", "_index.journal"}
    assert out.splitlines() == [str(tmp_path / f"{short.stem}.csv")]


def test_probe_and_doctor_in_words_and_json(run: Callable, film: Film, kit: SimpleNamespace) -> None:
    video = film(sound=kit.Sound(kit.clicks([0.5], 1.2, 44_100), 44_100))
    words = run("probe", video)
    assert words.code == 0
    assert "h264" in words.out
    facts = json.loads(run("probe", video, "--json").out)
    assert facts["frames"] == len(facts["timestamps"]) == probe(video).frames
    assert facts["audio"]["rate"] == 44_100
    findings = {each["what"]: each for each in json.loads(run("doctor", "--json").out)}
    assert {"device", "precision", "compiler", "kernels", "video decoder", "torch"} <= findings.keys()
    assert all(each["why"] for each in findings.values())
    assert run("doctor").code == 0


def test_help_answers_at_once_and_without_torch() -> None:
    root = Path(__file__).parents[2]
    code = "import sys, jmt_fast.cli.check, jmt_fast.cli.demo, jmt_fast.cli.predict, jmt_fast.cli.train; " \
           "print([m for m in ('torch', 'av', 'nvidia.dali', 'pyarrow') if m in sys.modules])"  # fmt: skip
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
    begin = time.perf_counter()
    shown = subprocess.run(
        [sys.executable, "-m", "jmt_fast", "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert "predict" in shown.stdout
    print(f"--help took {time.perf_counter() - begin:.2f} s on {os.cpu_count()} cores")


def test_people_and_crops_on_the_command_line(
    run: Callable, small_checkpoint: Path, film: Film, tmp_path: Path
) -> None:
    given = ("predict", film(), "--checkpoint", small_checkpoint, "--out", tmp_path, *PLAIN)
    assert run(*given, "--crop", "none").code == 0
    people = (("--person", "all"), ("--crop", "face", "--person", "anna"))
    detectors = (("--detector", "yunet"), ("--crop", "face", "--detector", "haar"))
    for wrong in (*people, *detectors, ("--crop", "head")):
        assert run(*given, *wrong).code == 2
