"""Recordings, annotations and clip windows. The DALI graph is imported on its own: `jmt_fast.data.graph`."""

from __future__ import annotations

from jmt_fast.data.annotations import labelled, read_affwild2, reconcile
from jmt_fast.data.labels import clip_labels
from jmt_fast.data.traces import smooth, to_frames
from jmt_fast.data.windows import chains, clip_frames, clip_times, sequences, shown

__all__ = [
    "chains",
    "clip_frames",
    "clip_labels",
    "clip_times",
    "labelled",
    "read_affwild2",
    "reconcile",
    "sequences",
    "shown",
    "smooth",
    "to_frames",
]
