"""Recordings, annotations and clip windows. The DALI graph is imported on its own: `jmt_fast.data.graph`."""

from __future__ import annotations

from jmt_fast.data.annotations import Annotation, read_affwild2, read_annotation
from jmt_fast.data.fit import labelled, reconcile, resample
from jmt_fast.data.folds import assign_folds
from jmt_fast.data.ingest import Counts, Prepared, prepare
from jmt_fast.data.labels import clip_labels
from jmt_fast.data.layouts import affwild2, find_afew_va, find_affwild2, load
from jmt_fast.data.manifest import Recording, read_manifest, write_manifest
from jmt_fast.data.recording import OpenRecording
from jmt_fast.data.traces import smooth, to_frames
from jmt_fast.data.windows import chains, clip_frames, clip_times, sequences, shown

__all__ = [
    "Annotation",
    "Counts",
    "OpenRecording",
    "Prepared",
    "Recording",
    "affwild2",
    "assign_folds",
    "chains",
    "clip_frames",
    "clip_labels",
    "clip_times",
    "find_afew_va",
    "find_affwild2",
    "labelled",
    "load",
    "prepare",
    "read_affwild2",
    "read_annotation",
    "read_manifest",
    "reconcile",
    "resample",
    "sequences",
    "shown",
    "smooth",
    "to_frames",
    "write_manifest",
]
