"""Frames become clips once each, in bounded memory, with black where a frame is lost."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from jmt_fast.config import FrameConfig
from jmt_fast.data import OpenRecording, Recording, clip_frames, clip_times
from jmt_fast.data.graph import ClipGraph
from jmt_fast.features import Extractor
from jmt_fast.features.frames import CHUNK, FrameSource, choose_decoder
from jmt_fast.media.route import Route
from jmt_fast.models import load_backbones
from jmt_fast.runtime import Runtime

CONFIG = FrameConfig(resize=32, crop=32)


class Frames:
    """A recording in memory: flat grey frames whose level is their index; some may be lost, the end may be missing."""

    def __init__(self, lost: set[int] | None = None, crops: set[int] | None = None, end: int = 10**9) -> None:
        self.lost, self.without_face, self.end = lost or set(), crops or set(), end
        self.given: list[int] = []

    def pictures(self, indices: np.ndarray, shorter: int | None = None) -> Iterator[tuple[int, np.ndarray | None]]:
        for index in indices.tolist():
            if index >= self.end:
                return
            if index not in self.lost:
                self.given.append(index)
                size = 32 if index % 2 else 48  # the size may change within a stream
                yield index, None if index in self.without_face else np.full((size, size, 3), index % 250, np.uint8)


@pytest.fixture(scope="module")
def graph() -> ClipGraph:
    return ClipGraph(CONFIG, device="cpu")


def level(index: np.ndarray) -> np.ndarray:
    """What a frame of that grey level becomes in the first channel."""
    return (index % 250 / 255 - CONFIG.mean[0]) / CONFIG.std[0]


def clips(source: FrameSource, rows: np.ndarray, block: int = 5) -> torch.Tensor:
    return torch.cat([source.clips(rows[start : start + block]).stacked() for start in range(0, len(rows), block)])


@pytest.mark.parametrize("fps", [12.5, 24, 30, 60])
@pytest.mark.parametrize("stride", [4, 32])
def test_each_clip_shows_its_frames(graph: ClipGraph, fps: float, stride: int) -> None:
    timestamps = 0.4 + np.arange(int(5 * fps)) / fps
    rows = clip_frames(timestamps, clip_times(timestamps, stride))
    recording = Frames()
    source = FrameSource(recording, np.unique(rows), graph)
    got = clips(source, rows)
    assert got.shape == (len(rows), 3, 8, 32, 32)
    assert np.allclose(got[:, 0, :, 7, 9].numpy(), level(rows), atol=1e-5)
    assert recording.given == np.unique(rows).tolist()  # each frame once, and none that no clip shows
    assert source.ended is None
    assert not source.missing


def test_only_frames_still_needed_are_kept(graph: ClipGraph) -> None:
    timestamps = np.arange(3000) / 30
    rows = clip_frames(timestamps, clip_times(timestamps, 8))
    source = FrameSource(Frames(), np.unique(rows), graph)
    kept = []
    for start in range(0, len(rows), 8):
        source.clips(rows[start : start + 8])
        kept.append(len(source._ready))
    assert max(kept) <= 8 * 2 + 8 + CHUNK  # the frames of a block, its overlap with the one before, the chunk ahead


def test_lost_frames_and_missing_faces_are_black(graph: ClipGraph) -> None:
    timestamps = np.arange(300) / 30
    rows = clip_frames(timestamps, clip_times(timestamps, 8))
    lost, faceless = {40, 44, 48, 160}, {80, 84}
    source = FrameSource(Frames(lost, faceless), np.unique(rows), graph)
    got = clips(source, rows)[:, :, :, 3, 3].numpy()
    black = np.isin(rows, [*lost, *faceless])
    assert black.sum() > 20
    assert np.allclose(got[:, 0][~black], level(rows)[~black], atol=1e-5)
    for channel in range(3):
        assert np.allclose(got[:, channel][black], -CONFIG.mean[channel] / CONFIG.std[channel], atol=1e-5)
    assert source.missing == sorted(lost | faceless)


@pytest.mark.parametrize("end", [1, 15, 17, 100, 298])
def test_a_stream_that_ends_early_is_noticed(graph: ClipGraph, end: int) -> None:
    timestamps = np.arange(300) / 30
    rows = clip_frames(timestamps, clip_times(timestamps, 8))
    wanted = np.unique(rows)
    source = FrameSource(Frames(end=end), wanted, graph)
    first = next(row for row in range(len(rows)) if rows[row].max() >= end)
    if first:
        clips(source, rows[:first])
        assert source.ended is None
    source.clips(rows[first : first + 1])
    assert source.ended == wanted[wanted < end].max() + 1


def test_streams_let_go_of_their_files_and_threads(film, kit, small_features, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are read to the end or not, and without the help of the garbage collector."""
    recording = OpenRecording(Recording("film", film(times=kit.steps(300))))
    extractor = Extractor(small_features, load_backbones(small_features, "random", 0), Runtime.choose("cpu", "fp32"))
    closed = []
    shown = OpenRecording.frames

    def frames(self: OpenRecording, *arguments: object) -> Iterator:
        try:
            yield from shown(self, *arguments)
        finally:
            closed.append(self)

    monkeypatch.setattr(OpenRecording, "frames", frames)
    before = set(threading.enumerate())
    gc.disable()
    try:
        for blocks in (1, 100):
            list(islice(extractor.stream(recording, 4), blocks))
            for thread in set(threading.enumerate()) - before:
                if thread.name.startswith(("ahead", "to-rgb")):
                    thread.join(60)
                    assert not thread.is_alive(), thread.name
    finally:
        gc.enable()
    assert closed == [recording] * 2


def test_a_stream_without_any_frame(graph: ClipGraph) -> None:
    source = FrameSource(Frames(end=0), np.arange(8), graph)
    assert not len(source.clips(np.arange(8)[None]))
    assert source.ended == 0


def test_a_bad_crop_among_good_ones_is_black_and_fails_no_other(
    film: Callable[..., Path], kit: SimpleNamespace, graph: ClipGraph, tmp_path: Path
) -> None:
    """One that decoders refuse, one cut short, one empty, one missing, in chunks of good ones."""
    good, want = set(range(41)) - {17, 23, 24, 30}, {}
    for index in range(41):
        file = tmp_path / f"{index + 1:05d}.jpg"
        Image.fromarray(kit.numbered(index, 112, 112)).save(file)
        want[index] = graph.frames([np.asarray(Image.open(file))[None]])[0][0]
    for index, change in {
        17: lambda data: data.replace(b"\xff\xdb", b"\xff\xfe"),  # no tables
        23: lambda data: data[: len(data) // 2],
        24: lambda data: b"",
    }.items():
        file = tmp_path / f"{index + 1:05d}.jpg"
        file.write_bytes(change(file.read_bytes()))
    (tmp_path / "00031.jpg").unlink()
    recording = OpenRecording(Recording("film", film(times=kit.steps(41)), crops=tmp_path))
    source = FrameSource(recording, np.arange(41), graph)
    frames = {index: source.clips(np.array([[index] * 8])).stacked()[0, :, 0] for index in range(41)}
    black = graph.frames([np.zeros((1, 9, 9, 3), np.uint8)])[0][0]
    for index, frame in frames.items():
        assert torch.allclose(frame, want[index] if index in good else black, atol=1.001 / 255 / min(CONFIG.std))
    assert source.missing == [17, 23, 24, 30]
    assert source.ended is None


@pytest.mark.parametrize(
    ("crops", "device", "runs_on", "reason"),
    [
        (Path("crops"), "cuda", "cuda", "prepared face crops, JPEGs decoded by DALI on the GPU"),
        (Path("crops"), "cpu", "cpu", "prepared face crops, JPEGs decoded by DALI on the CPU"),
        (None, "cuda", "cpu", "PyAV on the CPU: DALI cannot use the GPU"),
    ],
)
def test_who_decodes(crops: Path | None, device: str, runs_on: str, reason: str) -> None:
    recording = SimpleNamespace(recording=Recording("v", Path("v.mp4"), crops=crops), stills=None)
    graph = SimpleNamespace(device=torch.device(device), runs_on=torch.device(runs_on))
    assert choose_decoder(recording, graph, None) == Route(False, reason)


def test_debug_says_who_decodes_and_why(film: Callable[..., Path], small_checkpoint: Path, tmp_path: Path) -> None:
    video = film()
    command = [
        sys.executable,
        "-m",
        "jmt_fast",
        "--debug",
        "predict",
        str(video),
        "--checkpoint",
        str(small_checkpoint),
    ]
    command += ["--checkpoint", str(small_checkpoint), "--out", str(tmp_path), "--device", "cpu"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stderr.splitlines() == [f"debug: {video}: PyAV on the CPU: no GPU is used"]
