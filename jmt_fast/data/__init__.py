"""Recordings, annotations and clip windows. The DALI graph is imported on its own: `jmt_fast.data.graph`."""

from __future__ import annotations

from jmt_fast.data.annotations import labelled, read_affwild2, reconcile
from jmt_fast.data.labels import clip_labels
from jmt_fast.data.manifest import Recording, affwild2, load, read_manifest, write_manifest
from jmt_fast.data.recording import OpenRecording
from jmt_fast.data.traces import smooth, to_frames
from jmt_fast.data.windows import chains, clip_frames, clip_times, sequences, shown

__all__ = [
    "OpenRecording",
    "Recording",
    "affwild2",
    "chains",
    "clip_frames",
    "clip_labels",
    "clip_times",
    "labelled",
    "load",
    "read_affwild2",
    "read_manifest",
    "reconcile",
    "sequences",
    "shown",
    "smooth",
    "to_frames",
    "write_manifest",
]
