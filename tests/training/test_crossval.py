"""Cross-validation that is interrupted, and taken up by other backbones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jmt_fast.config import FeatureConfig, FusionTraining
from jmt_fast.errors import CheckpointError
from jmt_fast.models import JMT, load_backbones
from jmt_fast.runtime import Runtime
from jmt_fast.training import LabelledVideo
from jmt_fast.training.crossval import Partition, Row, cross_validate
from jmt_fast.training.experiment import Labelled

PARTS = [
    Partition("official", ("train0", "train1", "train2", "train3", "train4"), ("validation0", "validation1")),
    Partition("fold-1", ("train2", "train3", "train4", "validation0", "validation1"), ("train0", "train1")),
]


def test_what_was_begun_goes_on_from_its_last_epoch(
    make_model: Callable[..., JMT], small_features: FeatureConfig, train: list[LabelledVideo],
    validation: list[LabelledVideo], runtime: Runtime, tmp_path: Path,
) -> None:  # fmt: skip
    config = make_model().config.model_copy(update={"dim": 48})  # as wide as the GRU of `small_features`
    for video in (*train, *validation):
        object.__setattr__(video.features, "clips", torch.nn.functional.pad(video.features.clips, (0, 32)))
    training = FusionTraining(lr=5e-3, epochs=3, stride=8)
    backbones = load_backbones(small_features, "random", 0)
    labelled = Labelled({"train": train, "validation": validation}, {})
    seen: list[str] = []

    def run(folder: str, stop: str | None = None) -> list[Row]:
        def progress(done: int, total: int, note: str) -> None:
            seen.append(note)
            if note == stop:
                raise KeyboardInterrupt

        return cross_validate(
            tmp_path / folder, PARTS, labelled, config, training, backbones, small_features, runtime, progress=progress
        )

    expected = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("parts", stop="fold-1, epoch 2")
    assert not (tmp_path / "parts" / "table.json").exists()
    seen.clear()
    assert run("parts") == expected
    assert seen and all(note.startswith(("fold-1, epoch 2", "fold-1, epoch 3")) for note in seen)

    train[1].features.visual.mul_(0.5)  # as other backbones would have it
    with pytest.raises(CheckpointError, match=r"^official: .*made with other features in the train split"):
        run("parts")
