"""How near to a raw memory map does training read its features, and what does it cost to open a store of full size?

The store holds Aff-Wild2 at one clip per 4 frames: 560 videos of 1,250 clips, 700,000 in all, each 1,024 bf16 values,
1.4 GB. A turn reads the 128 sequences of 8 clips that come next in an epoch's random order. The raw map is one file of
the same clips, those of a video in the order of time, from which NumPy gathers the same ones in one call. All pages are
in the page cache, and mapped, before the first turn: the disk is not measured. Wanted: a ratio of 0.8.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.timing import Prepared
from jmt_fast.config import FeatureConfig
from jmt_fast.data import clip_times
from jmt_fast.features import FeatureStore, StoreKey, VideoFeatures
from jmt_fast.features.sequence import buffer_of, gather_many
from jmt_fast.training import LabelledVideo
from jmt_fast.training.batches import Drawn, SequenceSampler

VIDEOS, CLIPS, DIM, STRIDE = 560, 1250, 512, 4
LENGTH, SEQUENCES = 8, 128
TIMES = clip_times(np.arange(4 * CLIPS - 3) / 30, STRIDE)
RAW, OURS, WIDE = "raw memory map", "jmt-fast", ", to fp32"
BATCH = f"{OURS}, labels and masks too"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, Path]:
    """The store, and its rows in one file."""
    folder, random = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
    store = FeatureStore(folder, StoreKey(features=FeatureConfig(), weights="0", stride=STRIDE, precision="bf16"))
    with (folder / "raw").open("wb") as raw:
        for number in range(VIDEOS):
            clips = torch.from_numpy(random.standard_normal((CLIPS, 2 * DIM), np.float32)).bfloat16()
            frames = np.arange(4 * CLIPS - 3) / 30
            store.write(VideoFeatures(f"{number:03}", STRIDE, TIMES, clips, DIM, frames, np.ones(len(frames), bool)))
            raw.write(clips.view(torch.uint8).numpy().data)
    return store, folder / "raw"


def opened(store: FeatureStore) -> SequenceSampler:
    labels = np.zeros((4 * CLIPS - 3, 2), np.float32)
    videos = [LabelledVideo(store.read(name), labels) for name in store.names()]
    return SequenceSampler(videos, length=LENGTH, batch=SEQUENCES, seed=0)


def blocks(sampler: SequenceSampler) -> Iterator[Drawn]:
    for epoch in itertools.count(1):
        drawn = sampler.draw(epoch)
        for start in range(0, len(drawn.rows) - SEQUENCES, SEQUENCES):
            yield Drawn(*(part[start : start + SEQUENCES] for part in drawn))


def test_random_sequences(written: Any, race: Callable[..., Any], question: Any) -> None:
    store, path = written
    begin = time.perf_counter()
    sampler = opened(store)
    seconds = time.perf_counter() - begin
    raw = np.memmap(path, np.uint8, "r", shape=(VIDEOS * CLIPS, 4 * DIM))
    for each in (raw, *(video.features.clips.view(torch.uint8).numpy() for video in sampler.videos)):
        each.max()  # every page is touched
    turns = blocks(sampler)
    places = np.concatenate([n * CLIPS + np.argsort(video.features.rows) for n, video in enumerate(sampler.videos)])

    def numbers() -> np.ndarray:
        return places[sampler.rows_of_all(next(turns)).clip(0).ravel()]

    def gathered(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(raw[rows]).view(torch.bfloat16)

    drawn = next(turns)
    batch, rows = sampler.read(drawn), sampler.rows_of_all(drawn)
    found = torch.cat((batch.visual, batch.audio), -1)[batch.present]
    assert torch.equal(found, gathered(places[rows[rows >= 0]]))  # the peers read the same

    buffers = [buffer_of(features) for features in sampler.features]
    timings = race(
        {
            RAW: Prepared(numbers, gathered),
            f"{RAW}, np.take": Prepared(numbers, lambda rows: torch.from_numpy(raw.take(rows, 0)).view(torch.bfloat16)),
            OURS: Prepared(lambda: next(turns), lambda drawn: gather_many(buffers, *drawn, 2 * DIM, torch.bfloat16)),
            BATCH: Prepared(lambda: next(turns), sampler.read),
            f"{RAW}{WIDE}": Prepared(numbers, lambda rows: gathered(rows).float()),
            f"{BATCH}{WIDE}": Prepared(lambda: next(turns), lambda drawn: sampler.read(drawn).to(torch.device("cpu"))),
        }
    )
    for name, timing in timings.items():
        against = timings[f"{RAW}{WIDE}" if name.endswith(WIDE) else RAW]
        question.row(
            f"{SEQUENCES} random sequences of {LENGTH} clips, of {VIDEOS * CLIPS:,}", name, timing,
            ratio=against.median / timing.median, gb_per_s=SEQUENCES * LENGTH * 4 * DIM / timing.median / 1e6,
            opened_s=seconds if name.startswith(OURS) else float("nan"),
        )  # fmt: skip
