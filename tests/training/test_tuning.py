"""The grid."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jmt_fast.config import FusionTraining
from jmt_fast.errors import DataError, JMTError
from jmt_fast.models import JMT, AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training import Grid, LabelledVideo, evaluate, search
from jmt_fast.training.checkpoints import weights_digest

BASE = FusionTraining(epochs=1, stride=8, seed=3)


def test_every_point_starts_from_one_model_and_the_best_is_returned(
    make_model: Callable[..., JMT], audio_backbone: AudioBackbone, train: list[LabelledVideo],
    validation: list[LabelledVideo], runtime: Runtime,
) -> None:  # fmt: skip
    starts, seen = [], []

    def make() -> JMT:
        model = JMT(make_model().config)
        starts.append(weights_digest(model))
        return model

    grid = Grid(lr=(1e-4, 5e-3), momentum=(0.0, 0.9), batch=(4,))
    result = search(make, audio_backbone, train, validation, BASE, runtime, grid, lambda *at: seen.append(at[:2]))
    assert len(set(starts)) == 1 and len(starts) == 4
    points = [(trial.config.lr, trial.config.momentum, trial.config.batch) for trial in result.trials]
    assert points == [(1e-4, 0.0, 4), (1e-4, 0.9, 4), (5e-3, 0.0, 4), (5e-3, 0.9, 4)]
    assert all(trial.config.seed == 3 for trial in result.trials)
    assert result.best.mean == max(trial.mean for trial in result.trials)
    assert result.config == result.best.config
    reached = evaluate(result.model, audio_backbone, validation)
    assert reached.mean == pytest.approx(result.best.mean, abs=1e-6)
    assert seen == sorted(seen) and seen[-1] == (4000, 4000)


def test_a_trial_that_diverges_is_noted(
    make_model: Callable[..., JMT], audio_backbone: AudioBackbone, train: list[LabelledVideo],
    validation: list[LabelledVideo], runtime: Runtime,
) -> None:  # fmt: skip
    grid = Grid(lr=(1e30, 1e-3), momentum=(0.0,))
    result = search(make_model, audio_backbone, train, validation, BASE, runtime, grid)
    failed, good = result.trials
    assert failed.result is None and failed.failed is not None and "not finite" in failed.failed
    assert result.best is good
    with pytest.raises(JMTError, match="all 1 trials failed"):
        search(make_model, audio_backbone, train, validation, BASE, runtime, Grid(lr=(1e30,), momentum=(0.0,)))
    with pytest.raises(DataError, match="validation split"):
        search(make_model, audio_backbone, train, [], BASE, runtime, grid)
