"""`verify` passes on the real model, and fails on one that is slightly wrong."""

from __future__ import annotations

import pytest
import torch

from jmt_fast import verify as module
from jmt_fast.models import JMT
from jmt_fast.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), "bf16", False)


class Perturbed(JMT):
    """One weight of thousands is off by a thousandth of its matrix's size."""

    def load_state_dict(self, state_dict, *args, **kwargs):
        result = super().load_state_dict(state_dict, *args, **kwargs)
        with torch.no_grad():
            self.cross.in_proj_weight[1, 0, 0] += 1e-2
        return result


class WrongGradient(JMT):
    """Right outputs, a gradient of one weight 1 % too small."""

    def __init__(self, config):
        super().__init__(config)
        self.joint.weight.register_hook(lambda gradient: 0.99 * gradient)


@pytest.fixture(autouse=True)
def few_cases(monkeypatch):
    monkeypatch.setattr(module, "CASES", {name: module.CASES[name] for name in ("jmt", "abaw6, masked")})
    monkeypatch.setattr(module, "STEPS", 5)
    monkeypatch.setattr(module, "DRAWS", 3)


def test_the_model_passes_and_progress_is_reported():
    seen = []
    rows = module.verify(RUNTIME, progress=lambda done, total, note: seen.append((done, total)))
    assert [row for row in rows if not row.ok] == []
    assert {row.precision for row in rows} == {"fp32", "bf16"}
    assert {row.what.split(",")[0] for row in rows} >= {"output", "loss", "gradients", "weights after 5 steps"}
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)


def test_a_perturbed_weight_fails():
    failed = {row.what.split(",")[0] for row in module.verify(RUNTIME, model=Perturbed) if not row.ok}
    assert {"output", "gradients"} <= failed


def test_a_wrong_gradient_is_named():
    failed = [row for row in module.verify(RUNTIME, model=WrongGradient) if not row.ok]
    assert failed
    assert all("joint.weight" in row.what for row in failed if row.what.startswith("gradients"))


def test_nan_is_not_ok():
    assert not module.Row("case", "output", "fp32", float("nan"), 1.0).ok
