"""Folds: groups stay whole, sizes are even, the seed alone decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmt_fast.data import Recording, assign_folds
from jmt_fast.data.folds import group_names


def videos(count: int) -> list[Recording]:
    return [Recording(f"v{index:03d}", Path(f"/set/v{index:03d}.mp4")) for index in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=8, max_size=80), st.integers(2, 8), st.integers(0, 9), st.data())
def test_folds_are_even_whole_and_independent_of_the_order(
    frames: list[int], folds: int, seed: int, data: st.DataObject
) -> None:
    recordings = videos(len(frames))
    chosen = assign_folds(recordings, frames, folds, seed)
    assert set(chosen) == set(range(folds))  # none is empty
    loads = np.bincount(chosen, frames, folds)
    assert loads.max() - loads.min() <= max(frames)
    order = data.draw(st.permutations(range(len(frames))))
    again = assign_folds([recordings[index] for index in order], [frames[index] for index in order], folds, seed)
    assert again == [chosen[index] for index in order]


def test_a_large_set_is_nearly_even() -> None:
    frames = np.random.default_rng().lognormal(8, 1, 400).astype(int)
    chosen = assign_folds(videos(400), frames.tolist(), 5, 0)
    loads = np.bincount(chosen, frames)[np.bincount(chosen) > 1]  # one huge video may be a fold of its own
    assert len(loads) >= 3 and loads.max() / loads.min() < 1.02


def test_the_seed_decides() -> None:
    recordings, frames = videos(50), np.random.default_rng(1).integers(100, 9000, 50).tolist()
    drawn = [assign_folds(recordings, frames, 5, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_people_of_one_video_and_videos_of_one_subject_stay_together() -> None:
    def item(video: str, person: str = "0", subject: str | None = None) -> Recording:
        return Recording(f"{video}{person}", Path(f"/set/{video}.mp4"), person=person, subject=subject)

    recordings = [
        item("a", "left"), item("a", "right"),  # one video
        item("up"), item("up_left"),  # one scene in two files
        item("b", subject="Ann"), item("c", subject="Ann"), item("c", "left", "Bob"), item("d", subject="Bob"),
        item("e"), item("left"),
    ]  # fmt: skip
    groups = group_names(recordings)
    sets = {frozenset(i for i, group in enumerate(groups) if group == name) for name in groups}
    assert sets == {frozenset(each) for each in ({0, 1}, {2, 3}, {4, 5, 6, 7}, {8}, {9})}
    for seed in range(20):
        folds = assign_folds(recordings, [10] * 10, 3, seed)
        assert all(len({folds[index] for index in together}) == 1 for together in sets)


def test_too_few_videos_or_wrong_counts() -> None:
    for folds in (1, 4):
        with pytest.raises(ValueError, match="between 2 and the number of subjects or videos, 3"):
            assign_folds(videos(3), [1, 1, 1], folds)
    with pytest.raises(ValueError, match="one number for each of 3"):
        assign_folds(videos(3), [1, 1], 2)
