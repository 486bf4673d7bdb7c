"""From the benchmarks' JSON rows to README's tables and the plot. What has no rows is absent, never guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jmt_fast.bench.run import QUESTIONS
from jmt_fast.errors import JMTError

START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
OURS = ("jmt-fast", "prepared", "JMT", "DALI graph", "decoded in the graph")
AGAIN = ", again"  # a second run of the same peer, to show the noise
REPLAY = ", graph replay"  # the CUDA graph of the peer without what a call does around it
TITLES = {
    "attention": "Sigmoid attention",
    "fusion": "The fusion model",
    "features": "The backbones, a clip at each one's best batch",
    "graph": "From frames and sound to the networks' inputs",
    "media": "From files to frames, clips and sound",
    "collection": "Collections: the work around the networks",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One shape: our fastest row, the peer that ratios are against, the fastest other if it beats that one; of ours
    also the row of its bare CUDA graph."""

    shape: str
    ours: Row
    base: Row
    faster: Row | None
    replay: Row | None
    floor: float | None

    @classmethod
    def of(cls, shape: str, rows: list[Row]) -> Comparison | None:
        """None where our row or the one with ratio 1 is missing."""
        timed = [row for row in rows if row.get("ratio") and not row["peer"].endswith((AGAIN, REPLAY))]
        ours = [row for row in timed if row["peer"].startswith(OURS)]
        others = sorted((row for row in timed if not row["peer"].startswith(OURS)), key=lambda row: -row["ratio"])
        base = next((row for row in others if row["ratio"] == 1.0), None)
        if not ours or base is None:
            return None
        best = max(ours, key=lambda row: row["ratio"])
        faster = others[0] if others[0]["ratio"] > 1.0 else None
        replay = next((row for row in rows if row["peer"] == best["peer"] + REPLAY and row["ms"]), None)
        return cls(shape, best, base, faster, replay, _floor(best, rows))


def _floor(ours: Row, rows: list[Row]) -> float | None:
    """The row's own floor, or that of a floor's row in the same precision."""
    if "floor_ms" in ours:
        return float(ours["floor_ms"])
    precision = ours["peer"].rpartition(", ")[2]
    return next((row["ms"] for row in rows if row["peer"].startswith(f"floor, {precision},")), None)


def read(results: Path) -> dict[str, dict[str, list[Row]]]:
    """device -> question -> rows, of all files `<device>/<question>.json`; GPUs first. JMTError for a damaged file."""
    found: dict[str, dict[str, list[Row]]] = {}
    for path in sorted(results.glob("*/*.json")):
        if path.stem not in QUESTIONS:
            continue
        try:
            rows = json.loads(path.read_text())
            found.setdefault(rows[0]["device"], {})[path.stem] = rows
        except (ValueError, LookupError, TypeError) as error:
            raise JMTError(
                f"{path} is no file of benchmark rows ({error}): delete it and run `jmt-fast bench`"
            ) from error
    return dict(sorted(found.items(), key=lambda item: (not _is_gpu(item[1]), item[0])))


def _is_gpu(questions: dict[str, list[Row]]) -> bool:
    return any("power_cap_w" in row for rows in questions.values() for row in rows)


def comparisons(rows: Iterable[Row]) -> list[Comparison]:
    """One a shape, in the order of the rows."""
    shapes: dict[str, list[Row]] = {}
    for row in rows:
        shapes.setdefault(row["shape"], []).append(row)
    return [found for shape, of_shape in shapes.items() if (found := Comparison.of(shape, of_shape))]


def section(results: Path) -> str:
    """README's text between the markers."""
    found = read(results)
    parts = []
    for device, questions in found.items():
        parts.append(_caption(device, [row for rows in questions.values() for row in rows]))
        for question in QUESTIONS:
            if question in questions:
                parts.append(_table(TITLES[question], comparisons(questions[question])))
    if not any(_is_gpu(questions) for questions in found.values()):
        parts.append("Nothing has been measured on a GPU yet.")
    return "\n\n".join(parts)


def _caption(device: str, rows: list[Row]) -> str:
    days = sorted({datetime.fromisoformat(row["date"]).date() for row in rows})
    dates = " to ".join(f"{day:%-d %B %Y}" for day in dict.fromkeys((days[0], days[-1])))
    versions = ", ".join(
        f"{name} {' and '.join(sorted({row[name] for row in rows if name in row}))}" for name in ("torch", "triton")
    )
    caps = sorted({f", power cap {row['power_cap_w']} W" for row in rows if "power_cap_w" in row})
    return f"**{device}**{''.join(caps)}, {dates}, {versions}."


def _table(title: str, found: list[Comparison]) -> str:
    """Columns that would be empty are left out."""
    columns = {
        title: [each.shape for each in found],
        **_peers("ours", [each.ours for each in found]),
        **_peers("against", [each.base for each in found]),
        "ratio": [f"{each.ours['ratio']:.2f}" for each in found],
        **_peers("faster peer", [each.faster for each in found]),
        "ratio to it": [f"{each.ours['ratio'] / each.faster['ratio']:.2f}" if each.faster else "" for each in found],
        "graph replay": [f"{_time(each.replay)} ms" if each.replay else "" for each in found],
        "floor": [f"{_ms(each.floor)} ms" if each.floor else "" for each in found],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    lines = [list(shown), ["---"] * len(shown), *zip(*shown.values(), strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _peers(title: str, rows: list[Row | None]) -> dict[str, list[str]]:
    """A column of times; the peer's name stands in the header if it is the same all the way down."""
    names = {row["peer"] for row in rows if row}
    if len(names) == 1:
        return {f"{title}: {names.pop()}": [f"{_time(row)} ms" if row else "" for row in rows]}
    return {title: [f"{_time(row)} ms ({row['peer']})" if row else "" for row in rows]}


def _time(row: Row) -> str:
    return _ms(row["ms_per_clip"] if "ms_per_clip" in row else row["ms"])


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_report(root: Path) -> list[Path]:
    """Rewrite the part of `root/README.md` between the markers, and `root/docs/benchmarks.png`; the files written.

    Raises:
        JMTError: README.md lacks the markers, or a file of rows is damaged.
    """
    readme, picture = root / "README.md", root / "docs" / "benchmarks.png"
    results = root / "benchmarks" / "results"
    before, start, rest = readme.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise JMTError(f"{readme} lacks the lines {START} and {END}, between which the tables go")
    readme.write_text(f"{before}{START}\n\n{section(results)}\n\n{END}{after}")
    draw(read(results), picture)
    return [readme, picture]


def draw(found: dict[str, dict[str, list[Row]]], path: Path) -> None:
    """Bars of the ratios, a panel for each question of each device; a diamond marks a peer that beats the base."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (f"{TITLES[question]}: {device}", shown)
        for device, questions in found.items()
        for question in QUESTIONS
        if question in questions and (shown := comparisons(questions[question]))
    ]
    if not panels:
        return
    heights = [len(shown) + 1.5 for _, shown in panels]
    figure = Figure(figsize=(9, 0.24 * sum(heights) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, shown) in zip(
        figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0], panels, strict=True
    ):
        places = range(len(shown), 0, -1)
        ratios = [each.ours["ratio"] for each in shown]
        axes.barh(places, ratios, height=0.7, color=["#2a7f9e" if ratio >= 1 else "#c46b4d" for ratio in ratios])
        for place, each in zip(places, shown, strict=True):
            axes.text(each.ours["ratio"], place, f" {each.ours['ratio']:.2f}", va="center", fontsize=7)
            if each.faster:
                axes.plot(each.faster["ratio"], place, "D", color="black", markersize=4)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(places, [re.sub(r", (fp32|bf16)$", "", each.shape) for each in shown], fontsize=7)
        axes.set_xlim(0, 1.12 * max(ratios + [each.faster["ratio"] for each in shown if each.faster] + [1]))
        axes.set_title(title, fontsize=9, loc="left")
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("times as fast as the peer of ratio 1 (line); diamond: a peer that is faster than it", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
