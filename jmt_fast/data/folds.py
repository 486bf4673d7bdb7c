"""Folds for cross-validation: what belongs together stays together, with about as many labelled frames in each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from jmt_fast.data.layouts import PERSONS
from jmt_fast.data.manifest import Recording

SHUFFLE = 0.5  # groups up to this much (relatively) apart in size may change places in the order


def assign_folds(recordings: Sequence[Recording], frames: Sequence[int], folds: int, seed: int = 0) -> list[int]:
    """The fold, 0 to folds - 1, of each recording; `frames` are their numbers of labelled frames.

    Recordings of one subject (where known) or of one video are in one fold: `x_left.mp4` and `x_right.mp4` count as one
    video too. The groups, the large ones first in an order that depends on `seed`, go each to the fold with the fewest
    labelled frames. So two folds differ by the largest group at most. The result does not depend on the order of the
    recordings.

    Raises:
        ValueError: fewer than two folds, or fewer groups than folds.
    """
    if len(frames) != len(recordings):
        raise ValueError(f"frames must have one number for each of {len(recordings)} recordings, not {len(frames)}")
    groups = group_names(recordings)
    sizes: dict[str, int] = dict.fromkeys(sorted(set(groups)), 0)
    for group, count in zip(groups, frames, strict=True):
        sizes[group] += count
    if not 2 <= folds <= len(sizes):
        raise ValueError(f"folds={folds} must lie between 2 and the number of subjects or videos, {len(sizes)}")
    rank = dict(zip(sizes, np.random.default_rng(seed).uniform(1, 1 + SHUFFLE, len(sizes)), strict=True))
    loads = [(0, 0, fold) for fold in range(folds)]  # labelled frames, groups, number: compared in this order
    chosen: dict[str, int] = {}
    for group in sorted(sizes, key=lambda group: (-sizes[group] * rank[group], rank[group])):
        load, count, fold = min(loads)
        loads[fold] = (load + sizes[group], count + 1, fold)
        chosen[group] = fold
    return [chosen[group] for group in groups]


def group_names(recordings: Sequence[Recording]) -> list[str]:
    """The group of each recording: connected through a common subject or a common video."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for recording in recordings:
        if recording.subject is not None:
            first, second = sorted((root(_video(recording)), root(f"subject {recording.subject}")))
            parent[second] = first
    return [root(_video(recording)) for recording in recordings]


def _video(recording: Recording) -> str:
    """The video without the person's suffix; the path tells apart videos of one name."""
    path = PurePath(recording.video)
    stem, _, person = path.stem.rpartition("_")
    return f"video {path.with_name(stem if stem and person in PERSONS else path.stem)}"
