"""A collection: what is missing or changed is done and nothing else, names stay apart, nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pyarrow.parquet
import pytest

from jmt_fast.errors import JMTError, MediaError
from jmt_fast.inference import (
    Known,
    Predictor,
    Recipe,
    Settings,
    collection,
    predict_collection,
    run_here,
    weights_digest,
)
from jmt_fast.inference.collection import Done, Task, predict_one
from jmt_fast.inference.workers import Told, Work

Film = Callable[..., Path]


class Fake:
    """Instead of a network: copies what is in a `video`, refuses words, and notes what it was asked. `people`: whose
    files it writes, as `--person all` does; behind the first one, `full` stops it."""

    def __init__(self) -> None:
        self.asked: list[Path] = []
        self.people = ("",)
        self.full = False

    def __call__(self, place: int) -> Work:
        return self.do

    def do(self, task: Task, told: Told) -> Done:
        self.asked.append(task.video)
        if not task.video.exists() or task.video.read_text().startswith("words"):
            raise MediaError(f"{task.video}: not a video; give another")
        told(0.5)
        paths = [task.output.with_name(f"{task.output.name}{person}.parquet") for person in self.people]
        for path in paths:
            path.write_text(task.video.read_text())
            if self.full:
                raise JMTError("the disk is full")
        return Done(tuple(path.name for path in paths), 1, 1.0, 0.1, (f"{task.video}: dark",))


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def go(fake: Fake, tmp_path: Path) -> Callable[..., list[Known]]:
    """go(videos, ...) -> what is known of each, in their order; `fake.asked` holds what was done for it."""

    def call(videos: Sequence[Path], redo: str = "missing", **settings: object) -> list[Known]:
        fake.asked.clear()
        chosen = Settings(**({"weights": "w"} | settings))
        found = list(predict_collection(videos, tmp_path / "out", fake, chosen, run_here, redo))
        assert sorted(known.number for known in found) == list(range(len(videos)))
        return sorted(found, key=lambda known: known.number)

    return call


@pytest.fixture
def videos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "in" / f"{name}.mp4" for name in ("a", "b", "bad")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text("words" if path.stem == "bad" else path.stem)
    return paths


def test_a_second_run_does_what_is_missing(go: Callable, fake: Fake, videos: list[Path], tmp_path: Path) -> None:
    first = go(videos)
    assert [known.row.status for known in first] == ["done", "done", "failed"]
    assert first[2].row.error == f"{videos[2]}: not a video; give another"
    assert fake.asked == videos
    second = go(videos)
    assert not fake.asked
    assert [known.row for known in second] == [known.row for known in first]
    assert not any(known.fresh for known in second)
    more = tmp_path / "in" / "c.mp4"
    more.write_text("c")
    (tmp_path / "out" / "a.parquet").unlink()
    go([*videos, more])
    assert fake.asked == [videos[0], more]


def test_what_changed_is_done_again(go: Callable, fake: Fake, videos: list[Path]) -> None:
    go(videos)
    videos[2].write_text("mended")
    os.utime(videos[1], ns=(0, 0))  # a clock that jumps: any other time is a change, an earlier one too
    assert [known.row.status for known in go(videos)] == ["done"] * 3
    assert fake.asked == videos[1:]
    for changed in ({"stride": 4}, {"weights": "other"}, {"smooth": (20, 50)}, {"person": "0"}, {"region": "face"}):
        go(videos, **changed)
        assert fake.asked == videos
    videos[0].unlink()
    assert go(videos, **changed)[0].row.status == "failed"
    assert fake.asked == [videos[0]]
    go(videos, **changed)
    assert not fake.asked


def test_a_clock_that_jumps(
    go: Callable, fake: Fake, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the times of the run, which go back here, nor those of its files decide what is done."""
    clock = ["2031-01-01T00:00:00+00:00", "1999-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00"]
    monkeypatch.setattr(collection, "now", iter(clock).__next__)
    os.utime(videos[0], (2**32, 2**32))
    first = go(videos)
    assert [known.row.finished for known in first] == clock
    for place, name in enumerate(("a.parquet", "b.parquet")):
        os.utime(tmp_path / "out" / name, (place * 2**32,) * 2)
    assert [known.row for known in go(videos)] == [known.row for known in first]
    assert not fake.asked


def test_retry_and_force(go: Callable, fake: Fake, videos: list[Path]) -> None:
    go(videos)
    go(videos, "failed")
    assert fake.asked == [videos[2]]
    go(videos, "all")
    assert fake.asked == videos


def test_a_run_that_is_stopped_keeps_what_it_did(fake: Fake, videos: list[Path], tmp_path: Path) -> None:
    settings = Settings(weights="w")
    run: Iterator[Known] = predict_collection(videos, tmp_path / "out", fake, settings, run_here)
    next(run)
    (tmp_path / "out" / ".b.parquet.part").write_text("half")
    run.close()
    left = list(predict_collection(videos, tmp_path / "out", fake, settings, run_here))
    assert fake.asked == videos
    assert [known.fresh for known in left] == [False, True, True]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"_index.parquet", "a.parquet", "b.parquet"}


def test_every_video_has_an_output_of_its_own(go: Callable, fake: Fake, tmp_path: Path) -> None:
    names = [
        "talk.mp4", "x/talk.mp4", "y/talk.mp4", "talk.avi", "y/pair.mp4", "pair.avi", "_index.mp4", "a%0Ab.mp4",
        "a\nb.mp4", os.fsdecode(b"b\xff.mp4"), "b%FF.mp4", "quo'te\" *.mp4", f"{'long' * 62}.mp4", ".mp4",
        "own.mp4.mp4", "own.mp4", "talk.mp4.mkv",
    ]  # fmt: skip
    videos = [tmp_path / "in" / name for name in names]
    for number, video in enumerate(videos):
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_text(str(number))
    first = go(videos[:3])
    outputs = [known.row.outputs for known in go(videos)]
    assert [known.row.outputs for known in first] == outputs[:3]
    assert fake.asked == videos[3:]
    for number, (output,) in enumerate(outputs):
        assert (tmp_path / "out" / output).read_text() == str(number)
        assert output.isprintable() and output[0] not in "_."
    assert outputs[4:6] == [("pair.mp4.parquet",), ("pair.avi.parquet",)]
    table = pandas.read_parquet(tmp_path / "out" / "_index.parquet")
    assert sorted(table["path"]) == sorted(set(table["path"]))
    assert len(table) == len(names)


def test_other_people_in_the_same_folder(go: Callable, fake: Fake, tmp_path: Path) -> None:
    """The files of `--person all` and `largest` are never another video's, and none is left of the run before."""
    names = ("talk.mp4", "talk.0.mp4", "talk_timeseries.mp4", "talk.1_timeseries.mp4", "a.1.mp4", "a.2.mp4")
    videos = [tmp_path / name for name in names]
    for video in videos:
        video.write_text(video.name)
    for people, person in (((".0", ".1"), "all"), (("",), "largest"), ((".0",), "all")):
        fake.people = people
        for part in (videos[:1], videos):
            rows = [known.row for known in go(part, person=person)]
        for video, row in zip(videos, rows, strict=True):
            assert [(tmp_path / "out" / name).read_text() for name in row.outputs] == [video.name] * len(people)
        there = {path.name for path in (tmp_path / "out").iterdir()} - {"_index.parquet"}
        assert there == {name for row in rows for name in row.outputs}
        assert len(there) == len(people) * len(videos)
    assert [row.name for row in rows] == [
        "talk", "talk.0.mp4", "talk_timeseries.mp4", "talk.1_timeseries.mp4", "a.1", "a.2",
    ]  # fmt: skip


def test_a_redo_that_is_cut_short_is_not_taken_for_done(go: Callable, fake: Fake, videos: list[Path]) -> None:
    fake.people = (".0", ".1")
    first = go(videos[:2], person="all")
    fake.full = True
    with pytest.raises(JMTError, match="disk is full"):
        go(videos[:2], person="all", stride=4)
    fake.full = False
    again = go(videos[:2], person="all")
    assert fake.asked == videos[:1]  # its first file is of the other stride; the second video was not begun
    assert [known.row.outputs for known in again] == [known.row.outputs for known in first]
    videos[0].write_text("words")
    assert go(videos[:1], person="all")[0].row.outputs == first[0].row.outputs


def test_messages_are_one_line(go: Callable, tmp_path: Path) -> None:
    [known] = go([tmp_path / os.fsdecode(b"new\nline\xff.mp4")])
    assert known.row.error == f"{tmp_path}/new\\nline\\xff.mp4: not a video; give another"


def test_the_digest_follows_the_weights(small_checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in small_checkpoint.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert weights_digest(copy) == weights_digest(small_checkpoint)
    weights = bytearray((copy / "visual.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "visual.safetensors").write_bytes(weights)
    assert weights_digest(copy) != weights_digest(small_checkpoint)


@pytest.fixture(scope="module")
def predictor(small_checkpoint: Path) -> Predictor:
    return Predictor.from_pretrained(small_checkpoint, "cpu", "fp32", False)


def test_files_hold_what_predict_returns(predictor: Predictor, film: Film, tmp_path: Path) -> None:
    video = film()
    done = predict_one(predictor, Settings(weights="", smooth=(5, 9), plot=True), Task(video, tmp_path / "o.k"), id)
    expected = predictor.predict(video).smoothed(5, 9).table
    assert pyarrow.parquet.read_table(tmp_path / "o.k.parquet").equals(expected)
    assert done.rows == expected.num_rows
    assert done.duration == pytest.approx(39 / 30)
    assert {path.name for path in tmp_path.iterdir()} == {"o.k.parquet", "o.k.png"}


def test_pictures_are_made_where_they_are_missing(predictor: Predictor, film: Film, tmp_path: Path) -> None:
    video, picture = film(), tmp_path / "out" / f"{film().stem}.png"

    def fresh(**settings: object) -> bool:
        chosen = Settings(**({"weights": "w"} | settings))
        work = partial(predict_one, predictor, chosen)
        (known,) = predict_collection([video], tmp_path / "out", lambda place: work, chosen, run_here)
        return known.fresh

    assert fresh() and not picture.exists()
    assert fresh(plot=True) and picture.exists()
    assert not fresh(plot=True)
    assert not fresh() and picture.exists()  # as they are, they are what was asked for, and more
    picture.unlink()
    assert fresh(plot=True) and picture.exists()
    assert fresh(smooth=(5, 9)) and not picture.exists()  # it was another trace's


def test_many_videos_at_once_give_what_one_gives(
    predictor: Predictor, film: Film, kit: SimpleNamespace, tmp_path: Path
) -> None:
    """Also where their clips go through the networks together; an error is one video's."""
    videos = [film(times=kit.steps(count), size=size) for count in (20, 200, 90) for size in ((64, 48), (96, 64))]
    words = tmp_path / "words.mp4"
    words.write_text("words")
    outcomes = list(predictor.predict_many(iter([*videos, words]), together=4))
    assert sorted(outcome.video for outcome in outcomes) == sorted([*videos, words])
    for outcome in outcomes:
        if outcome.video == words:
            assert outcome.trace is None
            assert "words.mp4" in str(outcome.error)
        else:
            assert outcome.trace is not None
            np.testing.assert_allclose(outcome.trace.values, predictor.predict(outcome.video).values, atol=1e-5)


def test_many_videos_come_as_they_are_finished(predictor: Predictor, film: Film, kit: SimpleNamespace) -> None:
    long, short = film(times=kit.steps(1500, 15), size=(32, 32)), film()
    run = predictor.predict_many([long, short, short])
    assert [next(run).video, next(run).video] == [short, short]
    run.close()  # without waiting for the long one


def test_a_recipe_makes_the_work(small_checkpoint: Path, film: Film, tmp_path: Path) -> None:
    settings = Settings(weights=weights_digest(small_checkpoint), precision="fp32", region="none")
    [known] = predict_collection(
        [film()], tmp_path, Recipe(small_checkpoint, settings, ("cpu",), False), settings, run_here
    )
    expected = Predictor.from_pretrained(small_checkpoint, "cpu", "fp32", False, "none").predict(film()).table
    assert pyarrow.parquet.read_table(tmp_path / known.row.outputs[0]).equals(expected)
