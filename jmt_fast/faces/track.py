"""Faces of single frames -> people: who is who by where they are, and where each one is on every frame.

There is no recognition: a face is the person whose face was last seen there. A person who is away keeps the place, for
any time, until a face appears at it again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from jmt_fast.data import OpenRecording
from jmt_fast.errors import MediaError
from jmt_fast.faces.detector import Faces

OVERLAP = 0.2  # intersection over union of a face and where it was expected, at least
BRIDGED = 1.0  # seconds between two sightings up to which a face is interpolated; beyond it, it was away
SIGHTINGS = 3  # faces found less often are errors of the detector, or passers-by


@dataclass(frozen=True)
class Person:
    """One face through a video of F frames, seen on S of them.

    `id`: "0" for the largest person (area, added up over the time seen), "1" for the next. `timestamps` float64 (F,):
    of all frames, seconds. `seen_times` float64 (S,), ascending, `seen_boxes` float32 (S, 4) and `seen_points`
    float32 (S, 5, 2), as in `Faces`: the sightings.

    `boxes`, `points` and `valid`, of all frames, are computed at each call and not kept: a long video may have hundreds
    of people, and most are not asked for.
    """

    id: str
    timestamps: np.ndarray
    seen_times: np.ndarray
    seen_boxes: np.ndarray
    seen_points: np.ndarray

    @classmethod
    def nobody(cls, frames: int) -> Person:
        """Stands for the person of a video on which there is no face."""
        none = Faces.none()
        return cls("0", np.zeros(frames), np.empty(0), none.boxes, none.points)

    @property
    def boxes(self) -> np.ndarray:
        """float32 (F, 4), as in `Faces`, between sightings linear in time. They mean something where `valid`."""
        return self._spread(self.seen_boxes)

    @property
    def points(self) -> np.ndarray:
        """float32 (F, 5, 2), as `boxes`."""
        return self._spread(self.seen_points.reshape(-1, 10)).reshape(-1, 5, 2)

    @property
    def valid(self) -> np.ndarray:
        """bool (F,): the frame is a sighting, or between two that are at most `BRIDGED` apart."""
        times = np.concatenate([[-np.inf], self.seen_times, [np.inf]])
        after = times[np.searchsorted(times, self.timestamps, "left")]
        before = times[np.searchsorted(times, self.timestamps, "right") - 1]
        return after - before <= BRIDGED

    def _spread(self, values: np.ndarray) -> np.ndarray:
        spread = np.zeros((len(self.timestamps), values.shape[1]), np.float32)
        if len(values):
            for number, column in enumerate(values.T):
                spread[:, number] = np.interp(self.timestamps, self.seen_times, column)
        return spread


@dataclass
class _Track:
    """Sightings of one person, in the order of their times: 64 bytes each, where lists of arrays took 650.

    `places`: of each, the box and the points, 14 numbers.
    """

    times: array[float] = field(default_factory=lambda: array("d"))
    places: array[float] = field(default_factory=lambda: array("f"))
    last: list[np.ndarray] = field(default_factory=list)  # the last two boxes, float64

    def add(self, time: float, box: np.ndarray, points: np.ndarray) -> None:
        self.times.append(time)
        self.places.extend(box)
        self.places.extend(points.reshape(-1))
        self.last = [*self.last[-1:], box]

    def expected(self, time: float) -> np.ndarray:
        """The box at a time: moved on as it moved last, if that is not long ago."""
        box = self.last[-1]
        if len(self.times) < 2 or time - self.times[-2] > BRIDGED:
            return box
        speed = (box - self.last[-2]) / (self.times[-1] - self.times[-2])
        shift = (speed[:2] + speed[2:]) / 2 * (time - self.times[-1])  # of the middle: sizes are too noisy
        return box + np.tile(shift, 2)

    def person(self, name: str, timestamps: np.ndarray) -> Person:
        places = np.array(self.places).reshape(-1, 14)
        return Person(name, timestamps, np.array(self.times), places[:, :4], places[:, 4:].reshape(-1, 5, 2))

    @property
    def weight(self) -> float:
        box = np.array(self.places).reshape(-1, 14)[:, :4].astype(np.float64)
        return float(((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).sum())


def people(found: Iterable[tuple[float, Faces]], timestamps: np.ndarray) -> list[Person]:
    """Everybody in a video, the largest first.

    `found`: time in seconds and faces of the frames that were looked at, in order. `timestamps` float64 (F,): of all
    frames. Of two people who meet in one place, each keeps the face nearer to where it was expected.
    """
    tracks: list[_Track] = []
    looks = 0
    for time, faces in found:
        looks += 1
        boxes = faces.boxes.astype(np.float64)
        taken = _assign(np.array([track.expected(time) for track in tracks]).reshape(-1, 4), boxes)
        for face in range(len(faces)):
            if face not in taken:
                tracks.append(_Track())
            tracks[taken.get(face, -1)].add(time, boxes[face], faces.points[face])
    kept = [track for track in tracks if len(track.times) >= min(SIGHTINGS, looks)]
    kept.sort(key=lambda track: -track.weight)
    return [track.person(str(number), timestamps) for number, track in enumerate(kept)]


def choose(found: Sequence[Person], name: str) -> Person | None:
    """Who a collection means by `name`: a number, 0 being the largest; `left` or `right`, as seen, of the two largest;
    `main`, the largest. None where nobody is that.
    """
    if name in ("left", "right") and len(found) > 1:
        pair = sorted(found[:2], key=lambda person: person.boxes[person.valid][:, ::2].mean())
        return pair[name == "right"]
    number = "0" if name in ("left", "right", "main") else name
    return next((person for person in found if person.id == number), None)


def meant(found: Sequence[Person], recording: OpenRecording) -> Person:
    """The person of a video whom a recording is of; `Person.nobody` where there is no face.

    Raises MediaError where there are faces, but not of the person that the recording names.
    """
    name = recording.recording.person
    if not found:
        return Person.nobody(len(recording.timestamps))
    if (person := choose(found, name)) is None:
        known = ", ".join(each.id for each in found)
        raise MediaError(
            f"{recording.recording.video}: no person {name!r}, its people are {known}; correct the manifest's "
            "`person`: a number, left, right or main"
        )
    return person


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union: boxes (N, 4), (M, 4) -> (N, M)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.prod((high - low).clip(0), axis=-1)
    sizes = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (one, other)]
    return shared / np.maximum(sizes[0][:, None] + sizes[1][None] - shared, 1e-9)


def _assign(expected: np.ndarray, boxes: np.ndarray) -> dict[int, int]:
    """Face -> track, best overlap first; a face or a track once at most."""
    scores = overlaps(expected, boxes)
    taken: dict[int, int] = {}
    for place in np.argsort(-scores, axis=None, kind="stable"):
        track, face = (int(index) for index in np.unravel_index(place, scores.shape))
        if scores[track, face] < OVERLAP:
            break
        if face not in taken and track not in taken.values():
            taken[face] = track
    return taken
