"""The rows of a benchmark: its table, its JSON on disk, and what every row says of device, versions and date."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import jmt_fast
from benchmarks.timing import Timing

PACKAGES = ("torch", "triton", "nvidia-dali-cuda130", "av", "numpy")
RIVALS = ("flash_sigmoid", "triton-sigmoid")  # named in a row where they are installed


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


def provenance_of_this_run() -> dict[str, Any]:
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
