"""The command line, called as a user calls it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from jmt_fast.cli import main
from jmt_fast.data.synthetic import synthesise
from jmt_fast.models import load_backbones
from jmt_fast.models.checkpoint import save_backbones_folder

ROOT = Path(__file__).parents[2]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """run("predict", path, ...) in this process."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["jmt-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
            sys.exit(0)
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def start() -> Callable[..., subprocess.Popen]:
    """start("synth", ...) as a process of its own, for signals and limits.

    It listens to Ctrl-C even if this process does not: a shell lets what it starts in the background ignore it, and
    what is ignored, unlike what is handled, stays so in a new program.
    """

    def call(*arguments: object, **options: object) -> subprocess.Popen:
        command: Sequence[str] = [sys.executable, "-m", "jmt_fast", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(command, cwd=ROOT, text=True, **pipes, **options)
        finally:
            signal.signal(signal.SIGINT, before)

    return call


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five synthetic videos of six seconds and their manifest."""
    out = tmp_path_factory.mktemp("collection") / "set"
    synthesise(out, 5, 6.0, seed=1, size=48, fps=15)
    return out


@pytest.fixture(scope="session")
def backbones(small_features, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `--backbones` takes."""
    folder = tmp_path_factory.mktemp("backbones") / "random"
    folder.mkdir()
    save_backbones_folder(load_backbones(small_features, "random", 0), small_features, folder)
    return folder
