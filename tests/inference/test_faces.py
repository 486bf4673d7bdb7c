"""Raw video through faces: whose trace it is, which rows are valid, what the networks see, what the user is told."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest

from jmt_fast.data import OpenRecording, Recording
from jmt_fast.errors import MediaError
from jmt_fast.faces import DETECTORS, Cropper, Faces, Person
from jmt_fast.inference import Predictor, Recipe, Settings, predict_collection, run_here
from jmt_fast.inference.collection import Task, predict_one
from jmt_fast.models import Checkpoint

Film = Callable[..., Path]
FRAMES = 121
TEMPLATE = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]]) / 112


class Cast:
    """Stands in for the detector: reads a frame's number off the film and looks up who is on it."""

    def __init__(self, kit: SimpleNamespace, boxes: Callable[[int], list[tuple[float, float, float]]]) -> None:
        self.kit, self.boxes = kit, boxes

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Faces]:
        found = []
        for picture in pictures:
            squares = np.array(self.boxes(self.kit.number_of(picture)), np.float32).reshape(-1, 3)
            x, y, side = squares.T
            points = squares[:, None, :2] + TEMPLATE.astype(np.float32) * squares[:, None, 2:]
            found.append(Faces(np.stack([x, y, x + side, y + side], 1), np.ones(len(x), np.float32), points))
        return found


@pytest.fixture
def cast(monkeypatch: pytest.MonkeyPatch, kit: SimpleNamespace) -> Callable[..., None]:
    def choose(boxes: Callable[[int], list[tuple[float, float, float]]]) -> None:
        monkeypatch.setitem(DETECTORS, "centerface", lambda device: Cast(kit, boxes))

    return choose


@pytest.fixture
def predictor(small_checkpoint: Path) -> Predictor:
    return Predictor.from_pretrained(small_checkpoint, "cpu", "fp32", False, region="face")


@pytest.fixture
def video(film: Film, kit: SimpleNamespace) -> Path:
    return film(times=kit.steps(FRAMES), size=(160, 96))


def two(index: int) -> list[tuple[float, float, float]]:
    """A small face throughout, and a larger one from frame 40 to 80."""
    return [(10, 20, 40), *([(90, 10, 70)] if 40 <= index <= 80 else [])]


def valid(trace) -> np.ndarray:
    return trace.table["valid"].to_numpy(zero_copy_only=False)


def test_every_person_has_a_trace_of_the_whole_video(predictor: Predictor, video: Path, cast: Callable) -> None:
    cast(two)
    traces = list(predictor.predict_people(video))
    assert [trace.person for trace in traces] == ["0", "1"]
    for trace in traces:
        assert trace.table.num_rows == FRAMES
        assert set(trace.table["person"].to_pylist()) == {trace.person}
    small, large = sorted(traces, key=lambda trace: -valid(trace).sum())
    assert valid(small).all()
    assert np.array_equal(np.flatnonzero(valid(large)), np.arange(40, 81))
    assert np.abs(small.values - large.values).max() > 1e-4
    assert any("seen in 34% of the frames" in line for line in large.warnings)


def test_each_person_goes_after_the_trace(
    predictor: Predictor, video: Path, cast: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places of a face on every frame are there for one person at a time."""
    cast(two)
    places, spread = [], Person._spread

    def watched(person: Person, values: np.ndarray) -> np.ndarray:
        array = spread(person, values)
        places.append(weakref.ref(array))
        return array

    monkeypatch.setattr(Person, "_spread", watched)
    for number, trace in enumerate(predictor.predict_people(video)):
        assert trace.person == str(number)
        assert len(places) == number + 1
        assert not any(each() is not None for each in places)


def test_the_detector_is_chosen(
    small_checkpoint: Path, video: Path, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the caller, else by what the checkpoint was trained with."""
    for name, boxes in (("centerface", lambda index: [(10, 20, 40)]), ("yunet", lambda index: [(90, 10, 70)])):
        monkeypatch.setitem(DETECTORS, name, lambda runtime, boxes=boxes: Cast(kit, boxes))
    checkpoint = Checkpoint.load(small_checkpoint)
    changed = checkpoint.features.model_copy(update={"detector": "yunet"})
    replace(checkpoint, features=changed).save(tmp_path / "other")
    first, second, third, fourth = (
        Predictor.from_pretrained(folder, "cpu", "fp32", False, "face", asked).predict(video).table
        for folder in (small_checkpoint, tmp_path / "other")
        for asked in (None, "yunet" if folder == small_checkpoint else "centerface")
    )
    assert first.equals(fourth) and second.equals(third) and not first.equals(second)


def test_one_person_is_chosen(predictor: Predictor, video: Path, cast: Callable) -> None:
    cast(two)
    both = {trace.person: trace for trace in predictor.predict_people(video)}
    largest = predictor.predict(video)
    assert largest.table.equals(both["0"].table)
    assert any("2 people are seen" in line for line in largest.warnings)
    assert predictor.predict(video, person="1").table.equals(both["1"].table)
    with pytest.raises(MediaError, match=r"no person 2: its people are 0, 1"):
        predictor.predict(video, person="2")


def test_a_video_without_faces_gives_rows_that_are_not_valid(predictor: Predictor, video: Path, cast: Callable) -> None:
    cast(lambda index: [])
    for person in ("largest", "all"):
        [trace] = predictor.predict_people(video, person=person)
        assert trace.table.num_rows == FRAMES
        assert not valid(trace).any()
        assert np.isfinite(trace.values).all()
        assert any("no face found" in line for line in trace.warnings)
    with pytest.raises(MediaError, match="it shows no face"):
        predictor.predict(video, person="0")


def test_what_is_away_is_black(predictor: Predictor, video: Path, cast: Callable) -> None:
    """The features of an absent person are those of black frames; a face elsewhere changes nothing."""
    cast(lambda index: [(90, 10, 70)] if index < 40 else [])
    extractor = predictor.extractor
    recording = OpenRecording(Recording("film", video))
    seen = extractor.extract(recording, 8)
    black = extractor.stream(recording, 8, Person.nobody(FRAMES))
    features = next(iter(black)).visual
    late = seen.times > recording.timestamps[40] + 1.1
    assert late.any()
    np.testing.assert_allclose(seen.visual[late], features[late], atol=1e-5)
    assert np.abs(seen.visual[0] - features[0]).max() > 1e-3
    assert np.array_equal(seen.face, np.arange(FRAMES) <= 32)


def test_the_face_is_what_the_networks_see(predictor: Predictor, video: Path, cast: Callable) -> None:
    """A face that fills the film's middle square, upright, gives nearly what the centre crop gives."""
    cast(lambda index: [(32, 0, 96)])
    recording = OpenRecording(Recording("film", video))
    [person] = predictor.extractor.people(recording)
    config = predictor.extractor.config.frames
    frames = list(recording.frames([0, 60, 100]))
    cut = Cropper(config, predictor.extractor.graph.device, person)(frames)
    [centre] = predictor.extractor.graph.frames([[frame for _, frame in frames]])
    assert (cut - centre).abs().mean() < 0.15
    assert centre.std() > 1


def test_prepared_crops_are_not_searched(predictor: Predictor, video: Path, cast: Callable, tmp_path: Path) -> None:
    cast(lambda index: pytest.fail("the detector was asked"))
    recording = OpenRecording(Recording("film", video, crops=tmp_path))
    assert not predictor.extractor.extract(recording, 32).face.any()  # an empty folder: black throughout


def test_the_checkpoint_says_what_is_cropped(small_checkpoint: Path, video: Path, cast: Callable) -> None:
    cast(lambda index: pytest.fail("the detector was asked"))
    plain = Predictor.from_pretrained(small_checkpoint, "cpu", "fp32", False)
    centre = Predictor.from_pretrained(small_checkpoint, "cpu", "fp32", False, region="center")
    whole = Predictor.from_pretrained(small_checkpoint, "cpu", "fp32", False, region="none")
    assert plain.predict(video).table.equals(centre.predict(video).table)
    assert np.abs(whole.predict(video).values - centre.predict(video).values).max() > 1e-4
    assert valid(whole.predict(video)).all()


def test_all_writes_a_file_a_person(predictor: Predictor, video: Path, cast: Callable, tmp_path: Path) -> None:
    cast(two)
    shares: list[float] = []
    settings = Settings(weights="", person="all")
    done = predict_one(predictor, settings, Task(video, tmp_path / "talk.v2"), shares.append)
    assert done.outputs == ("talk.v2.0.parquet", "talk.v2.1.parquet")
    for person, name in zip("01", done.outputs, strict=True):
        table = pyarrow.parquet.read_table(tmp_path / name)
        assert table["person"][0].as_py() == person
    assert done.rows == 2 * FRAMES
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_all_then_one_in_the_same_folder(small_checkpoint: Path, video: Path, cast: Callable, tmp_path: Path) -> None:
    """Each run leaves its own traces and no other's."""
    cast(two)
    name = video.stem
    for person, expected in (("all", {".0": "0", ".1": "1"}), ("largest", {"": "0"}), ("1", {"": "1"})):
        settings = Settings(weights="", region="face", person=person, precision="fp32")
        recipe = Recipe(small_checkpoint, settings, ("cpu",), False)
        [known] = predict_collection([video], tmp_path / "out", recipe, settings, run_here)
        assert known.fresh
        there = sorted(path for path in (tmp_path / "out").iterdir() if path.name != "_index.parquet")
        assert [path.name for path in there] == [f"{name}{suffix}.parquet" for suffix in expected]
        shown = [pyarrow.parquet.read_table(path)["person"][0].as_py() for path in there]
        assert shown == list(expected.values())
