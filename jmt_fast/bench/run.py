"""The benchmarks of a checkout, run by pytest in a process of their own, which tells over a pipe how far it is."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from jmt_fast.errors import JMTError

QUESTIONS = ("attention", "fusion", "features", "graph", "media", "collection")
Progress = Callable[[int, int, str], None]
PATIENCE = 60.0  # seconds that an interrupted run gets to end by itself


@dataclass
class Outcome:
    """Rows of the shapes that were finished, the files that hold them, and the failures as `name: reason`."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)


def checkout() -> Path:
    """The root of the checkout that this package is imported from. JMTError where the benchmarks cannot run."""
    root = Path(__file__).parents[2]
    if not (root / "benchmarks" / "conftest.py").is_file():
        raise JMTError(
            "the benchmarks are not part of an installed package: clone the repository and run "
            "`pip install -e '.[test]'` in it"
        )
    for module in ("pytest", "pytest_benchmark"):
        if find_spec(module) is None:
            raise JMTError(f"{module.replace('_', '-')} is not installed: run `pip install -e '.[test]'` in {root}")
    return root


def run_benchmarks(
    root: Path, only: Sequence[str], seconds: float, results: Path, progress: Progress, outcome: Outcome
) -> None:
    """Run the benchmarks of the questions `only` (of QUESTIONS; none: all) and fill `outcome` as shapes are finished.

    Args:
        root: the checkout.
        only: which `benchmarks/test_<question>.py`.
        seconds: to spend on the rounds of one shape; compiling comes on top.
        results: folder of the rows: `<device>/<question>.json`, saved after each shape.
        progress: called as progress(done, total, name of the shape).

    A shape that fails leaves no row; the others go on. KeyboardInterrupt passes when the run has ended.

    Raises:
        JMTError: pytest could not run at all.
    """
    unknown = set(only) - set(QUESTIONS)
    if unknown:
        raise JMTError(f"unknown benchmark {', '.join(sorted(unknown))}: choose among {', '.join(QUESTIONS)}")
    files = [f"benchmarks/test_{name}.py" for name in QUESTIONS if not only or name in only]
    ours, theirs = os.pipe()
    options = ("--seconds", str(seconds), "--results", str(results.absolute()), "--events", f"/dev/fd/{theirs}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *options]
    with open(ours, "rb", buffering=0) as events, tempfile.TemporaryFile("w+", errors="replace") as said:
        with subprocess.Popen(
            command, cwd=root, pass_fds=(theirs,), stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:
            os.close(theirs)
            try:
                _follow(_events(events, process), progress, outcome)
                code = process.wait()
            except BaseException:
                _stop(process)
                raise
        if code and not outcome.failed:
            said.seek(0)
            lines = [line for line in said.read().splitlines() if line.strip()]
            raise JMTError(f"pytest ended with exit code {code}: {lines[-1] if lines else 'it said nothing'}")


def _follow(events: Iterator[dict[str, Any]], progress: Progress, outcome: Outcome) -> None:
    done = total = 0
    for event in events:
        match event:
            case {"count": int(count)}:
                total = count
            case {"start": str(name)}:
                progress(done, total, name)
            case {"done": str(name)}:
                done += 1
                progress(done, total, name)
            case {"failed": str(name), "reason": reason, "details": details}:
                outcome.failed.append(f"{name}: {reason}")
                outcome.details.append(details)
            case {"path": str(path), "rows": rows}:
                outcome.rows += rows
                if Path(path) not in outcome.files:
                    outcome.files.append(Path(path))


def _events(pipe: IO[bytes], process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """What comes through the pipe until the process ends; its own children may keep the pipe open for longer."""
    rest = b""
    while True:
        ended = process.poll() is not None
        if select.select([pipe], [], [], 0 if ended else 0.2)[0]:
            piece = pipe.read(1 << 16)
            if not piece:
                return
            *lines, rest = (rest + piece).split(b"\n")
            yield from map(json.loads, lines)
        elif ended:
            return


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Pass an interruption on: the run has a session of its own, so a terminal's Ctrl-C reaches it only through us."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
