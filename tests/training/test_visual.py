"""Training of the visual backbone from real video files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jmt_fast.config import FrameConfig, VisualConfig, VisualTraining
from jmt_fast.data import OpenRecording, Recording, clip_frames, clip_labels, clip_times
from jmt_fast.data.graph import ClipGraph
from jmt_fast.errors import DataError, JMTError
from jmt_fast.models import VisualBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training import fit_visual
from jmt_fast.training.clip_cache import ClipCache
from jmt_fast.training.clip_loader import ClipLoader
from jmt_fast.training.clips import ClipReader
from jmt_fast.training.visual import VisualRegressor

FRAMES = FrameConfig(resize=28, crop=24)


@pytest.fixture
def make_recording(tmp_path: Path) -> Callable[..., Recording]:
    """A video whose brightness is its valence and whose colour is its arousal, with a gradient to tell the sides."""

    def make(name: str, frames: int = 150, unlabelled: slice = slice(0)) -> Recording:
        random = np.random.default_rng(list(name.encode()))
        phase, speed = random.uniform(0, 6, 2), random.uniform(0.5, 2, 2)
        values = 0.8 * np.sin(phase + speed * np.arange(frames)[:, None] / 30)
        ramp = np.linspace(-40, 40, 48)[None, :, None]
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=30)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 48, 36, "yuv420p", 4_000_000
            for valence, arousal in values:
                grey = 128 + 70 * valence + ramp * np.ones((36, 1, 1))
                picture = np.concatenate([grey + 40 * arousal, grey, grey - 40 * arousal], 2)
                frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        values[unlabelled] = -5
        rows = "".join(f"{valence:.4f},{arousal:.4f}\n" for valence, arousal in values)
        annotation = tmp_path / f"{name}.txt"
        annotation.write_text("valence,arousal\n" + rows)
        return Recording(name, tmp_path / f"{name}.mp4", annotation)

    return make


@pytest.fixture
def graph() -> ClipGraph:
    return ClipGraph(FRAMES, threads=1)


def backbone() -> VisualBackbone:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return VisualBackbone(VisualConfig(blocks=(1, 1), widths=(8, 16), features=16), FRAMES.crop)


def test_the_cache_holds_the_clips_of_labelled_frames(
    make_recording: Callable[..., Recording], graph: ClipGraph, tmp_path: Path
) -> None:
    recordings = [make_recording("a", unlabelled=slice(40, 70)), make_recording("b", frames=61)]
    cache = ClipCache(tmp_path / "cache", ClipReader(recordings, graph, stride=8))
    expected, targets = [], []
    for recording in recordings:
        opened = OpenRecording(recording)
        times = clip_times(opened.timestamps, 8)
        target, known = clip_labels(opened.labels(), opened.timestamps, times)
        pictures = dict(opened.frames(range(opened.info.frames)))
        for row in clip_frames(opened.timestamps, times[known]):
            expected.append(graph.frames([[pictures[index] for index in row]])[0])
        targets.append(target[known])
    np.testing.assert_array_equal(cache.targets, np.concatenate(targets))
    assert len(cache) == len(expected)
    network = VisualRegressor(backbone(), FRAMES, 0.0)
    inputs: list[torch.Tensor] = []
    network.backbone.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    network(cache.inputs(np.arange(len(cache))))
    assert inputs[0].shape == (len(cache), 3, 8, 24, 24)
    assert inputs[0].is_contiguous(memory_format=torch.channels_last_3d)
    levels = (inputs[0] - torch.stack(expected).transpose(1, 2)) * 255 * 0.225  # grey levels
    assert levels.abs().max() < 1.1  # the resized frame was rounded once
    distinct = len({picture.tobytes() for clip in range(len(cache)) for picture in cache.frames(clip)})
    stored = (tmp_path / "cache").stat().st_size / (28 * 37 * 3)
    assert distinct <= stored <= 150 + 61  # each frame once, however many clips show it


def test_augmentation_is_the_same_for_all_frames_of_a_clip(
    make_recording: Callable[..., Recording], graph: ClipGraph, tmp_path: Path
) -> None:
    cache = ClipCache(tmp_path / "cache", ClipReader([make_recording("a")], graph, stride=16))
    loader = ClipLoader(cache, batch=4, seed=0)

    def slopes(epoch: int) -> torch.Tensor:
        """Left to right brightness of each frame (B, 8): its sign tells whether it is flipped."""
        columns = torch.cat([pictures for _, (pictures, _) in loader.epoch(epoch)]).float().mean((2, 4))
        return (columns[..., 12:].mean(-1) - columns[..., :12].mean(-1)).sign()

    flips = slopes(1)
    assert (flips == flips[:, :1]).all()
    assert flips[:, 0].unique().numel() == 2
    assert torch.equal(slopes(1), flips)  # the same epoch again is the same
    first, second = (torch.cat([pictures for _, (pictures, _) in loader.epoch(epoch)]) for epoch in (1, 2))
    assert not torch.equal(first, second)
    assert len(loader) == len(cache) // 4


def test_missing_frames_are_black_and_lost_videos_are_passed_over(
    make_recording: Callable[..., Recording], graph: ClipGraph, tmp_path: Path
) -> None:
    good = make_recording("good", frames=64)
    crops = tmp_path / "crops"
    crops.mkdir()
    with av.open(str(good.video)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index > 40:
                frame.to_image().save(crops / f"{index + 1:05d}.jpg")
    with_crops = replace(good, name="crops", crops=crops)
    broken = replace(good, name="broken", video=tmp_path / "none.mp4")
    with pytest.warns(UserWarning, match=r"none\.mp4.*training goes on without it"):
        cache = ClipCache(tmp_path / "cache", ClipReader([broken, with_crops], graph, stride=32))
    assert len(cache) == 3
    black = [[not picture.any() for picture in cache.frames(clip)] for clip in range(3)]
    assert all(black[0])
    assert black[2] == [index <= 40 for index in range(35, 64, 4)]
    with pytest.warns(UserWarning), pytest.raises(DataError, match="no labelled clip in 1 recordings"):
        ClipReader([broken], graph, stride=32)


@pytest.mark.parametrize(
    "optimizer", [{"lr": 0.2, "momentum": 0.9, "clip_norm": 1.0}, {"optimizer": "adam", "lr": 3e-3, "clip_norm": 1.0}]
)
def test_learns_from_files(make_recording: Callable[..., Recording], tmp_path: Path, optimizer: dict) -> None:
    train = [make_recording(f"train{number}") for number in range(6)]
    validation = [make_recording(f"validation{number}") for number in range(2)]
    config = VisualTraining(**optimizer, schedule="one_cycle", batch=16, epochs=5, dropout=0.2, stride=4, seed=2)
    network, seen = backbone(), []
    runtime = Runtime.choose("cpu", "fp32", compile=False)
    result = fit_visual(
        network, FRAMES, train, validation, config, runtime, out=tmp_path / "run", progress=lambda *at: seen.append(at)
    )
    assert result.best_ccc.mean() > 0.6
    assert not network.training
    saved = load_file(tmp_path / "run" / "best" / "visual.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "last.pt", "metrics.jsonl"]
    assert seen[0][2].startswith("clips of train0") and seen[-1][:2] == (5000, 5000)


def test_a_resumed_run_ends_with_the_same_bits(make_recording: Callable[..., Recording], tmp_path: Path) -> None:
    train, validation = [make_recording("train")], [make_recording("validation", frames=70)]
    config = VisualTraining(momentum=0.9, schedule="one_cycle", batch=4, epochs=3, patience=3, stride=16)
    runtime = Runtime.choose("cpu", "fp32", compile=False)

    def interrupt(done: int, total: int, note: str) -> None:
        if note == "epoch 2":
            raise KeyboardInterrupt

    whole, resumed = backbone(), backbone()
    expected = fit_visual(whole, FRAMES, train, validation, config, runtime)
    with pytest.raises(KeyboardInterrupt):
        fit_visual(backbone(), FRAMES, train, validation, config, runtime, out=tmp_path / "run", progress=interrupt)
    assert not list((tmp_path / "run").glob("frames-*"))
    result = fit_visual(resumed, FRAMES, train, validation, config, runtime, out=tmp_path / "run", resume=True)
    assert [entry["loss"] for entry in result.history] == [entry["loss"] for entry in expected.history]
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_no_room_for_the_frames(make_recording: Callable[..., Recording], tmp_path: Path) -> None:
    recordings = [make_recording("a")]
    with pytest.raises(JMTError, match="cannot keep resized frames"):
        ClipCache(Path("/dev/full"), ClipReader(recordings, ClipGraph(FRAMES, threads=1), stride=8))
