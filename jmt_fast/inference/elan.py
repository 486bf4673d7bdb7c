"""A trace for ELAN: segments as annotations, and the series for its Timeseries Viewer.

Three files: `NAME.eaf` (EAF 3.0), the series `NAME_timeseries.csv`, and `NAME_tsconf.xml`, which tells the viewer what
the columns are. ELAN finds moved files by the last part of their links, in the folder of the .eaf.
"""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

if TYPE_CHECKING:
    from jmt_fast.inference.trace import Trace

THRESHOLD = 0.3  # of valence and arousal, in both directions
TRACKS = {"valence": "27,127,92", "arousal": "180,67,31"}  # red, green, blue
LEVELS = {1: "high", -1: "low"}
SERIES = "_timeseries.csv"
CONFIGURATION = "_tsconf.xml"  # ELAN looks for this ending
CSV_PROVIDER = "mpi.eudico.client.annotator.timeseries.csv.CSVServiceProvider"
SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0

Whole = Callable[[Path], AbstractContextManager[Path]]


def beside(path: Path) -> tuple[Path, Path]:
    """The series and its configuration, of an .eaf."""
    return path.with_name(path.stem + SERIES), path.with_name(path.stem + CONFIGURATION)


def write_elan(trace: Trace, path: Path, whole: Whole) -> None:
    """Write `path` (.eaf) and the two files of its series; `whole(path)` gives the temporary path to write to."""
    series, configuration = beside(path)
    with whole(series) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("#time,valence,arousal,valid\n")  # ELAN leaves lines with # out, and would read a header as values
        for time, (valence, arousal), valid in zip(trace.times, trace.values, trace.valid, strict=True):
            file.write(f"{time:.3f},{valence:.4f},{arousal:.4f},{int(valid)}\n")
    for target, document in (
        (configuration, _configuration(series)),
        (path, _document(trace, path, [series, configuration])),
    ):
        ElementTree.indent(document)
        with whole(target) as temporary:
            ElementTree.ElementTree(document).write(temporary, encoding="UTF-8", xml_declaration=True)


def segments(trace: Trace, column: int, threshold: float = THRESHOLD) -> list[tuple[int, int, str]]:
    """(begin, end, high or low) in milliseconds: where a valid value is at least so far from 0; column 0 is valence."""
    values = trace.values[:, column]
    level = np.where(trace.valid & (np.abs(values) >= threshold), np.sign(values), 0).astype(int)
    changes = np.flatnonzero(np.diff(level, prepend=0, append=0))
    found = []
    for first, after in pairwise(changes):
        if level[first]:
            begin = max(round(1000 * float(trace.times[first])), 0)
            end = max(round(1000 * float(trace.ends[after - 1])), begin + 1)
            found.append((begin, end, LEVELS[int(level[first])]))
    return found


def _document(trace: Trace, path: Path, linked: list[Path]) -> Element:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    root = Element("ANNOTATION_DOCUMENT", AUTHOR="jmt-fast", DATE=now, FORMAT="3.0", VERSION="3.0")
    root.set("xmlns:xsi", "http://www.w3.org/2001/XMLSchema-instance")
    root.set("xsi:noNamespaceSchemaLocation", SCHEMA)
    header = SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    video = trace.source.absolute()
    kind = mimetypes.guess_type(video.name)[0] or "unknown"
    relative = os.path.relpath(video, path.absolute().parent)
    SubElement(
        header, "MEDIA_DESCRIPTOR", MEDIA_URL=_url(video), RELATIVE_MEDIA_URL=_text(f"./{relative}"), MIME_TYPE=kind
    )
    for each, kind in zip(linked, ("text/csv", "text/xml"), strict=True):
        SubElement(
            header,
            "LINKED_FILE_DESCRIPTOR",
            LINK_URL=_url(each),
            RELATIVE_LINK_URL=_text(f"./{each.name}"),
            MIME_TYPE=kind,
        )
    times = SubElement(root, "TIME_ORDER")
    count = slots = 0
    for column, name in enumerate(TRACKS):
        tier = SubElement(root, "TIER", TIER_ID=name, LINGUISTIC_TYPE_REF="level", PARTICIPANT=_text(trace.person))
        for begin, end, level in segments(trace, column):
            count, slots = count + 1, slots + 2
            SubElement(times, "TIME_SLOT", TIME_SLOT_ID=f"ts{slots - 1}", TIME_VALUE=str(begin))
            SubElement(times, "TIME_SLOT", TIME_SLOT_ID=f"ts{slots}", TIME_VALUE=str(end))
            span = {"ANNOTATION_ID": f"a{count}", "TIME_SLOT_REF1": f"ts{slots - 1}", "TIME_SLOT_REF2": f"ts{slots}"}
            alignable = SubElement(SubElement(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION", span)
            SubElement(alignable, "ANNOTATION_VALUE").text = level
    SubElement(root, "LINGUISTIC_TYPE", LINGUISTIC_TYPE_ID="level", TIME_ALIGNABLE="true", GRAPHIC_REFERENCES="false")
    return root


def _configuration(series: Path) -> Element:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    root = Element("timeseries", date=now, version="1.0")
    source = SubElement(root, "tracksource")
    for key, value in (
        ("source-url", _url(series)),  # must be the LINK_URL of the .eaf
        ("sample-type", "Discontinuous Rate"),  # each value has its own time
        ("time-column", "0"),
    ):
        source.set(key, value)
    SubElement(source, "property", key="provider", value=CSV_PROVIDER)
    for column, (name, colour) in enumerate(TRACKS.items(), start=1):
        track = SubElement(source, "track", name=name, derivative="0")
        SubElement(track, "property", key="detect-range", value="false")
        SubElement(SubElement(track, "sample-position"), "pos", row="0", col=str(column))
        SubElement(track, "description")
        SubElement(track, "units")
        SubElement(track, "range", min="-1.0", max="1.0")
        SubElement(track, "color").text = colour
    return root


def _url(path: Path) -> str:
    """ELAN's own kind of URL: it takes the path as it stands, without %-escapes."""
    return _text(f"file://{path.absolute()}")


def _text(text: str) -> str:
    """What XML cannot hold, as bytes of a name that are not UTF-8, becomes a replacement character."""
    return UNWRITABLE.sub("\ufffd", text)
