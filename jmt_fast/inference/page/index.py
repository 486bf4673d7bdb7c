"""The index over many videos: a row a video, with a small picture of its trace."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jmt_fast.inference.formats import whole
from jmt_fast.inference.page import length, link, render, signed
from jmt_fast.inference.trace import Trace

POINTS = 80  # of a small picture: 10,000 rows are some 15 MB
WIDTH, HEIGHT = 240, 88  # its units, of which half a pixel is enough


@dataclass(frozen=True)
class Entry:
    """What the index says of one video; `row` is markup."""

    title: str
    seconds: float
    row: str


def entry(title: str, page: Path, folder: Path, traces: Sequence[Trace]) -> Entry:
    """The row of a video whose page is `page`, in an index that lies in `folder`; figures are over all its people."""
    first = max(traces, key=lambda trace: len(trace.times))
    seconds = float(first.ends[-1] - first.times[0])
    valid = np.concatenate([trace.valid for trace in traces])
    values = np.concatenate([trace.values for trace in traces])[valid]
    means = values.mean(axis=0) if len(values) else [np.nan, np.nan]
    variation = values.std(axis=0).mean() if len(values) else np.nan
    cells = [
        f'<td><a href="{link(page, folder)}">{html.escape(title)}</a>',
        f"<td>{picture(traces[0])}",
        _number(seconds, length(seconds)),
        _number(len(traces), str(len(traces))),
        _number(float(valid.mean()), f"{valid.mean():.0%}"),
        *(_number(float(mean), signed(mean)) for mean in means),
        _number(float(variation), f"{variation:.2f}"),
    ]
    return Entry(title, seconds, f"<tr>{''.join(cells)}</tr>")


def write_index(entries: Sequence[Entry], out: Path, title: str) -> None:
    """Write the index page. Raises JMTError when it cannot be written."""
    total = length(sum(each.seconds for each in entries))
    videos = "1 video" if len(entries) == 1 else f"{len(entries):,} videos"
    keys = "".join(
        f'<span class="key" style="background:var(--{name})"></span>{name}' for name in ("valence", "arousal")
    )
    rows = "\n".join(each.row for each in entries)
    page = render("index", title, facts=f"{videos} \u00b7 {total} in all{keys}", rows=rows)
    with whole(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def picture(trace: Trace) -> str:
    """Inline SVG of one person's valence and arousal: means over spans of time, gaps where no frame is valid."""
    spans = min(POINTS, len(trace.times))
    edges = np.linspace(0, len(trace.times), spans + 1).astype(int)
    count = np.add.reduceat(trace.valid.astype(int), edges[:-1])
    lines = [f'<line x1="0" x2="{WIDTH}" y1="{HEIGHT // 2}" y2="{HEIGHT // 2}"/>']
    for name, column in zip(("valence", "arousal"), trace.values.T, strict=True):
        sums = np.add.reduceat(np.where(trace.valid, column, 0), edges[:-1])
        for run in _runs(count > 0):
            points = " ".join(
                f"{(at + 0.5) * WIDTH / spans:.0f},{(1 - sums[at] / count[at]) / 2 * HEIGHT:.0f}" for at in run
            )
            lines.append(f'<polyline class="{name}" points="{points}"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img">{"".join(lines)}</svg>'


def _runs(some: np.ndarray) -> list[np.ndarray]:
    at = np.flatnonzero(some)
    return [run for run in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(run)]


def _number(value: float, text: str) -> str:
    """Without a value, an empty cell that is sorted as the least."""
    if np.isnan(value):
        return '<td class="number" data-value="-9">'
    return f'<td class="number" data-value="{value:.6g}">{text}'
