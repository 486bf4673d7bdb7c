"""Shared by all benchmarks: peers timed in turns in one run, the machine's measured ceiling, tables, and JSON rows.

`pytest benchmarks` runs everything; `--seconds` bounds the time spent on one shape, `--peers` leaves out what is slow
to compile, and `--results` says where the rows go. Each `test_<question>.py` fills its `question` and gets one table
and one `results/<device>/<question>.json`, whose rows carry device, versions, date and shape. A test is one shape: its
rows are saved when it has passed, and only then. `--events` is how `jmt-fast bench` follows what happens.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.rows import Question, provenance_of_this_run
from benchmarks.timing import Call, Ceiling, Peer, Timing, stopwatch, wall

HERE = Path(__file__).parent
PASSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=4.0, help="time to spend on one shape, all peers together")
    parser.addoption("--results", type=Path, default=HERE / "results", help="folder for the JSON rows")
    parser.addoption(
        "--peers",
        action="append",
        help="part of a name, in any case; give it again for more: beside ours and what ratios are against, only these",
    )
    parser.addoption("--events", type=Path, help="file (or pipe) to tell what happens, one JSON object a line")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Events(config.getoption("--events")), "benchmark-events")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


class Events:
    """Tells a caller what happens: {"count": shapes}, {"start": name}, {"done": name}, {"failed": name, "reason"},
    {"path": file, "rows": [...]}."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("w") if path else None

    def tell(self, **event: Any) -> None:
        if self._file:
            print(json.dumps(event), file=self._file, flush=True)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.tell(count=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.tell(start=_short(nodeid))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed(report)
        elif report.when == "teardown":
            self.tell(done=_short(report.nodeid))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._failed(report)

    def _failed(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else str(report.longrepr).strip().rpartition("\n")[2]
        self.tell(failed=_short(report.nodeid), reason=text.partition("\n")[0], details=report.longreprtext)


def _short(nodeid: str) -> str:
    return nodeid.rpartition("/")[2].removeprefix("test_").replace(".py::test_", ": ")


@pytest.fixture(scope="session")
def provenance() -> dict[str, Any]:
    return provenance_of_this_run()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def _answered(request: pytest.FixtureRequest, provenance: dict[str, Any]) -> Iterable[Question]:
    """The rows of this file's finished shapes; printed when its last test is done."""
    found = Question(request.module.__name__.rpartition(".")[2].removeprefix("test_"), provenance)
    yield found
    if found.rows:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            found.print()


@pytest.fixture
def question(request: pytest.FixtureRequest, _answered: Question) -> Iterable[Question]:
    """The rows of this shape, saved when its test has passed: nothing is kept that a red test timed."""
    found = Question(_answered.name, _answered.provenance)
    yield found
    if found.rows and request.node.stash.get(PASSED, False):
        path = found.save(request.config.getoption("--results"))
        request.config.pluginmanager.getplugin("benchmark-events").tell(path=str(path), rows=found.dated())
        _answered.rows += found.rows


@pytest.fixture(scope="session")
def ceiling(device: torch.device) -> Ceiling:
    return Ceiling.measure(device)


@pytest.fixture(scope="session")
def rotate() -> Callable[[Callable[..., object], Iterable[tuple]], Peer]:
    """`rotate(function, inputs)` calls the function with the next inputs each time, so that none stays in a cache."""

    def make(function: Callable[..., object], inputs: Iterable[tuple]) -> Peer:
        turn = itertools.cycle(list(inputs))
        return lambda: function(*next(turn))

    return make


@pytest.fixture(scope="session")
def chosen(pytestconfig: pytest.Config) -> Callable[..., dict[str, Any]]:
    """`chosen(peers, *always)`: of {name: peer} those whose names begin with one of `always`, and those that `--peers`
    asks for; without that option all."""
    parts = [part.lower() for part in pytestconfig.getoption("--peers") or [""]]

    def keep(peers: Mapping[str, Any], *always: str) -> dict[str, Any]:
        return {
            name: peer
            for name, peer in peers.items()
            if name.startswith(always) or any(part in name.lower() for part in parts)
        }

    return keep


@pytest.fixture
def race(benchmark: Any, request: pytest.FixtureRequest, device: torch.device) -> Callable[..., dict[str, Timing]]:
    """`race({name: peer, ...}, warmup=2, max_rounds=200)` -> {name: Timing}: in every round each peer has its turn.

    Turns make a busy machine hurt all peers alike, so ratios hold. The first peer is the one pytest-benchmark records.
    A peer that is a text cannot run here, and the text says why; so can those in `optional` fail, and any run out of
    memory: they keep their row, with the reason. Those in `capture` are timed from a CUDA graph, on a GPU. `checks` are
    called before anything is timed, each just before its peer; one that raises is a failure of the peer.
    """

    def run(
        peers: Mapping[str, Peer | str],
        warmup: int = 2,
        max_rounds: int = 200,
        optional: Collection[str] = (),
        capture: Collection[str] = (),
        checks: Mapping[str, Call] | None = None,
    ) -> dict[str, Timing]:
        failed, clocks, cost = {}, {}, 0.0

        def fail(name: str, error: Exception, noted: Sequence[warnings.WarningMessage] = ()) -> None:
            if name not in optional and not isinstance(error, torch.OutOfMemoryError):
                raise error
            failed[name] = Timing.failed(_reason(error, noted))

        for name, peer in peers.items():
            if isinstance(peer, str):
                failed[name] = Timing.failed(peer)
                continue
            with warnings.catch_warnings(record=True) as noted:
                try:
                    if checks and name in checks:
                        checks[name]()
                    for _ in range(warmup):
                        peer()
                    once = wall(peer, device)
                    clocks[name] = stopwatch(peer, device, once, name in capture)
                    cost += once
                except Exception as error:
                    fail(name, error, noted)
        seconds: dict[str, list[float]] = {name: [] for name in clocks}

        def turn(name: str) -> None:
            if name not in failed:
                try:
                    seconds[name].append(clocks[name][0]())
                except Exception as error:
                    fail(name, error)

        def others_turn() -> tuple[tuple[str], dict[str, Any]]:
            for name in others:
                turn(name)
            return (first,), {}

        first, *others = list(clocks) or [""]
        if first:
            rounds = int(min(max(5, request.config.getoption("--seconds") / cost), max_rounds))
            benchmark.pedantic(turn, setup=others_turn, rounds=rounds, iterations=1)
        return {name: failed.get(name) or Timing.of(seconds[name], clocks[name][1]) for name in peers}

    return run


def _reason(error: Exception, noted: Iterable[warnings.WarningMessage]) -> str:
    """One line. PyTorch's attention says why a backend refuses in warnings, and in the error only that it does."""
    said = [str(warning.message).partition("\n")[0] for warning in noted if warning.category is UserWarning]
    return "; ".join([f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", *said[:2]])
