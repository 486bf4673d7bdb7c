"""What does the demo reach? Test CCC of every model over three seeds, on identities that training did not see.

Each seed is another collection and another initialisation. Every model has had the same search over the learning rate
on the validation split; `ridge` is closed-form regression on the same features. `varies_v`, `varies_a`: the
deviation of the predictions within sequences of 8.5 s over that of the labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from jmt_fast.demo import DemoConfig, run_demo
from jmt_fast.runtime import Runtime


@contextmanager
def silent(title: str) -> Iterator[Callable[..., None]]:
    yield lambda *_: None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores(seed: int, question: Any, tmp_path: Path) -> None:
    runtime = Runtime.choose(compile=torch.cuda.is_available())  # as the command does
    result = run_demo(tmp_path / "demo", DemoConfig(seed=seed), runtime, silent).as_dict()
    add_rows(question, seed, result)
    assert all(math.isfinite(row["mean"]) for row in question.rows)


def add_rows(question: Any, seed: int, result: dict[str, Any]) -> None:
    """One row a model from a demo's `summary.json`."""
    for name, score in result["scores"].items():
        valence, arousal = score["deviation_ratio"]
        question.row(
            f"seed {seed}", name, valence=score["valence"], arousal=score["arousal"], mean=score["mean"],
            varies_v=valence, varies_a=arousal, chosen=result["chosen"][name],
            demo_seconds=sum(result["seconds"].values()),
        )  # fmt: skip
