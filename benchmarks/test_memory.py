"""How much memory does `jmt-fast train` take on a CPU, on a small store and on one of full size?

The command runs as users start it, in a process of its own: the default model (15 million weights), the paper's
backbones, eight epochs of some 300 steps at batch 2, whole steps compiled. The large store holds Aff-Wild2 at one clip
per 4 frames, 1.4 GB. `own_mb` is the most anonymous memory (RssAnon) of the process, `anon_mb` with the compilers that
it starts where nothing is in their cache; pages of the store are the page cache's, which the system takes back when it
needs them. In the large store only the first frames of a video have labels, which bounds the steps, not what is held:
every clip has its label and its mask.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from jmt_fast.config import FeatureConfig
from jmt_fast.data import Recording, clip_times, load
from jmt_fast.features import FeatureStore, StoreKey, VideoFeatures
from jmt_fast.features.store import fingerprint
from jmt_fast.models import load_backbones
from jmt_fast.models.checkpoint import save_backbones_folder
from jmt_fast.runtime import Runtime

FRAMES, STRIDE = 4997, 4  # 1,250 clips a video
STORES = {"small": (40, FRAMES), "large": (560, 256)}  # videos, and the labelled frames of each
MOST = 1500  # MB
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="about a CPU")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones")
    save_backbones_folder(load_backbones(FeatureConfig(), "random"), FeatureConfig(), folder)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many black frames at 30 a second, without sound."""
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for _ in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))
    return path


def collection(folder: Path, videos: int, labelled: int, video: Path, backbones: Path) -> Path:
    """A manifest of links to the video, with labels; the store holds random features of each."""
    labels = np.full((FRAMES, 2), -5.0)
    labels[:labelled] = np.sin(np.arange(labelled)[:, None] / (40, 60))
    annotation = folder / "labels.txt"
    np.savetxt(annotation, labels, "%.3f", ",", header="valence,arousal", comments="")
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("video", "annotation", "split"))
        for number in range(videos):
            os.link(video, folder / f"{number:03}.mp4")
            rows.writerow((f"{number:03}.mp4", "labels.txt", "train" if number % (videos // 4) else "validation"))
    precision = Runtime.choose("cpu").precision
    key = StoreKey.of(FeatureConfig(), load_backbones(FeatureConfig(), backbones), STRIDE, precision)
    store, random = FeatureStore(folder / "features", key), np.random.default_rng(0)
    stamps = np.arange(FRAMES) / 30
    for recording in load(folder / "manifest.csv"):
        write(store, recording, stamps, random)
    return folder / "manifest.csv"


def write(store: FeatureStore, recording: Recording, stamps: np.ndarray, random: np.random.Generator) -> None:
    times = clip_times(stamps, STRIDE)
    clips = torch.from_numpy(random.standard_normal((len(times), 1024), np.float32)).to(
        torch.bfloat16 if store.key.precision == "bf16" else torch.float32
    )
    features = VideoFeatures(recording.name, STRIDE, times, clips, 512, stamps, np.ones(FRAMES, bool))
    store.write(features, fingerprint(recording))


def anonymous(process: int) -> tuple[int, int]:
    """Bytes of RssAnon now: of the process, and of it and all that it started."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        own = 1024 * int(status.partition("RssAnon:")[2].split()[0])
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):  # it has just ended
        return 0, 0
    return own, own + sum(anonymous(int(child))[1] for child in children)


@pytest.mark.parametrize("batch", [2, 64])
@pytest.mark.parametrize("size", STORES)
def test_train_fusion(size: str, batch: int, video: Path, backbones: Path, question: Any, tmp_path: Path) -> None:
    videos, labelled = STORES[size]
    manifest = collection(tmp_path, videos, labelled, video, backbones)
    command = [
        sys.executable, "-m", "jmt_fast", "train", "--data", manifest, "--backbones", backbones,
        "--out", tmp_path / "run", "--store", tmp_path / "features", "--epochs", 8, "--batch", batch, "--device", "cpu",
    ]  # fmt: skip
    begin, own, together = time.perf_counter(), 0, 0
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        while process.poll() is None:
            now = anonymous(process.pid)
            own, together = max(own, now[0]), max(together, now[1])
            time.sleep(0.05)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    clips = videos * len(clip_times(np.arange(FRAMES) / 30, STRIDE))
    question.row(
        f"train fusion, batch {batch}", f"{size} store, {clips:,} clips", anon_mb=together / 1e6, own_mb=own / 1e6,
        store_mb=sum(path.stat().st_size for path in (tmp_path / "features").rglob("*")) / 1e6,
        seconds=time.perf_counter() - begin,
    )  # fmt: skip
    assert own / 1e6 < MOST, f"{size} store: {own / 1e6:.0f} MB"
