"""A video in, a trace out: every kind of file that people have, aligned, in blocks, with the right frames."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jmt_fast import media
from jmt_fast.data import OpenRecording, Recording, clip_frames, clip_times, to_frames
from jmt_fast.data.graph import ClipGraph
from jmt_fast.data.synthetic import synthesise
from jmt_fast.errors import CheckpointError, MediaError
from jmt_fast.features import VideoFeatures, run_sequences
from jmt_fast.features.frames import CHUNK, FrameSource
from jmt_fast.inference import Predictor
from jmt_fast.models import Checkpoint, ReferenceJMT

Film = Callable[..., Path]


@pytest.fixture(scope="module")
def predictor(small_checkpoint: Path) -> Predictor:
    return Predictor.from_pretrained(small_checkpoint, device="cpu", precision="fp32", compile=False)


def kinds(kit: SimpleNamespace) -> dict[str, dict]:
    def sound(rate: int = 44_100, layout: str = "stereo", channels: int = 2, **rest) -> object:
        return kit.Sound(kit.clicks([0.5, 1.0], 1.6, rate, channels), rate, layout=layout, **rest)

    vfr = tuple(np.cumsum(np.tile([0.02, 0.05, 0.033], 20)))
    return {
        "H.264/AAC MP4": {"sound": sound()},
        "HEVC MOV of variable rate": {"codec": "libx265", "suffix": "mov", "times": vfr, "sound": sound()},
        "VP9 WebM": {"codec": "libvpx-vp9", "suffix": "webm", "sound": sound(48_000, codec="libopus")},
        "AVI": {"codec": "mpeg4", "suffix": "avi", "b_frames": 0, "sound": sound(codec="mp3")},
        "no sound": {},
        "mono": {"sound": sound(layout="mono", channels=1)},
        "5.1": {"sound": sound(48_000, "5.1", 6, codec="ac3"), "suffix": "mkv"},
        "wide": {"size": (320, 34)},
        "tiny": {"size": (16, 16)},
        "12.5 fps": {"times": kit.steps(30, 12.5)},
        "60 fps, late start": {"times": kit.steps(90, 60, 1.4), "suffix": "mkv"},
        "one frame": {"times": (0.0,)},
    }


KINDS = ["H.264/AAC MP4", "HEVC MOV of variable rate", "VP9 WebM", "AVI", "no sound", "mono", "5.1", "wide", "tiny",
         "12.5 fps", "60 fps, late start", "one frame"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_gives_one_row_a_frame(
    predictor: Predictor, film: Film, kit: SimpleNamespace, kind: str
) -> None:
    path = film(**kinds(kit)[kind])
    trace = predictor.predict(path)
    info = media.probe(path)
    assert trace.table.num_rows == info.frames
    assert np.array_equal(trace.times, info.timestamps)
    assert np.isfinite(trace.values).all()
    assert np.abs(trace.values).max() <= 1
    assert all(trace.table["valid"].to_pylist())
    assert not trace.warnings


@pytest.mark.parametrize("stride", [1, 8, 32])
def test_a_trace_is_what_the_plain_path_computes(
    predictor: Predictor, small_checkpoint: Path, film: Film, kit: SimpleNamespace, stride: int
) -> None:
    """Everything at once in plain PyTorch: all clips in memory, the reference model, no blocks."""
    sound = kit.Sound(kit.clicks(np.arange(0.5, 16), 17, 44_100), 44_100)
    path = film(times=kit.steps(420, 25), sound=sound, size=(64, 48))
    loaded = Checkpoint.load(small_checkpoint)
    recording = OpenRecording(Recording("film", path))
    graph = ClipGraph(loaded.features.frames, loaded.features.sound)
    times = clip_times(recording.timestamps, stride)
    rows = clip_frames(recording.timestamps, times)
    frames = graph.frames([[frame for _, _, frame in media.select(path, range(420), shorter=36)]])[0]
    heard = recording.sound()
    windows = np.stack([heard.window(time, 47_040) for time in times])
    with torch.inference_mode():
        visual = loaded.backbones.visual(frames[torch.from_numpy(rows)].transpose(1, 2))
        audio = loaded.backbones.audio(graph.spectrograms(windows))
    features = torch.cat((visual, audio), 1)
    video = VideoFeatures("film", stride, times, features, visual.shape[1], recording.timestamps, np.ones(420, bool))
    reference = ReferenceJMT(loaded.fusion.config)
    reference.load_state_dict(loaded.fusion.state_dict())
    clips = run_sequences(reference.eval(), loaded.backbones.audio, video, 8)
    expected = to_frames(times, clips, recording.timestamps)
    assert expected.std(0).min() > 1e-3  # else the comparison says nothing
    np.testing.assert_allclose(predictor.predict(path, stride).values, expected, atol=2e-5)


def test_shrinking_on_the_way_moves_a_trace_by_a_tenth_of_what_the_two_fronts_may_differ(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Talking faces, against frames that the media graph shrinks."""
    [recording, _] = synthesise(tmp_path, 2, 4.0, size=96, workers=1)
    shrunk = predictor.predict(recording.video, 4).values
    monkeypatch.setattr(predictor.extractor.graph, "shorter", None)
    whole = predictor.predict(recording.video, 4).values
    assert whole.std(0).max() > 0.1  # else the comparison says nothing
    assert 0 < np.abs(shrunk - whole).max() < 0.002


def test_a_truncated_file_gives_the_frames_that_are_there(predictor: Predictor, film: Film, tmp_path: Path) -> None:
    whole = film(times=tuple(n / 30 for n in range(200)), options=(("movflags", "faststart"),))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    trace = predictor.predict(cut)
    assert 60 < trace.table.num_rows < 190
    assert any("cannot be decoded" in line for line in trace.warnings)
    assert np.array_equal(trace.times, media.probe(whole).timestamps[: trace.table.num_rows])


def test_frames_lost_inside_are_marked(predictor: Predictor, film: Film, kit: SimpleNamespace) -> None:
    path = film(codec="mjpeg", suffix="avi", times=kit.steps(120), pixel_format="yuvj420p")
    trace = predictor.predict(kit.damaged(path, "video", range(40, 60)))
    valid = np.array(trace.table["valid"].to_pylist())
    assert len(valid) == 120
    assert not valid[45:59].any()
    assert valid[:37].all()
    assert valid[64:].all()


def test_memory_does_not_grow_with_the_length(
    predictor: Predictor, film: Film, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks in flight, not the video, decide what is held: four times the frames may not hold four times as much."""
    held: list[int] = []
    pull = FrameSource._pull

    def watched(self: FrameSource) -> None:
        pull(self)
        held.append(len(self._ready))

    monkeypatch.setattr(FrameSource, "_pull", watched)
    peaks = []
    for seconds in (40, 160):
        held.clear()
        path = film(times=kit.steps(seconds * 15, 15), size=(16, 16))
        for _ in predictor.extractor.stream(OpenRecording(Recording("film", path)), 8):
            pass
        peaks.append(max(held))
    assert peaks[1] <= peaks[0] + CHUNK


def test_a_checkpoint_of_another_configuration_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    other = {"widths": [8, 24], "blocks": [1, 1]}
    for file, field, value in (("config.json", "dim", 96), ("features.json", "visual", other)):
        folder = tmp_path / file
        shutil.copytree(small_checkpoint, folder)
        config = json.loads((folder / file).read_text())
        (config.get("config", config))[field] = value
        (folder / file).write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=str(folder)) as caught:
            Predictor.from_pretrained(folder, device="cpu")
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        Predictor.from_pretrained(tmp_path / "none")


def test_a_file_that_is_no_video_is_an_error(predictor: Predictor, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("not a video")
    with pytest.raises(MediaError, match=r"notes\.mp4"):
        predictor.predict(text)
