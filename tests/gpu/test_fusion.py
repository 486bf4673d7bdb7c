"""The fusion on a CUDA device: verified there, and its prepared copy at every size of batch."""

from __future__ import annotations

import pytest
import torch

from jmt_fast.config import JMTConfig
from jmt_fast.models import JMT, ReferenceJMT, prepare_fusion
from jmt_fast.runtime import Runtime
from jmt_fast.verify import verify

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: runs the fusion on it")


def test_verified():
    rows = verify(Runtime.choose("cuda"))
    assert [row for row in rows if not row.ok] == []


@pytest.mark.parametrize("compile", [False, True])
def test_prepared_copy_takes_any_batch(compile):
    model = ReferenceJMT(JMTConfig()).eval().cuda()
    prepared = prepare_fusion(model, Runtime.choose("cuda", "fp32", compile), batch=8)
    kept = []
    for batch in (1, 2, 5, 8, 19):
        audio, visual = torch.randn(2, batch, 8, 512)
        valid = torch.rand(batch, 8) < 0.7
        with torch.no_grad():
            kept.append((prepared(audio, visual, valid), model(audio.cuda(), visual.cuda(), valid.cuda())))
    for output, expected in kept:  # at the end: a later graph must not have written over an earlier result
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_compiled_training_step():
    model, reference = JMT(JMTConfig()).cuda(), ReferenceJMT(JMTConfig()).cuda()
    reference.load_state_dict(model.state_dict())
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    audio, visual = torch.randn(2, 16, 8, 512, device="cuda")
    valid = torch.rand(16, 8, device="cuda") < 0.8
    for network in (compiled, reference):
        network(audio, visual, valid).square().sum().backward()
    gradients = model.named_gradients()
    for name, expected in reference.named_gradients().items():
        error = (gradients[name] - expected).norm() / expected.norm().clamp(min=1e-20)
        assert error < 1e-3, name
