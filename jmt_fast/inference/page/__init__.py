"""The report: one self-contained HTML file a video, and an index over many.

Nothing is fetched when a page is looked at: style, script and chart library (uPlot, MIT, its licence beside it) are in
the file, and its content security policy lets in nothing else than the linked video. Names of files are data and
text there, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import mimetypes
import os
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np

from jmt_fast.errors import JMTError
from jmt_fast.inference.formats import whole
from jmt_fast.inference.trace import Trace

PARTS = Path(__file__).parent
SCRIPTS = {  # of a page, one after the other in one scope
    "video": ("video_data", "video_time", "video_charts", "video_plane", "video_now", "video_controls"),
    "index": ("index",),
}
TICK = 1e-4  # seconds; what times are rounded to
SCALE = 10_000  # values are sent as int16
MAX_EMBEDDED = 200 * 2**20  # bytes; browsers take no script of 512 MiB, and base64 adds a third


def write_video_page(
    traces: Sequence[Trace],
    out: Path,
    title: str,
    video: Path | None = None,
    embed: bool = False,
    index: Path | None = None,
) -> None:
    """Write the page of one video with a trace for each person.

    `video` is linked relative to `out`, or with `embed` put into the page. `index`: a page to link back to. Raises
    JMTError when the video is too large to be embedded or the page cannot be written.
    """
    clock = max(traces, key=lambda trace: len(trace.times))
    times = clock.times
    ticks = np.round((times - times[0]) / TICK).astype(np.uint32)
    data: dict[str, Any] = {
        "begin": float(times[0]),
        "end": float(clock.ends[-1]),
        "tick": TICK,
        "scale": SCALE,
        "times": _packed(ticks, "<u4"),
        "people": [_person(trace, times) for trace in traces],
        "video": None,
    }
    embedded = ""
    if video is not None:
        data["video"] = shown(video.name)
        if embed:
            embedded = _embedded(video)
            data["embedded"] = mimetypes.guess_type(video.name)[0] or "video/mp4"
        else:
            data["url"] = link(video, out.parent)
    back = "" if index is None else f'<a href="{link(index, out.parent)}">All videos</a>'
    facts = _facts(traces, float(clock.ends[-1] - times[0]))
    page = render("video", title, facts=facts, back=back, data=_json(data), embedded=embedded)
    with whole(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(name: str, title: str, **fields: str) -> str:
    """`<name>.html` with its head, scripts and policy; `title` is plain text, `fields` are markup."""
    style = "\n".join(_part(each) for each in ("uPlot.min.css", "common.css", f"{name}.css"))
    script = "\n".join(_part(f"{each}.js") for each in SCRIPTS[name])
    scripts = {"library": _part("uPlot.iife.min.js"), "script": script}
    hashes = " ".join(_hash(text) for text in scripts.values())
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "media-src 'self' file: data: blob:"
    )
    return Template(_part("head.html") + _part(f"{name}.html")).substitute(
        policy=policy, title=html.escape(title), style=style, **scripts, **fields
    )


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def shown(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(name).decode("utf-8", "replace")


def link(target: Path, folder: Path) -> str:
    """The URL of a file, relative to a folder; every byte that means something in a URL or in HTML is escaped."""
    target = target.parent.resolve() / target.name  # `..` leaves a linked folder by its real parent
    return quote(os.fsencode(os.path.relpath(target, folder.resolve())))


def _person(trace: Trace, times: np.ndarray) -> dict[str, Any]:
    """One person's values on the page's clock."""
    values, valid = trace.values, trace.valid
    if not np.array_equal(trace.times, times):
        values = np.stack([np.interp(times, trace.times, column) for column in values.T], axis=1)
        nearest = np.searchsorted(trace.times, times, side="right") - 1
        valid = valid[np.maximum(nearest, 0)] & (times >= trace.times[0]) & (times < trace.ends[-1])
    numbers = np.round(np.clip(values, -1, 1) * SCALE)
    return {
        "name": trace.person,
        "valence": _packed(numbers[:, 0], "<i2"),
        "arousal": _packed(numbers[:, 1], "<i2"),
        "away": away(valid),
    }


def away(valid: np.ndarray) -> list[list[int]]:
    """[first, after] of each run of frames that are not valid."""
    return np.flatnonzero(np.diff(~valid, prepend=False, append=False)).reshape(-1, 2).tolist()


def _packed(numbers: np.ndarray, kind: str) -> str:
    return base64.b64encode(numbers.astype(kind).tobytes()).decode()


def _json(data: dict[str, Any]) -> str:
    """JSON for a script element: nothing in it can close the element or begin a comment."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _embedded(video: Path) -> str:
    size = video.stat().st_size
    if size > MAX_EMBEDDED:
        raise JMTError(
            f"{video}: {size / 2**20:.0f} MiB are too many for one page (at most {MAX_EMBEDDED >> 20}); "
            "leave --embed out, and the page links the video"
        )
    return base64.b64encode(video.read_bytes()).decode()


def _facts(traces: Sequence[Trace], seconds: float) -> str:
    frames = len(traces[0].times)
    parts = [length(seconds), f"{frames:,} frames"]
    if len(traces) > 1:
        parts.append(f"{len(traces)} people")
    else:
        [trace] = traces
        parts.append(f"face seen {trace.valid.mean():.0%}")
        if trace.valid.any():
            valence, arousal = trace.values[trace.valid].mean(axis=0)
            parts.append(f"mean valence {signed(valence)}, arousal {signed(arousal)}")
    return " \u00b7 ".join(parts)


def signed(value: float) -> str:
    """Two digits with a proper minus sign, and zero without one."""
    return f"{value:+z.2f}".replace("-", "\u2212")


def length(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole_seconds = round(seconds)
    hours, minutes = divmod(whole_seconds // 60, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{whole_seconds % 60:02}"
