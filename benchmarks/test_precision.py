"""Does training in bf16 end where training in fp32 ends? The demo's fusion, its features, one seed, one initialisation.

Every point of the demo's search is trained in both precisions; `validation` is the mean CCC of the selected epoch,
`off` its distance to fp32 (wanted: 0.01), `trace_max` (wanted: 0.02) and `trace_rms` those of the test videos' traces.
Training is a chain of steps that selects an epoch at its end, so small differences grow: the third row of a point is
fp32 again, from weights that differ by one part in a million, less than a rounding to bf16 (one in 256) by far. What
that one is off by is what this training does to any rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from jmt_fast import demo
from jmt_fast.config import FusionTraining, JMTConfig
from jmt_fast.data import load
from jmt_fast.models import JMT, Checkpoint
from jmt_fast.runtime import Runtime
from jmt_fast.training import Grid, evaluate, fit_fusion
from jmt_fast.training.experiment import Labelled, labelled_videos, open_store

CONFIG = demo.DemoConfig()
POINTS = Grid(CONFIG.lr, CONFIG.momentum, (CONFIG.fusion.batch,)).configs(CONFIG.fusion)


class Trained(NamedTuple):
    validation: float
    epoch: int
    test: float
    traces: dict[str, np.ndarray]


@contextmanager
def silent(title: str) -> Iterator[Callable[..., None]]:
    yield lambda *_: None


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labelled, Checkpoint]:
    """The demo's features and backbones, the GRU trained."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    runtime = Runtime.choose(compile=torch.cuda.is_available())  # as the command does
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "MODELS", ("jmt",))
        demo.run_demo(out, CONFIG, runtime, silent)
    checkpoint = Checkpoint.load(out / "checkpoint")
    store = open_store(out / "features", checkpoint.features, checkpoint.backbones, CONFIG.stride, runtime)
    recordings = load(out / "data" / "manifest.csv")
    return labelled_videos(recordings, store, checkpoint.backbones, runtime), checkpoint


def trained(
    collection: tuple[Labelled, Checkpoint], config: FusionTraining, precision: str, device: torch.device, nudge: float
) -> Trained:
    labelled, checkpoint = collection
    audio, runtime = checkpoint.backbones.audio, Runtime.choose(device.type, precision, compile=device.type == "cuda")
    torch.manual_seed(config.seed)
    model = JMT(JMTConfig())
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + nudge * torch.randn_like(weight))
    result = fit_fusion(model, audio, labelled.split("train"), labelled.split("validation"), config, runtime)
    tested = evaluate(model, audio, labelled.split("test"), runtime=runtime)
    return Trained(float(result.best_ccc.mean()), result.best_epoch, tested.mean, tested.traces)


def test_bf16_ends_where_fp32_ends(collection: Any, device: torch.device, question: Any) -> None:
    for config in POINTS:
        whole = trained(collection, config, "fp32", device, 0)
        peers = {
            "fp32": whole,
            "bf16": trained(collection, config, "bf16", device, 0),
            "fp32, weights nudged": trained(collection, config, "fp32", device, 1e-6),
        }
        for name, end in peers.items():
            apart = np.concatenate([end.traces[video] - trace for video, trace in whole.traces.items()])
            question.row(
                f"the demo, lr {config.lr:g}", name, validation=end.validation, epoch=end.epoch, test=end.test,
                off=abs(end.validation - whole.validation), trace_max=float(np.abs(apart).max()),
                trace_rms=float(np.sqrt((apart**2).mean())),
            )  # fmt: skip
    assert all(math.isfinite(row["trace_max"]) for row in question.rows)
