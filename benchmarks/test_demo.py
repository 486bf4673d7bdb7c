"""What does the demo reach? Test CCC of every model over three seeds, on identities that training did not see.

Each seed is another collection and another initialisation. Every model has had the same search over learning rate and
momentum on the validation split; `ridge` is closed-form regression on the same features. `varies_v`, `varies_a`: the
deviation of the predictions within sequences of 8.5 s over that of the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from jmt_fast.demo import DemoConfig, DemoResult, run_demo
from jmt_fast.runtime import Runtime

SEEDS = (0, 1, 2)
MODELS = ("jmt", "concat", "visual", "audio", "ridge")


@contextmanager
def silent(title: str) -> Iterator[Callable[..., None]]:
    yield lambda *_: None


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[DemoResult]:
    runtime = Runtime.choose(compile=torch.cuda.is_available())  # as the command does
    return [
        run_demo(tmp_path_factory.mktemp("demo") / str(seed), DemoConfig(seed=seed), runtime, silent) for seed in SEEDS
    ]


def columns(*scores: Any) -> dict[str, float]:
    """Means over seeds."""
    valence, arousal = np.mean([score.pooled for score in scores], 0)
    varies = np.mean([score.deviation_ratio for score in scores], 0)
    return {
        "valence": float(valence), "arousal": float(arousal), "mean": float((valence + arousal) / 2),
        "varies_v": float(varies[0]), "varies_a": float(varies[1]),
    }  # fmt: skip


def test_scores(results: list[DemoResult], question: Any) -> None:
    for seed, result in zip(SEEDS, results, strict=True):
        for name in MODELS:
            chosen = result.chosen[name]
            seconds = sum(result.seconds.values()) if name == "jmt" else float("nan")
            question.row(f"seed {seed}", name, **columns(result.scores[name]), chosen=chosen, demo_seconds=seconds)
    for name in MODELS:
        question.row("mean of 3 seeds", name, **columns(*(result.scores[name] for result in results)))
    assert torch.isfinite(torch.tensor([row["mean"] for row in question.rows])).all()
