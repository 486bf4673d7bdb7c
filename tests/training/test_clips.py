"""Clips at random over all videos: the same pictures by seeking and from the cache, the same draw in every way."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jmt_fast.config import FrameConfig
from jmt_fast.data import Recording
from jmt_fast.data.graph import ClipGraph
from jmt_fast.errors import DataError, MediaError
from jmt_fast.training.clip_cache import ClipCache, open_clips
from jmt_fast.training.clip_loader import ClipLoader
from jmt_fast.training.clips import ClipReader

Batches = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture
def graph() -> ClipGraph:
    return ClipGraph(FrameConfig(resize=24, crop=20), threads=1)


@pytest.fixture
def recordings(film: Callable[..., Path], kit: SimpleNamespace, tmp_path: Path) -> list[Recording]:
    """Videos of one kind each: long groups of pictures, every frame a keyframe, a start that is not zero."""
    films = [
        {"times": kit.steps(230), "keyframes": 100, "b_frames": 3},
        {"times": kit.steps(120), "codec": "mjpeg", "suffix": "avi", "pixel_format": "yuvj420p"},
        {"times": kit.steps(140, start=3.0), "keyframes": 60, "codec": "libx265", "suffix": "mkv"},
    ]
    made = []
    for number, fields in enumerate(films):
        rows = np.random.default_rng(number).uniform(-1, 1, (len(fields["times"]), 2))
        annotation = tmp_path / f"{number}.txt"
        annotation.write_text("valence,arousal\n" + "".join(f"{v:.4f},{a:.4f}\n" for v, a in rows))
        made.append(Recording(str(number), film(**fields), annotation))
    return made


@pytest.fixture
def reader(recordings: list[Recording], graph: ClipGraph) -> ClipReader:
    return ClipReader(recordings, graph, stride=8)


def epoch(reader: ClipReader, number: int = 1, **options: Any) -> Batches:
    return [batch for _, batch in ClipLoader(reader, **{"batch": 4, "seed": 3, **options}).epoch(number)]


def same(one: Batches, other: Batches) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_a_seek_shows_what_the_cache_holds(reader: ClipReader, tmp_path: Path) -> None:
    cache = ClipCache(tmp_path / "cache", reader)
    assert len(cache) == len(reader) > 60
    np.testing.assert_array_equal(cache.targets, reader.targets)
    order = np.random.default_rng(0).permutation(len(reader))
    assert torch.equal(reader.inputs(order), cache.inputs(order))
    assert reader.inputs(order).float().std() > 50  # not black
    assert abs((tmp_path / "cache").stat().st_size / reader.size - 1) < 0.05


def test_clips_of_face_crops(recordings: list[Recording], graph: ClipGraph, tmp_path: Path) -> None:
    """By seeks and from the cache as Pillow decodes them, to a level; of two sizes, some missing, one not readable."""
    crops, rng = tmp_path / "crops", np.random.default_rng(0)
    crops.mkdir()
    shown: dict[int, np.ndarray] = {}
    for index in set(range(120)) - {4, 40, 41}:
        file, size = crops / f"{index + 1:05d}.jpg", (112, 112) if index % 7 else (60, 80)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
        shown[index] = graph.resized([np.asarray(Image.open(file))[None]])[0][0].numpy()
    bad = crops / "00017.jpg"
    bad.write_bytes(bad.read_bytes().replace(b"\xff\xdb", b"\xff\xfe"))  # no tables
    del shown[16]
    reader = ClipReader([replace(recordings[1], crops=crops)], graph, stride=8)
    cache = ClipCache(tmp_path / "cache", reader)
    assert len(cache) == len(reader) > 10
    assert {4, 16, 40, 56} <= set(reader.rows.ravel().tolist())
    for clip, row in enumerate(reader.rows):
        for index, frame, again in zip(row.tolist(), reader.frames(clip), cache.frames(clip), strict=True):
            np.testing.assert_array_equal(frame, again)
            np.testing.assert_allclose(frame.astype(int), shown.get(index, reader.black()), atol=1)


def test_a_draw_depends_on_seed_epoch_and_step_alone(reader: ClipReader) -> None:
    first = epoch(reader, workers=1)
    assert len(first) == len(reader) // 4
    assert same(epoch(reader, workers=1), first)
    assert same(epoch(reader, workers=5), first)
    assert not same(epoch(reader, 2), first)
    assert not same(epoch(reader, seed=4), first)


def test_ranks_share_a_step_and_miss_nothing(reader: ClipReader) -> None:
    """The parts of a step are what one rank gets; in an epoch each clip comes once, but for less than a step."""
    parts = [epoch(reader, batch=12, part=(rank, 3)) for rank in range(3)]
    whole = epoch(reader, batch=12)
    joined = [tuple(torch.cat(tensors) for tensors in zip(*step, strict=True)) for step in zip(*parts, strict=True)]
    assert same(joined, whole)  # type: ignore[arg-type]
    targets = torch.cat([target for _, target in whole]).numpy()
    known = {tuple(row) for row in reader.targets.tolist()}
    assert len(known) == len(reader)  # every clip has targets of its own
    drawn = {tuple(row) for row in targets.tolist()}
    assert drawn <= known and len(drawn) == len(targets) == len(reader) // 12 * 12


def test_ranks_that_cannot_share_a_step(reader: ClipReader) -> None:
    with pytest.raises(DataError, match="too few for 999 processes"):
        ClipLoader(reader, batch=999, seed=0, part=(0, 999))
    with pytest.raises(DataError, match="batches of 8 clips cannot be shared evenly by 3 processes"):
        ClipLoader(reader, batch=8, seed=0, part=(0, 3))


def test_batches_are_made_ahead(reader: ClipReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first batch is in use, as many more are made as there are workers; leaving early stops that."""
    made, ready = [], threading.Event()
    inputs = reader.inputs

    def noted(clips: np.ndarray, *rest: np.ndarray) -> torch.Tensor:
        made.append(clips)
        if len(made) == 4:
            ready.set()
        return inputs(clips, *rest)

    monkeypatch.setattr(reader, "inputs", noted)
    batches = ClipLoader(reader, batch=4, seed=0, workers=3).epoch(1)
    next(batches)
    assert ready.wait(20)
    batches.close()  # type: ignore[attr-defined]
    assert len(made) == 4


def test_without_room_on_the_disk_clips_are_read_anew(
    reader: ClipReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(open_clips(tmp_path / "cache", reader), ClipCache)
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: used._replace(free=reader.size))
    assert open_clips(tmp_path / "other", reader) is reader
    assert not (tmp_path / "other").exists()


def test_a_file_that_vanishes_is_named(recordings: list[Recording], graph: ClipGraph, tmp_path: Path) -> None:
    gone = tmp_path / "gone.mp4"
    shutil.copy(recordings[0].video, gone)
    reader = ClipReader([Recording("gone", gone, recordings[0].annotation)], graph, stride=8)
    gone.unlink()
    with pytest.raises(MediaError, match=r"gone\.mp4: no such file"):
        epoch(reader)
