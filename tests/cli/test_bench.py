"""`jmt-fast bench` on a small checkout whose benchmarks take no time: rows, failures, Ctrl-C, what must be there."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import jmt_fast.bench
from jmt_fast.bench import run as runner
from jmt_fast.bench.report import END, START

ROOT = Path(__file__).parents[2]
FUSION = """
import time, pytest
@pytest.mark.parametrize("shape", ["small", "large"])
def test_forward(shape, race, chosen, question):
    def wrong():
        assert False, "off by 1"
    peers = {"prepared": lambda: None, "reference": lambda: time.sleep(0.001), "rival": "not installed",
             "broken": lambda: 1 / 0, "wrong": lambda: None}
    timings = race(chosen(peers, "prepared", "ref"), optional={"broken", "wrong"}, checks={"wrong": wrong})
    question.race(shape, timings, "reference", flops=1e6)
    BODY
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """root(code) -> a checkout; `code` ends the benchmark of each shape."""

    def make(code: str = "pass") -> Path:
        folder = tmp_path / "checkout"
        (folder / "benchmarks").mkdir(parents=True)
        for name in ("conftest.py", "rows.py", "timing.py"):
            shutil.copy(ROOT / "benchmarks" / name, folder / "benchmarks" / name)
        (folder / "benchmarks" / "test_fusion.py").write_text(FUSION.replace("BODY", code))
        shutil.copy(ROOT / "pyproject.toml", folder / "pyproject.toml")
        (folder / "README.md").write_text(f"{START}{END}\n")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setattr(jmt_fast.bench, "checkout", lambda: folder)
        return folder

    return make


def rows(folder: Path) -> list[dict]:
    [path] = folder.glob("*/fusion.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_rows_tables_and_report(root: Callable, run: Callable) -> None:
    folder = root()
    result = run("bench", "--only", "fusion", "--seconds", 0.02, "--json")
    assert result.code == 0, result.err
    kept = rows(folder / "benchmarks" / "results")
    assert json.loads(result.out) == kept
    assert [(row["shape"], row["peer"]) for row in kept] == [
        (shape, peer) for shape in ("small", "large") for peer in ("prepared", "reference", "rival", "broken", "wrong")
    ]
    prepared, reference, rival, broken, wrong = kept[:5]
    assert prepared["ms_q20"] <= prepared["ms"] <= prepared["ms_q80"] < 1.0 <= reference["ms"]
    assert prepared["ratio"] == pytest.approx(reference["ms"] / prepared["ms"])
    assert prepared["tflop_per_s"] == pytest.approx(1e-3 / prepared["ms"])
    assert (rival["error"], rival["ms"]) == ("not installed", None)
    assert broken["error"].startswith("ZeroDivisionError")
    assert (wrong["error"], wrong["ms"]) == ("AssertionError: off by 1", None)
    assert {"device", "date", "torch", "python", "timed"} <= prepared.keys()
    assert "| small |" in (folder / "README.md").read_text()
    assert (folder / "docs" / "benchmarks.png").is_file()


@pytest.mark.slow
def test_chosen_peers(root: Callable, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "benchmarks", "--seconds", "0.02"]
    command += ["--results", str(tmp_path / "rows"), "--peers", "RIV", "--peers", "wrong"]
    subprocess.run(command, cwd=root(), check=True, stdout=subprocess.DEVNULL)
    assert [row["peer"] for row in rows(tmp_path / "rows")] == 2 * ["prepared", "reference", "rival", "wrong"]


@pytest.mark.slow
def test_a_failing_benchmark_is_named_and_leaves_no_rows(root: Callable, run: Callable, tmp_path: Path) -> None:
    folder = root('assert shape == "small", "the peers differ"')
    result = run("bench", "--only", "fusion", "--seconds", 0.02, "--results", tmp_path / "rows")
    assert result.code == 1
    [line] = [line for line in result.err.splitlines() if line.startswith("error:")]
    assert "fusion: forward[large]" in line and "the peers differ" in line and "small" not in line.split(":")[2]
    assert {row["shape"] for row in rows(tmp_path / "rows")} == {"small"}
    assert "prepared" in result.out
    assert (folder / "README.md").read_text() == f"{START}{END}\n", "rows elsewhere leave README alone"


@pytest.mark.slow
def test_a_benchmark_that_cannot_be_read_is_named(root: Callable, run: Callable) -> None:
    (root() / "benchmarks" / "test_fusion.py").write_text("import a_module_that_is_not_there")
    result = run("bench", "--only", "fusion")
    assert result.code == 1
    assert "fusion" in result.err and "a_module_that_is_not_there" in result.err
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_ctrl_c_keeps_the_finished_shapes(root: Callable, tmp_path: Path) -> None:
    folder = root('time.sleep(0 if shape == "small" else 100)')
    code = (
        f"import pathlib, jmt_fast.bench as b; b.checkout = lambda: pathlib.Path({str(folder)!r})\n"
        "from jmt_fast.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "bench", "--only", "fusion", "--seconds", "0.02"]
    command += ["--results", str(tmp_path / "rows")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored stays so in a new program
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("rows/*/fusion.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    assert {row["shape"] for row in rows(tmp_path / "rows")} == {"small"}
    assert not list(tmp_path.glob("rows/*/*.part"))


def test_what_must_be_there(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("bench", "--only", "weather").code == 2
    assert run("bench", "--seconds", "-1").code == 2
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    result = run("bench")
    assert result.code == 1
    assert "pip install -e '.[test]'" in result.err and len(result.err.splitlines()) == 1
    monkeypatch.setattr(runner, "__file__", str(tmp_path / "site-packages" / "jmt_fast" / "bench" / "run.py"))
    result = run("bench")
    assert result.code == 1
    assert "clone the repository" in result.err and len(result.err.splitlines()) == 1
