"""From a file to a trace on a GPU, against the same on a CPU; collections over several GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jmt_fast.data.synthetic import synthesise
from jmt_fast.inference import Predictor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: predicts on it")
APART = 0.02  # valence and arousal, of the two fronts


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    [recording, _] = synthesise(tmp_path_factory.mktemp("talk"), 2, 20.0, size=96, workers=1)
    return recording.video


@pytest.fixture(scope="module")
def expected(talk: Path, small_checkpoint: Path) -> np.ndarray:
    values = Predictor.from_pretrained(small_checkpoint, "cpu", "fp32").predict(talk, 4).values
    assert values.std(0).max() > 0.05  # else the comparison says nothing
    return values


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_trace_is_that_of_a_cpu(
    talk: Path, small_checkpoint: Path, expected: np.ndarray, precision: str, compile: bool
) -> None:
    """Twice: the second time every CUDA graph is a replay."""
    predictor = Predictor.from_pretrained(small_checkpoint, "cuda", precision, compile)
    for _ in range(2):
        assert np.abs(predictor.predict(talk, 4).values - expected).max() <= APART


def test_faces_are_the_same(talk: Path, small_checkpoint: Path) -> None:
    found = [
        Predictor.from_pretrained(small_checkpoint, device, "fp32", region="face").predict(talk)
        for device in ("cpu", "cuda")
    ]
    assert (found[0].valid == found[1].valid).mean() > 0.95
    assert np.abs(found[0].values - found[1].values).max() <= APART


def test_nvdec_gives_the_same_trace(talk: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jmt_fast.data.graph import can_decode
    from jmt_fast.features import frames
    from jmt_fast.media import probe
    from jmt_fast.media.route import Route

    possible, reason = can_decode(probe(talk), "cuda")
    if not possible:
        pytest.skip(f"needs NVDEC: {reason}")
    predictor = Predictor.from_pretrained(small_checkpoint, "cuda", "fp32")
    decoded = predictor.predict(talk, 4).values
    monkeypatch.setattr(frames, "can_decode", lambda info, device: Route(False, "for comparison"))
    assert np.abs(predictor.predict(talk, 4).values - decoded).max() <= APART


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_second_gpu_computes_what_the_first_does(talk: Path, small_checkpoint: Path) -> None:
    """The current device stays the first one: in threads it always is."""
    first, second = (
        [Predictor.from_pretrained(small_checkpoint, device).predict(talk, 4).values for _ in range(2)][-1]
        for device in ("cuda:0", "cuda:1")
    )
    assert np.abs(first - second).max() <= 1e-3
