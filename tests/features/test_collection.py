"""A store filled from a collection: what fails is listed, what is damaged or has changed is made anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jmt_fast.config import FeatureConfig
from jmt_fast.data import Recording
from jmt_fast.errors import MediaError
from jmt_fast.features import Extractor, FeatureStore, StoreKey, check_store, extract_all
from jmt_fast.models import load_backbones
from jmt_fast.runtime import Runtime

Run = Callable[[list[Recording]], dict[str, MediaError]]


@pytest.fixture
def store(small_features: FeatureConfig, tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", StoreKey(features=small_features, weights="0", stride=8, precision="fp32"))


@pytest.fixture
def run(small_features: FeatureConfig, store: FeatureStore) -> Run:
    def extractor() -> Extractor:
        runtime = Runtime.choose("cpu", "fp32", compile=False)
        return Extractor(small_features, load_backbones(small_features, "random", 0), runtime)

    return lambda recordings: extract_all(extractor, store, recordings)


@pytest.fixture
def recordings(film: Callable[..., Path], tmp_path: Path) -> list[Recording]:
    videos = [shutil.copy(film(), tmp_path / f"{name}.mp4") for name in "abc"]
    return [Recording(Path(video).stem, Path(video)) for video in videos]


def test_what_vanishes_or_breaks_is_listed_and_the_rest_is_done(
    run: Run, store: FeatureStore, recordings: list[Recording]
) -> None:
    recordings[0].video.unlink()
    recordings[1].video.write_text("no video")
    failed = run(recordings)
    assert store.names() == ["c"] and list(failed) == ["a", "b"]
    assert "moved or deleted" in str(failed["a"]) and "not a video" in str(failed["b"])
    recordings[2].video.unlink()  # its features are there, its frames are not
    assert list(run(recordings)) == ["a", "b", "c"]


def test_damaged_features_are_made_anew(run: Run, store: FeatureStore, recordings: list[Recording]) -> None:
    assert run(recordings) == {}
    before = store.read("b").visual.clone()
    path = store.folder / "b.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    assert list(check_store(store.folder.parent)[1]) == [str(path)]
    assert run(recordings) == {}
    assert torch.equal(store.read("b").visual, before)
    assert check_store(store.folder.parent) == (4, {})


def test_a_file_that_changes_while_it_is_read_counts_as_changed(
    run: Run, store: FeatureStore, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    extract = Extractor.extract

    def growing(self: Extractor, opened: object, *rest: object) -> object:
        result = extract(self, opened, *rest)  # type: ignore[arg-type]
        with recordings[0].video.open("ab") as file:
            file.write(b"more")
        return result

    monkeypatch.setattr(Extractor, "extract", growing)
    assert run(recordings[:1]) == {}
    assert not store.has(recordings[0])
