"""One person stays one person: motion, gaps, crossings, errors of the detector."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from jmt_fast.config import FrameConfig
from jmt_fast.faces import Cropper, Faces, Person, choose, people
from jmt_fast.faces.track import BRIDGED, overlaps

FPS, STEP = 30, 8


def box(x: float, y: float, side: float) -> tuple[float, float, float, float]:
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def faces(*boxes: tuple[float, float, float, float]) -> Faces:
    """Each face's points are its box's corners and its middle, so that they can be told apart."""
    array = np.array(boxes, np.float32).reshape(-1, 4)
    points = np.stack([array[:, [0, 1]], array[:, [2, 1]], array[:, [0, 3]], array[:, [2, 3]],
                       (array[:, :2] + array[:, 2:]) / 2], axis=1)  # fmt: skip
    return Faces(array, np.ones(len(array), np.float32), points)


def followed(seen: dict[int, Faces], frames: int) -> list[Person]:
    """`seen`: by frame; frames that are not in it were looked at in vain if they are due."""
    times = 2.5 + np.arange(frames) / FPS
    looked = sorted({*range(0, frames, STEP), frames - 1, *seen})
    return people(((float(times[index]), seen.get(index, faces())) for index in looked), times)


def test_a_moving_face_is_one_person_and_interpolated() -> None:
    frames = 121
    path = {index: box(100 + 3 * index, 200 - index / 2, 80) for index in range(frames)}
    [person] = followed({index: faces(path[index]) for index in range(0, frames, STEP)}, frames)
    assert person.valid.all()
    np.testing.assert_allclose(person.boxes, [path[index] for index in range(frames)], atol=1e-3)
    np.testing.assert_allclose(person.points[:, 4], (person.boxes[:, :2] + person.boxes[:, 2:]) / 2, atol=1e-3)


def test_a_fast_face_is_followed_by_its_motion() -> None:
    """60 pixels from look to look, 80 wide: the boxes overlap by 0.14, where it is expected by nearly 1."""
    frames = 81
    steps = [0, 10, 30, 70, 130, 190, 250, 310, 370, 430, 490]
    seen = {STEP * n: faces(box(50 + x, 100, 80)) for n, x in enumerate(steps)}
    assert len(followed(seen, frames)) == 1


def test_people_who_cross_keep_their_names() -> None:
    frames = 161
    seen = {}
    for index in range(0, frames, STEP):
        one, other = box(100 + 2 * index, 100, 60), box(420 - 2 * index, 150, 70)
        seen[index] = faces(one, other) if index % 3 else faces(other, one)
    large, small = followed(seen, frames)
    assert (large.id, small.id) == ("0", "1")
    middles = [(person.boxes[:, 0] + person.boxes[:, 2]) / 2 for person in (large, small)]
    np.testing.assert_allclose(middles[0], 420 - 2 * np.arange(frames), atol=1e-2)
    np.testing.assert_allclose(middles[1], 100 + 2 * np.arange(frames), atol=1e-2)


@pytest.mark.parametrize("missed", [1, 2, 6])
def test_short_gaps_are_bridged_and_long_ones_are_not(missed: int) -> None:
    frames = 241
    gap = range(13 * STEP, (13 + missed) * STEP, STEP)
    seen = {index: faces(box(200, 100, 80)) for index in range(0, frames, STEP) if index not in gap}
    [person] = followed(seen, frames)
    bridged = (missed + 1) * STEP / FPS <= BRIDGED
    expected = np.ones(frames, bool)
    if not bridged:
        expected[12 * STEP + 1 : (13 + missed) * STEP] = False
    assert bridged == (missed < 3)
    assert np.array_equal(person.valid, expected)


def test_who_comes_and_goes_is_valid_while_there() -> None:
    frames = 241
    seen = {index: faces(box(200, 100, 80)) for index in range(80, 161, STEP)}
    [person] = followed(seen, frames)
    assert np.array_equal(np.flatnonzero(person.valid), np.arange(80, 161))


def test_nobody_is_joined_across_places() -> None:
    frames = 241
    seen = {index: faces(box(100 if index < 120 else 500, 100, 80)) for index in range(0, frames, STEP)}
    two = followed(seen, frames)
    assert len(two) == 2
    assert not (two[0].valid & two[1].valid).any()


def test_the_largest_is_who_fills_most_of_the_video() -> None:
    frames = 241
    seen = {index: faces(box(100, 100, 60), *([box(400, 200, 80)] if index < 64 else [])) for index in range(0, 241, 8)}
    first, second = followed(seen, frames)
    assert first.boxes[0, 0] == 70
    assert (second.id, second.valid.sum()) == ("1", 57)


def test_a_flicker_is_no_person_but_a_short_film_is_enough() -> None:
    seen = {index: faces(box(200, 100, 80)) for index in range(0, 241, STEP)}
    seen[48] = faces(box(200, 100, 80), box(500, 300, 30))
    assert len(followed(seen, 241)) == 1
    [person] = followed({0: faces(box(200, 100, 80))}, 1)
    assert person.valid.tolist() == [True]
    assert followed({}, 50) == []


def test_nobody_is_never_valid() -> None:
    nobody = Person.nobody(7)
    assert (nobody.boxes.shape, nobody.points.shape) == ((7, 4), (7, 5, 2))
    assert not nobody.valid.any()


def test_who_is_not_looked_at_takes_no_memory_of_each_frame() -> None:
    """A hundred people, each there for five looks of a long film: who is used is spread over it, and goes after that.

    Spread, a person takes 57 bytes a frame.
    """
    frames, crowd = 20_000, 100
    times = np.arange(frames) / FPS
    tracemalloc.start()
    try:
        found = people(
            ((float(times[STEP * look]), faces(box(200 * (look // 5), 100, 80))) for look in range(5 * crowd)), times
        )
        assert len(found) == crowd
        tracking = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        for person in found:
            assert person.valid.sum() == 4 * STEP + 1
            Cropper(FrameConfig(), torch.device("cpu"), person)
        held, using = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tracking < 20 * frames
    assert held < 20 * frames and using < 100 * frames


def test_a_person_travels_between_processes_as_its_sightings() -> None:
    [person] = followed({index: faces(box(200, 100, 80)) for index in range(0, 2401, STEP)}, 2401)
    sent = pickle.dumps(person)
    assert len(sent) < 20 * 2401
    arrived = pickle.loads(sent)
    for name in ("boxes", "points", "valid"):
        assert np.array_equal(getattr(arrived, name), getattr(person, name))


def test_a_collection_names_its_people_by_number_or_side() -> None:
    def person(number: str, x: float) -> Person:
        boxes = np.array([[x, 0, x + 10, 10]], np.float32)
        return Person(number, np.arange(2.0), np.ones(1), boxes, np.zeros((1, 5, 2), np.float32))  # not on frame 0

    found = [person("0", 50), person("1", 20), person("2", 0)]
    chosen = {name: choose(found, name) for name in ("0", "2", "3", "left", "right", "main", "x")}
    ids = {name: each and each.id for name, each in chosen.items()}
    assert ids == {"0": "0", "2": "2", "3": None, "left": "1", "right": "0", "main": "0", "x": None}
    alone = choose(found[:1], "left")
    assert alone is not None and alone.id == "0"


def test_overlaps() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [0, 0, 0, 0]], float)
    expected = [[1, 1 / 3, 0, 0], [1 / 3, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(overlaps(boxes, boxes), expected)
