"""What the output files of videos are called: one name a video, for good."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jmt_fast.inference.elan import SERIES
from jmt_fast.inference.ledger import Row, as_text

LONGEST = 200  # bytes of a name before its suffixes: file systems allow 255 with them


def output_names(videos: Sequence[Path], rows: dict[str, Row]) -> list[str]:
    """What the output files of each video begin with, different for all: the name it had in the ledger, its stem, or,
    where another video has or wants that, its file name, or at last its stem and a digest of its path.

    No two names give one file under whatever settings: beside `talk` there is no `talk.0`, as `--person all` calls a
    person's files, and no `talk_timeseries`, as ELAN's are called.
    """
    paths = [as_text(os.path.abspath(video)) for video in videos]
    stems = [_safe(video.stem) for video in videos]
    files = [_safe(video.name) for video in videos]
    wanted, full = Counter(stems), Counter(files)
    taken = {row.name for row in rows.values()}
    origins = {origin for name in taken for origin in _origins(name)}
    names = []
    for path, stem, file in zip(paths, stems, files, strict=True):
        if path in rows:
            names.append(rows[path].name)
            continue
        choices = [stem] * (wanted[stem] == 1) + [file] * (full[file] == 1 and file not in wanted)
        own = f"{stem}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"
        free = (each for each in choices if each not in origins and taken.isdisjoint({each, *_origins(each)}))
        names.append(next(free, own))
        taken.add(names[-1])
        origins |= _origins(names[-1])
    return names


def _origins(name: str) -> set[str]:
    """The names of other videos whose files could be called `name`."""
    person = name.removesuffix(Path(SERIES).stem)
    video, _, number = person.rpartition(".")
    return {person, video if number.isdecimal() else person} - {name}


def _safe(name: str) -> str:
    """A name that prints on one line and fits. Control characters and bytes that are no UTF-8 become `%NN`; so does a
    first `_` or `.`, by which ledgers and files that are being written are told from traces."""
    odd = "".join(
        each
        if each.isprintable() and (number or each not in "_.")
        else "".join(f"%{byte:02X}" for byte in os.fsencode(each))
        for number, each in enumerate(name)
    )
    if len(odd.encode()) <= LONGEST:
        return odd
    short = odd.encode()[: LONGEST - 20].decode(errors="ignore")
    return f"{short}-{hashlib.sha256(odd.encode()).hexdigest()[:12]}"
