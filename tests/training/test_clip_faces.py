"""`train visual` on the faces of raw videos: it learns from the pictures that `features` will see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from jmt_fast.cli import app
from jmt_fast.cli import train as _registered  # noqa: F401
from jmt_fast.config import FrameConfig
from jmt_fast.data import OpenRecording, Recording
from jmt_fast.data.graph import ClipGraph
from jmt_fast.faces import DETECTORS, Cropper, Faces, find_people, looked_at
from jmt_fast.models.checkpoint import load_feature_config
from jmt_fast.runtime import Runtime
from jmt_fast.training.clip_cache import ClipCache
from jmt_fast.training.clips import ClipReader

FRAMES = FrameConfig(resize=24, crop=20)
POINTS = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]], np.float32) / 112
looks: list[int] = []


def two_faces(pictures: Sequence[np.ndarray]) -> list[Faces]:
    """A large one on the left and a small one on the right of every picture."""
    looks.append(len(pictures))
    squares = np.array([[10, 10, 70], [110, 30, 40]], np.float32)
    boxes = np.concatenate([squares[:, :2], squares[:, :2] + squares[:, 2:]], 1)
    points = squares[:, None, :2] + POINTS * squares[:, None, 2:]
    return [Faces(boxes, np.ones(2, np.float32), points) for _ in pictures]


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    looks.clear()
    monkeypatch.setitem(DETECTORS, "centerface", lambda runtime: two_faces)


@pytest.fixture
def video(film: Callable[..., Path], kit: SimpleNamespace) -> Path:
    return film(times=kit.steps(64), size=(160, 96))


@pytest.fixture
def annotation(tmp_path: Path) -> Path:
    path, values = tmp_path / "labels.txt", np.sin(np.arange(64) / 9)
    path.write_text("valence,arousal\n" + "".join(f"{value:.3f},{-value:.3f}\n" for value in values))
    return path


def test_the_chosen_detector_looks(video: Path, annotation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DETECTORS, "centerface")
    monkeypatch.setitem(DETECTORS, "yunet", lambda runtime: two_faces)
    graph, runtime = ClipGraph(FRAMES, threads=1), Runtime.choose("cpu", "fp32", compile=False)
    recordings = [Recording("0", video, annotation)]
    assert len(ClipReader(recordings, graph, 16, region="face", find="yunet", runtime=runtime))
    assert sum(looks)


def test_a_video_without_faces_is_told(video: Path, annotation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DETECTORS, "centerface", lambda runtime: lambda pictures: [Faces.none() for _ in pictures])
    graph, runtime = ClipGraph(FRAMES, threads=1), Runtime.choose("cpu", "fp32", compile=False)
    with pytest.warns(UserWarning, match=r"no face found, so its clips are black; --crop center takes"):
        ClipReader([Recording("0", video, annotation)], graph, 16, region="face", runtime=runtime)


@pytest.mark.parametrize("region", ["face", "none"])
def test_clips_show_what_features_are_made_of(video: Path, annotation: Path, region: str, tmp_path: Path) -> None:
    recordings = [Recording(name, video, annotation, person=name) for name in ("0", "1")]
    graph, runtime = ClipGraph(FRAMES, threads=1), Runtime.choose("cpu", "fp32", compile=False)
    reader = ClipReader(recordings, graph, 16, region=region, runtime=runtime)  # type: ignore[arg-type]
    opened = OpenRecording(recordings[0])
    times = opened.timestamps
    assert sum(looks) == (2 * len(looked_at(times)) if region == "face" else 0)  # once a recording
    people = find_people(opened.frames(looked_at(times)), times, two_faces)
    pictures = dict(opened.frames(range(64)))
    mean, std = (torch.tensor(values)[:, None, None] for values in (FRAMES.mean, FRAMES.std))
    cache = ClipCache(tmp_path / "cache", reader)
    for clip in range(len(reader)):
        cropper = Cropper(FRAMES, graph.device, people[reader.videos[clip]] if region == "face" else None)
        expected = cropper([(int(index), pictures[index]) for index in reader.rows[clip]])
        levels = ((expected * std + mean) * 255).permute(0, 2, 3, 1)  # (8, crop, crop, 3)
        for clips in (reader, cache):
            shown = clips.inputs(np.array([clip]))[0].float()
            assert shown.std() > 20
            if region == "face":  # cut at the larger size and then to its centre: the same but for rounding to bytes
                assert (shown - levels).abs().max() < 1
            else:  # here the larger size shows a part; both have black bars above and below
                assert not shown[:, :2].any() and not levels[:, :2].any() and shown[:, 10].any()
    assert reader.size == cache._data[0].size == 2 * len(np.unique(reader.rows)) * 24 * 24 * 3


def test_who_is_not_there_is_passed_over(video: Path, annotation: Path) -> None:
    recordings = [Recording(name, video, annotation, person=name) for name in ("7", "1")]
    with pytest.warns(UserWarning, match="no person '7', its people are 0, 1; .*training goes on without it"):
        reader = ClipReader(
            recordings, ClipGraph(FRAMES, threads=1), 16, region="face", runtime=Runtime.choose("cpu", "fp32")
        )
    assert [opened.recording.name for opened in reader.opened] == ["1"]
    assert len(reader) == 5 and not reader.videos.any()


def test_the_command(video: Path, annotation: Path, tmp_path: Path) -> None:
    manifest, out = tmp_path / "manifest.csv", tmp_path / "run"
    rows = [f"{name},{video},{annotation},{split}" for name, split in (("a", "train"), ("b", "validation"))]
    manifest.write_text("\n".join(["name,video,annotation,split", *rows]))
    arguments = ["train", "visual", "--data", manifest, "--out", out, "--backbones", "random", "--preset", "demo"]
    more = ["--crop", "face", "--epochs", "1", "--batch", "2", "--device", "cpu"]
    result = CliRunner().invoke(app, [*map(str, arguments), *more])
    assert result.exit_code == 0, result.output
    assert load_feature_config(out).region == "face"
    assert looks
