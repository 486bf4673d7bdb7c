"""The feature store: whole or not at all, and a key for everything that changes a feature."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jmt_fast.config import AudioConfig, FeatureConfig, FrameConfig, VisualConfig
from jmt_fast.data import Recording
from jmt_fast.errors import DataError
from jmt_fast.features import FeatureStore, StoreKey, VideoFeatures
from jmt_fast.features.store import fingerprint
from jmt_fast.models import load_backbones

SMALL = FeatureConfig(
    frames=FrameConfig(resize=32, crop=32),
    visual=VisualConfig(blocks=(1,), widths=(8,)),
    audio=AudioConfig(features=64, gru=16),
)


def key(**changes: object) -> StoreKey:
    return StoreKey(**{"features": SMALL, "weights": "0" * 16, "stride": 8, "precision": "fp32", **changes})


def video(name: str = "a", clips: int = 5, dtype: torch.dtype = torch.float32) -> VideoFeatures:
    random = np.random.default_rng(clips)
    return VideoFeatures(
        name,
        8,
        np.arange(clips) * 8 / 30,
        torch.randn(clips, 512 + 64).to(dtype),
        512,
        np.arange(clips * 8) / 30,
        random.random(clips * 8) > 0.2,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "with space/and slash", "ünïcode.mp4", "..", ".hidden"])
def test_what_is_written_is_read(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    store = FeatureStore(tmp_path, key())
    written = video(name, dtype=dtype)
    store.write(written)
    read = FeatureStore(tmp_path, key()).read(name)
    assert store.names() == [name]
    assert read.visual.dtype == dtype
    assert torch.equal(read.clips[torch.from_numpy(read.rows)], written.clips) and read.visual_dim == 512
    for field in ("times", "timestamps", "face"):
        assert np.array_equal(getattr(read, field), getattr(written, field))
    assert read.times.dtype == np.float64


def test_every_cause_of_another_feature_has_another_key(tmp_path: Path) -> None:
    other = [
        key(weights="1" * 16),
        key(stride=4),
        key(precision="bf16"),
        key(features=SMALL.model_copy(update={"frames": FrameConfig(resize=40, crop=32)})),
        key(features=SMALL.model_copy(update={"frames": FrameConfig(resize=32, crop=32, std=(0.2, 0.2, 0.2))})),
        key(features=SMALL.model_copy(update={"sound": SMALL.sound.model_copy(update={"mean_db": 0.0})})),
        key(features=SMALL.model_copy(update={"region": "none"})),
        key(detector="another"),
        key(colour="bt709"),
    ]
    assert len({each.digest() for each in [key(), *other]}) == len(other) + 1
    FeatureStore(tmp_path, key()).write(video())
    assert all("a" not in FeatureStore(tmp_path, each) for each in other)


def test_the_key_follows_the_cnn_weights_and_not_the_gru() -> None:
    backbones = load_backbones(SMALL, "random", seed=1)
    first = StoreKey.of(SMALL, backbones, 8, "fp32")
    with torch.no_grad():
        backbones.audio.gru.weight_ih_l0.add_(1)
    assert StoreKey.of(SMALL, backbones, 8, "fp32") == first
    with torch.no_grad():
        backbones.audio.conv1.weight.add_(1)
    assert StoreKey.of(SMALL, backbones, 8, "fp32") != first


def test_the_key_says_who_finds_faces_where_faces_are_looked_for() -> None:
    backbones = load_backbones(SMALL, "random", seed=1)
    assert StoreKey.of(SMALL, backbones, 8, "fp32").detector is None
    with_faces = StoreKey.of(SMALL.model_copy(update={"region": "face"}), backbones, 8, "fp32")
    assert with_faces.detector is not None and "centerface" in with_faces.detector
    other = StoreKey.of(SMALL.model_copy(update={"region": "face", "detector": "yunet"}), backbones, 8, "fp32")
    assert other.detector is not None and "yunet" in other.detector and other != with_faces


def test_a_changed_source_is_extracted_again(tmp_path: Path) -> None:
    source, sound, crops = tmp_path / "a.mp4", tmp_path / "a.wav", tmp_path / "crops"
    source.write_bytes(b"one")
    sound.write_bytes(b"")
    crops.mkdir()
    recording = Recording("a", source, fps=25.0)
    store = FeatureStore(tmp_path / "store", key())
    assert not store.has(recording)
    store.write(video("a"), fingerprint(recording))
    assert store.has(recording)
    for change in ({"sound": sound}, {"crops": crops}, {"fps": 30.0}, {"person": "1"}):
        assert not store.has(replace(recording, **change))
    source.write_bytes(b"other")
    assert not store.has(recording)


def test_reading_maps_the_file(tmp_path: Path) -> None:
    """Nothing is read until it is used: 600 videos of a collection need not fit into memory."""
    store = FeatureStore(tmp_path, key())
    clips = 20_000  # 46 MB
    store.write(video(clips=clips))
    before = resident()
    read = store.read("a")
    assert resident() - before < 16e6
    assert read.visual[-1].isfinite().all()
    assert float(read.visual.sum()) + float(read.audio.sum()) != 0  # now it is
    assert resident() - before > 40e6


def resident() -> int:
    """Bytes of memory of this process, file pages that it has touched included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, key())
    with pytest.raises(DataError, match="no features of b"):
        store.read("b")
    store.write(video("b"))
    [path] = store.folder.glob("b.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"b\.safetensors.*delete the file"):
        store.read("b")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(tmp_path, key())
    store.write(video("a"))
    before = sorted(path.name for path in store.folder.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"c\.safetensors.*No space left.*finished videos are kept"):
        store.write(video("c"))
    assert sorted(path.name for path in store.folder.iterdir()) == before
    assert len(store.read("a").times) == 5


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="another --store"):
        FeatureStore(tmp_path / "file", key())
