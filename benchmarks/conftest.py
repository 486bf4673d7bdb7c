"""Shared by all benchmarks: peers timed in turns in one run, the machine's measured ceiling, tables, and JSON rows.

`pytest benchmarks` runs everything; `--seconds` bounds the time spent on one shape and `--results` says where the
rows go. Each `test_<question>.py` fills its `question` and gets one table and one
`results/<device>/<question>.json`, whose rows carry device, versions, date and shape.
"""

from __future__ import annotations

import itertools
import json
import platform
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table

import jmt_fast

Peer = Callable[[], object]
HERE = Path(__file__).parent
PACKAGES = ("torch", "triton", "nvidia-dali-cuda130", "av", "numpy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=4.0, help="time to spend on one shape, all peers together")
    parser.addoption("--results", type=Path, default=HERE / "results", help="folder for the JSON rows")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one peer: median, 20% and 80% quantiles; all NaN with the reason in `error` if it cannot run."""

    median: float
    low: float
    high: float
    rounds: int
    error: str = ""

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        low, median, high = np.quantile(seconds, (0.2, 0.5, 0.8)) * 1e3
        return cls(float(median), float(low), float(high), len(seconds))

    @classmethod
    def failed(cls, error: str) -> Timing:
        return cls(float("nan"), float("nan"), float("nan"), 0, error)

    def columns(self) -> dict[str, Any]:
        """The columns of a row: `ms`, `ms_q20`, `ms_q80`, `rounds` and, if it failed, `error`."""
        row = {"ms": self.median, "ms_q20": self.low, "ms_q80": self.high, "rounds": self.rounds}
        return {**row, "error": self.error} if self.error else row


@dataclass(frozen=True)
class Ceiling:
    """What this machine reaches in one plain copy and one plain matrix product, measured in this run."""

    bytes_per_second: float
    flops: dict[str, float]

    def floor(self, nbytes: float, flops: float, precision: str) -> float:
        """Milliseconds below which this work cannot go here: the slower of moving its bytes and doing its products."""
        return 1e3 * max(nbytes / self.bytes_per_second, flops / self.flops[precision])


@dataclass
class Question:
    """The rows of one benchmark file."""

    name: str
    provenance: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(self, shape: str, peer: str, timing: Timing | None = None, **columns: Any) -> None:
        """Add what `peer` did at `shape`; further columns (floor_ms, ratio, gb_per_s, ...) as keywords."""
        self.rows.append({"shape": shape, "peer": peer, **(timing.columns() if timing else {}), **columns})

    def race(self, shape: str, timings: dict[str, Timing], against: str, **columns: Any) -> None:
        """Add one row a peer, each with `ratio`: how many times faster than the peer `against`."""
        for peer, timing in timings.items():
            self.row(shape, peer, timing, ratio=timings[against].median / timing.median, **columns)

    def print(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        table = Table(title=f"{self.name} on {self.provenance['device']}", title_justify="left")
        for column in columns:
            table.add_column(column, justify="left" if column in ("shape", "peer", "error") else "right")
        for row in self.rows:
            table.add_row(*(_cell(row.get(column, "")) for column in columns))
        Console(width=160).print(table)

    def save(self, results: Path) -> Path:
        """Write the rows, each with its provenance; rows of other shapes and peers already on disk stay."""
        path = results / _slug(self.provenance["device"]) / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {(row["shape"], row["peer"]): row for row in json.loads(path.read_text())} if path.exists() else {}
        kept |= {(row["shape"], row["peer"]): {**row, **self.provenance} for row in self.rows}
        lines = (json.dumps(_finite(row)) for row in kept.values())
        path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
        return path


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in row.items()}


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


@pytest.fixture(scope="session")
def provenance() -> dict[str, Any]:
    """Device, versions and date, as they stand in every row."""
    return {
        "device": _device_name(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "jmt-fast": jmt_fast.__version__,
        **{package: _version(package) for package in PACKAGES},
    }


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def question(request: pytest.FixtureRequest, provenance: dict[str, Any]) -> Iterable[Question]:
    """The rows of this file; printed and saved when its last test is done."""
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    found = Question(name, provenance)
    yield found
    if found.rows:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            found.print()
            print(f"rows: {found.save(request.config.getoption('--results'))}")


@pytest.fixture(scope="session")
def ceiling(device: torch.device) -> Ceiling:
    """Best of several copies of 128 MiB and of several 2048-wide matrix products in each precision."""
    source = torch.randn(32 << 20, device=device)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), device)
    flops = {}
    for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
        flops[name] = 2 * 2048**3 / _best(lambda a=a, b=b: a @ b, device)
    return Ceiling(2 * source.nbytes / copy, flops)


def _best(call: Peer, device: torch.device, repeats: int = 5) -> float:
    call()
    return min(_once(call, device) for _ in range(repeats))


def _once(call: Peer, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@pytest.fixture(scope="session")
def rotate() -> Callable[[Callable[..., object], Iterable[tuple]], Peer]:
    """`rotate(function, inputs)` calls the function with the next inputs each time, so that none stays in a cache."""

    def make(function: Callable[..., object], inputs: Iterable[tuple]) -> Peer:
        turn = itertools.cycle(list(inputs))
        return lambda: function(*next(turn))

    return make


@pytest.fixture
def race(benchmark: Any, request: pytest.FixtureRequest, device: torch.device) -> Callable[..., dict[str, Timing]]:
    """`race({name: peer, ...}, warmup=2, max_rounds=200)` -> {name: Timing}: in every round each peer runs once.

    Turns make a busy machine hurt all peers alike, so ratios hold. The first peer is the one pytest-benchmark records.
    A peer that runs out of memory keeps its row, with the reason.
    """

    def run(peers: dict[str, Peer], warmup: int = 2, max_rounds: int = 200) -> dict[str, Timing]:
        failed, seconds, cost = {}, {}, 0.0
        for name, peer in peers.items():
            try:
                for _ in range(warmup):
                    peer()
                cost += _once(peer, device)
                seconds[name] = []
            except torch.OutOfMemoryError as error:
                failed[name] = Timing.failed(str(error).splitlines()[0])
        first, *others = list(seconds) or [None]
        if first is not None:
            rounds = int(min(max(5, request.config.getoption("--seconds") / cost), max_rounds))

            def others_turn() -> None:
                for name in others:
                    seconds[name].append(_once(peers[name], device))

            def own_turn() -> None:
                seconds[first].append(_once(peers[first], device))

            benchmark.pedantic(own_turn, setup=others_turn, rounds=rounds, iterations=1)
        return {name: failed.get(name) or Timing.of(seconds[name]) for name in peers}

    return run
