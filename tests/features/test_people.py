"""`--crop face` on a collection: each recording's features are those of the person whom the manifest means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from jmt_fast.cli import app
from jmt_fast.cli import train as train  # registers the command
from jmt_fast.config import FeatureConfig
from jmt_fast.data import Recording
from jmt_fast.faces import DETECTORS, Faces
from jmt_fast.features import Extractor, FeatureStore, StoreKey, extract_all
from jmt_fast.models import load_backbones
from jmt_fast.runtime import Runtime

TEMPLATE = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]], np.float32) / 112


def two_faces(pictures: Sequence[np.ndarray]) -> list[Faces]:
    """A large one on the left and a small one on the right of every picture."""
    squares = np.array([[10, 10, 70], [110, 30, 40]], np.float32)
    points = squares[:, None, :2] + TEMPLATE * squares[:, None, 2:]
    boxes = np.concatenate([squares[:, :2], squares[:, :2] + squares[:, 2:]], 1)
    return [Faces(boxes, np.ones(2, np.float32), points) for _ in pictures]


@pytest.fixture
def extract(
    small_features: FeatureConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Path, list[str]], tuple[dict[str, torch.Tensor], dict[str, str]]]:
    monkeypatch.setitem(DETECTORS, "centerface", lambda device: two_faces)
    config = small_features.model_copy(update={"region": "face"})
    runtime = Runtime.choose("cpu", "fp32", compile=False)
    backbones = load_backbones(config, "random", 0)

    def run(video: Path, people: list[str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        store = FeatureStore(tmp_path / "store", StoreKey.of(config, backbones, 8, "fp32"))
        recordings = [Recording(f"{video.stem}_{person}", video, person=person) for person in people]
        failed = extract_all(lambda: Extractor(config, backbones, runtime), store, recordings)
        visual = {name.rpartition("_")[2]: store.read(name).visual for name in store.names()}
        return visual, {name.rpartition("_")[2]: str(error) for name, error in failed.items()}

    return run


def test_each_person_has_features_of_its_own(
    extract: Callable[..., tuple[dict, dict]], film: Callable[..., Path], kit: SimpleNamespace
) -> None:
    visual, failed = extract(film(times=kit.steps(60), size=(160, 96)), ["0", "1", "left", "right", "7"])
    assert not torch.equal(visual["0"], visual["1"])
    assert torch.equal(visual["left"], visual["0"]) and torch.equal(visual["right"], visual["1"])
    assert list(failed) == ["7"] and "no person '7', its people are 0, 1; correct the manifest" in failed["7"]


def test_the_crop_is_chosen_on_the_command_line(film: Callable[..., Path], tmp_path: Path) -> None:
    manifest, run = tmp_path / "manifest.csv", CliRunner().invoke
    manifest.write_text(f"video,annotation,split\n{film()},,train\n")
    given = ["--data", str(manifest), "--backbones", "random", "--preset", "demo", "--device", "cpu"]
    regions = []
    for crop in ([], ["--crop", "none"]):
        assert run(app, ["features", "--store", str(tmp_path / f"store{len(crop)}"), *given, *crop]).exit_code == 0
        [key] = (tmp_path / f"store{len(crop)}").glob("*/key.json")
        regions.append(StoreKey.model_validate_json(key.read_text()).features.region)
    assert regions == ["center", "none"]


def test_the_papers_networks_look_at_faces_and_the_demos_at_what_is_there(
    extract: Callable[..., tuple[dict, dict]], film: Callable[..., Path], kit: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert [FeatureConfig.preset(name).region for name in ("paper", "demo")] == ["face", "center"]
    monkeypatch.setitem(DETECTORS, "centerface", lambda device: lambda pictures: [Faces.none() for _ in pictures])
    with pytest.warns(UserWarning, match=r"30 of 30 frames show no face .*; --crop center takes the picture's middle"):
        extract(film(times=kit.steps(30)), ["0"])
