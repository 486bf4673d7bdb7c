"""Shared by all benchmarks: peers timed in turns in one run, the machine's measured ceiling, tables, and JSON rows.

`pytest benchmarks` runs everything; `--seconds` bounds the time spent on one shape and `--results` says where the
rows go. Each `test_<question>.py` fills its `question` and gets one table and one
`results/<device>/<question>.json`, whose rows carry device, versions, date and shape. A test is one shape: its rows
are saved when it has passed, and only then. `--events` is how `jmt-fast bench` follows what happens.
"""

from __future__ import annotations

import itertools
import json
import platform
import re
import subprocess
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

import jmt_fast
from benchmarks.timing import Ceiling, Peer, Timing, stopwatch, wall

HERE = Path(__file__).parent
PACKAGES = ("torch", "triton", "nvidia-dali-cuda130", "av", "numpy")
RIVALS = ("flash_sigmoid", "triton-sigmoid")  # named in a row where they are installed
PASSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=4.0, help="time to spend on one shape, all peers together")
    parser.addoption("--results", type=Path, default=HERE / "results", help="folder for the JSON rows")
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


@dataclass
class Question:
    """The rows of one benchmark file, or of one of its shapes."""

    name: str
    provenance: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(self, shape: str, peer: str, timing: Timing | None = None, **columns: Any) -> None:
        """Add what `peer` did at `shape`; further columns (floor_ms, ratio, gb_per_s, ...) as keywords."""
        self.rows.append({"shape": shape, "peer": peer, **(timing.columns() if timing else {}), **columns})

    def race(
        self, shape: str, timings: dict[str, Timing], against: str, flops: float | None = None, **columns: Any
    ) -> None:
        """Add one row a peer, each with `ratio`: how many times faster than the peer `against`.

        `flops`, the useful operations of a call, give `tflop_per_s`.
        """
        for peer, timing in timings.items():
            speed = {} if flops is None else {"tflop_per_s": flops / timing.median / 1e9}
            self.row(shape, peer, timing, ratio=timings[against].median / timing.median, **speed, **columns)

    def print(self) -> None:
        """One table a shape; a column is there where a row of the shape has something in it."""
        shapes: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            shapes.setdefault(row["shape"], []).append(row)
        for shape, rows in shapes.items():
            columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "shape"]
            table = Table(title=f"{self.name} on {self.provenance['device']}: {shape}", title_justify="left")
            for column in columns:
                table.add_column(column, justify="left" if column in ("peer", "timed", "error") else "right")
            for row in rows:
                table.add_row(*(_cell(row.get(column, "")) for column in columns))
            Console(width=160).print(table)

    def dated(self) -> list[dict[str, Any]]:
        """The rows, each with its provenance, as JSON can hold them: null for NaN."""
        rows = ({**row, **self.provenance} for row in self.rows)
        return [{key: None if value != value else value for key, value in row.items()} for row in rows]

    def save(self, results: Path) -> Path:
        """Write the rows; on disk they replace all rows of their shapes, and those of other shapes stay."""
        path = results / _slug(self.provenance["device"]) / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        shapes: dict[str, list[dict[str, Any]]] = {}
        for row in json.loads(path.read_text()) if path.exists() else []:
            shapes.setdefault(row["shape"], []).append(row)
        shapes |= {row["shape"]: [] for row in self.rows}  # what is replaced keeps its place
        for row in self.dated():
            shapes[row["shape"]].append(row)
        part = path.with_suffix(".part")
        part.write_text("[\n" + ",\n".join(json.dumps(row) for rows in shapes.values() for row in rows) + "\n]\n")
        part.replace(path)
        return path


def _cell(value: Any) -> str:
    if value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} threads"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> dict[str, str]:
    """Power cap [W] and driver of the GPU, by its own tool."""
    index = torch.cuda.current_device()
    query = ["nvidia-smi", f"--id=GPU-{torch.cuda.get_device_properties(index).uuid}", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(
            [*query, "--query-gpu=power.limit,driver_version"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return {"power_cap_w": "unknown", "driver": "unknown"}
    cap, driver = shown.stdout.strip().split(", ")
    return {"power_cap_w": cap, "driver": driver}


@pytest.fixture(scope="session")
def provenance() -> dict[str, Any]:
    """Device, versions and date, as they stand in every row."""
    return {
        "device": _device_name(),
        **(_driver() if torch.cuda.is_available() else {}),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "jmt-fast": jmt_fast.__version__,
        **{package: _version(package) for package in PACKAGES},
        **{rival: _version(rival) for rival in RIVALS if _version(rival) != "not installed"},
    }


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


@pytest.fixture
def race(benchmark: Any, request: pytest.FixtureRequest, device: torch.device) -> Callable[..., dict[str, Timing]]:
    """`race({name: peer, ...}, warmup=2, max_rounds=200)` -> {name: Timing}: in every round each peer has its turn.

    Turns make a busy machine hurt all peers alike, so ratios hold. The first peer is the one pytest-benchmark records.
    A peer that is a text cannot run here, and the text says why; so can those in `optional` fail, and any run out of
    memory: they keep their row, with the reason. Those in `capture` are timed from a CUDA graph, on a GPU.
    """

    def run(
        peers: Mapping[str, Peer | str],
        warmup: int = 2,
        max_rounds: int = 200,
        optional: Collection[str] = (),
        capture: Collection[str] = (),
    ) -> dict[str, Timing]:
        failed, clocks, cost = {}, {}, 0.0
        for name, peer in peers.items():
            if isinstance(peer, str):
                failed[name] = Timing.failed(peer)
                continue
            with warnings.catch_warnings(record=True) as noted:
                try:
                    for _ in range(warmup):
                        peer()
                    once = wall(peer, device)
                    clocks[name] = stopwatch(peer, device, once, name in capture)
                    cost += once
                except Exception as error:
                    if name not in optional and not isinstance(error, torch.OutOfMemoryError):
                        raise
                    failed[name] = Timing.failed(_reason(error, noted))
        seconds: dict[str, list[float]] = {name: [] for name in clocks}

        def turn(name: str) -> None:
            if name not in failed:
                try:
                    seconds[name].append(clocks[name][0]())
                except torch.OutOfMemoryError as error:
                    failed[name] = Timing.failed(_reason(error, []))

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


def _reason(error: Exception, noted: list[warnings.WarningMessage]) -> str:
    """One line. PyTorch's attention says why a backend refuses in warnings, and in the error only that it does."""
    said = [str(warning.message).partition("\n")[0] for warning in noted if warning.category is UserWarning]
    return "; ".join([f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", *said[:2]])
