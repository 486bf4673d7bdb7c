"""What does the work around the networks cost: decoding, sound and writing, processes, ledger, memory?

`over` is the share by which a row is above the one it is measured against: what the rest adds to it, so a ratio of 1 is
the best that can be. Videos are H.264 with sound; end to end is what `predict` does, `backbones alone` the same clips
in the same blocks, their inputs in memory already, `decoding alone` the video with nothing behind. End to end is
measured against the slower of these two, on a GPU once with NVDEC and once with PyAV.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from benchmarks.decoding import decoded_by_pyav, decoded_in_graph, missing, planned, without_nvdec
from benchmarks.timing import Timing
from jmt_fast.config import CLIP_FRAMES, FeatureConfig, JMTConfig
from jmt_fast.data import OpenRecording, Recording
from jmt_fast.features.extract import CLIPS_PER_BLOCK
from jmt_fast.inference import Crew, Predictor, Recipe, Settings, predict_collection
from jmt_fast.inference.collection import Task
from jmt_fast.inference.ledger import DONE, Ledger, Row
from jmt_fast.models import JMT, Checkpoint, Clips, load_backbones

RATE = 44_100
ALONE, DECODING, WHOLE = "backbones alone", "decoding alone", "jmt-fast, end to end"
FPS, STRIDE = 30, 8
BARE, ENGINE = "predict and save, in a loop", "jmt-fast, one process"
EMPTY, FULL = "0 rows before", "jmt-fast, 100,000 rows before"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float, int, int, int], Path]:
    """video(seconds, width, height, fps): moving waves under grain, and a tone."""
    folder = tmp_path_factory.mktemp("video")

    def make(seconds: float, width: int, height: int, fps: int) -> Path:
        path = folder / f"{seconds:g}-{width}x{height}-{fps}.mp4"
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        grain = np.random.default_rng(0).normal(0, 6, (height, width, 3))
        pictures = [
            (127.5 + 90 * np.sin((rows + columns) / 30 + k / 3)[..., None] + grain).clip(0, 255).astype(np.uint8)
            for k in range(16)
        ]
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            sound = container.add_stream("aac", rate=RATE, layout="mono")
            for second in range(round(seconds)):
                for k in range(fps):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pictures[k % 16], format="rgb24")))
                times = (second * RATE + np.arange(RATE)) / RATE
                tone = (0.1 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
                for at in range(0, RATE, 1024):
                    frame = av.AudioFrame.from_ndarray(tone[None, at : at + 1024], "fltp", "mono")
                    frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), second * RATE + at
                    container.mux(sound.encode(frame))
            container.mux(stream.encode(None))
            container.mux(sound.encode(None))
        return path

    return make


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """checkpoint(preset): random weights of the networks `paper` or `demo`."""

    def make(preset: str) -> Path:
        folder = tmp_path_factory.mktemp(preset)
        features = FeatureConfig.preset(preset).model_copy(update={"region": "center"})  # there are no faces
        fusion = JMT(JMTConfig(visual_dim=features.visual.features))
        Checkpoint(fusion, load_backbones(features, "random"), features).save(folder)
        return folder

    return make


def test_decoding_overlaps(video: Any, checkpoint: Any, device: torch.device, race: Any, question: Any) -> None:
    """One process on all cores, the paper's networks: what do decoding, sound and spectrograms add to them?"""
    seconds = 12 if device.type == "cpu" else 300
    path = video(seconds, 640, 360, FPS)
    predictor = Predictor.from_pretrained(checkpoint("paper"), device.type)
    extractor, recording = predictor.extractor, OpenRecording(Recording("video", path))
    count, graph = len(planned(recording, STRIDE)), extractor.graph
    rows = STRIDE // 4 * torch.arange(CLIPS_PER_BLOCK)[:, None] + torch.arange(CLIP_FRAMES)
    clips = Clips(torch.randn(int(rows.max()) + 1, 3, 224, 224, device=device), rows)
    spectrograms = torch.randn(CLIPS_PER_BLOCK, 1, 64, 107, device=device)

    def alone() -> None:
        for first in range(0, count, CLIPS_PER_BLOCK):
            part = min(CLIPS_PER_BLOCK, count - first)
            extractor.visual(clips.split(part)[0])
            extractor.audio(spectrograms[:part])

    def whole() -> None:
        predictor.predict(path, STRIDE)

    ways = {"PyAV": (lambda: decoded_by_pyav(recording, graph, STRIDE), without_nvdec(whole))}
    if device.type == "cuda":
        why = missing(recording, graph)
        ways["NVDEC"] = (why or (lambda: decoded_in_graph(recording, graph)), why or whole)
    peers = {ALONE: alone}
    for way, calls in ways.items():
        peers |= {f"{name}, {way}": call for name, call in zip((DECODING, WHOLE), calls, strict=True)}
    timings = race(peers, warmup=1)
    for way in ways:
        found = {name: timings[f"{name}, {way}"] for name in (DECODING, WHOLE)} | {ALONE: timings[ALONE]}
        slowest = np.nanmax([found[name].median for name in (ALONE, DECODING)])
        for name in (ALONE, DECODING, WHOLE):
            ms = found[name].median
            question.row(
                f"{seconds} s of 640x360" + (f", {way}" if device.type == "cuda" else ""), name, found[name],
                ratio=slowest / ms if name == WHOLE or ms == slowest else math.nan, over=ms / slowest - 1,
                clips=count, frames_per_s=1e3 * seconds * FPS / ms, x_real_time=1e3 * seconds / ms,
            )  # fmt: skip


def test_short_videos(video: Any, checkpoint: Any, device: torch.device, question: Any, tmp_path: Path) -> None:
    """1,000 videos of a second, which is shorter than a window, on the paper's networks where they take no hours.

    Parts of the engine's run and of the loop take turns: between its parts the engine is not asked for results, so its
    process finishes what it holds, which is not counted, and waits.
    """
    preset, total, part, warm = "paper" if device.type == "cuda" else "demo", 1000, 50, 4
    path, folder = video(1, 320, 240, 30), checkpoint(preset)
    links = [tmp_path / f"{number}.mp4" for number in range(total)]
    for link in links:
        os.link(path, link)
    settings = Settings(weights="")
    recipe, crew = Recipe(folder, settings, (device.type,)), Crew(1)
    alone = recipe(0)
    results = predict_collection(links, tmp_path / "out", recipe, settings, crew)
    engine, loop = [], []
    for first in range(0, total, part):
        marks = []
        for known in islice(results, part):
            assert known.row.status == DONE, known.row.error
            marks.append(time.perf_counter())
        held = 1 + crew.together  # done or begun before this part, and the one whose end starts the clock
        engine.append((marks[-1] - marks[held]) / (part - 1 - held))
        time.sleep(1)
        begin = time.perf_counter()
        for number in range(first, first + part):
            alone(Task(links[number], tmp_path / f"bare{number}"), lambda share: None)
        loop.append((time.perf_counter() - begin) / part)
    engine, loop = engine[warm:], loop[warm:]
    over = float(np.median(np.divide(engine, loop))) - 1
    shape = f"{total} videos of 1 s, {preset} networks"
    question.row(shape, BARE, Timing.of(loop, "wall clock"), ratio=1.0, over=0.0)
    question.row(shape, ENGINE, Timing.of(engine, "wall clock"), ratio=1 / (1 + over), over=over)


def row(number: int) -> Row:
    return Row(
        f"/videos/of a collection/{number}.mp4", str(number), 10**6, 10**18, "0123456789abcdef", DONE,
        outputs=(f"{number}.parquet",), rows=300, duration=10.0, seconds=3.0,
    )  # fmt: skip


@pytest.fixture
def ledgers(tmp_path: Path) -> Iterator[dict[int, Ledger]]:
    """Open ledgers by the number of rows in them."""
    opened = {}
    for size in (0, 100_000):
        opened[size] = Ledger(tmp_path / str(size))
        opened[size].rows = {each.path: each for each in map(row, range(size))}
    yield opened
    for ledger in opened.values():
        ledger.__exit__(None)


def test_ledger(ledgers: dict[int, Ledger], race: Any, question: Any, tmp_path: Path) -> None:
    """A video's row costs the same however many there are; beginning and ending a run grow with the rows."""
    names = {0: EMPTY, 100_000: FULL}
    timings = race({names[size]: lambda ledger=ledger: ledger.add(row(-1)) for size, ledger in ledgers.items()})
    least = timings[EMPTY].median
    for name, timing in timings.items():
        over = timing.median / least - 1
        question.row("a row of the ledger", name, timing, ratio=least / timing.median, over=over)
    folder = tmp_path / "whole"
    spans = []
    for _ in range(3):
        begin = time.perf_counter()
        with Ledger(folder) as ledger:
            opened = time.perf_counter()
            ledger.rows = ledgers[100_000].rows
            closing = time.perf_counter()
        spans.append((opened - begin, time.perf_counter() - closing))
    question.row("ledger", "opening one of 100,000 rows", Timing.of([each for each, _ in spans[1:]], "wall clock"))
    question.row("ledger", "closing one of 100,000 rows", Timing.of([each for _, each in spans], "wall clock"))


def peak_memory(pid: int) -> float:
    """MiB that a process held at most."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 2**10


def test_memory(video: Any, checkpoint: Any, question: Any, tmp_path: Path) -> None:
    """The peak of a worker, from its start to its only video's file, for two minutes and for two hours."""
    settings, peaks = Settings(weights="", stride=32, precision="fp32"), {}
    recipe = Recipe(checkpoint("demo"), settings, ("cpu",), compile=False)
    for name, minutes in (("2 minutes", 2), ("2 hours", 120)):
        path = video(60 * minutes, 64, 48, 15)
        for known in predict_collection([path], tmp_path / name, recipe, settings, Crew(1)):
            [worker] = multiprocessing.active_children()
            peaks[name] = peak_memory(worker.pid)
            assert known.row.rows == 60 * minutes * 15
        over = peaks[name] / peaks["2 minutes"] - 1
        question.row("peak memory of a worker", name, peak_mib=peaks[name], over=over, rows=60 * minutes * 15)
    assert peaks["2 hours"] < 1.1 * peaks["2 minutes"]
