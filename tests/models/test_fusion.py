"""The fast model and its prepared copy against the reference: same parameters, same numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from jmt_fast.config import JMTConfig
from jmt_fast.models import JMT, ReferenceJMT, prepare_fusion
from jmt_fast.models.folded import FoldedFusion
from jmt_fast.runtime import Runtime

CPU = torch.device("cpu")


@pytest.fixture
def both(config, shaken):
    reference = shaken(ReferenceJMT(config))
    model = JMT(config)
    model.load_state_dict(reference.state_dict())
    return reference, model


@pytest.mark.parametrize("masked", [False, True])
def test_outputs_and_every_gradient(both, draw, masked):
    reference, model = (network.double() for network in both)
    audio, visual, valid = draw(model.config)
    audio, visual = audio.double(), visual.double()
    weight = torch.randn(*valid.shape, 2).double()
    found = {}
    for name, network in (("reference", reference), ("model", model)):
        a, v = audio.clone().requires_grad_(), visual.clone().requires_grad_()
        output = network(a, v, valid if masked else None)
        (output * weight).sum().backward()
        found[name] = {"output": output, "embed": network.embed(a, v, valid if masked else None)}
        found[name] |= {name: parameter.grad for name, parameter in network.named_parameters()}
        found[name] |= {"audio": a.grad, "visual": v.grad}
    for name, expected in found["reference"].items():
        actual = found["model"][name]
        if expected is None:  # an input that a baseline does not read
            assert actual is None, name
        else:
            torch.testing.assert_close(actual, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_state_dicts_are_interchangeable(both):
    reference, model = both
    assert list(reference.state_dict()) == list(model.state_dict())
    other = ReferenceJMT(model.config)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), reference.parameters(), strict=True))


def test_padding_changes_nothing(both, draw):
    _, model = both
    audio, visual, valid = draw(model.config)
    output = model(audio, visual, valid)
    assert (output[~valid] == 0).all()
    audio[~valid], visual[~valid] = float("nan"), float("inf")
    assert torch.equal(model(audio, visual, valid), output)
    model(audio, visual, valid).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_autocast(both, draw):
    """In bfloat16 within a few roundings of its inputs, and float32 at the end."""
    reference, model = both
    audio, visual, valid = draw(model.config)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(audio, visual, valid)
    assert output.dtype == torch.float32
    exact = reference(audio, visual, valid)
    assert (output - exact).abs().max() < 0.05 * exact.abs().max() + 0.01


@pytest.mark.parametrize("name", ["jmt", "jmt, self_attention", "abaw6"])
def test_traced_in_one_graph(name, variants, draw):
    model = JMT(variants[name])
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    audio, visual, valid = draw(model.config)
    torch.testing.assert_close(compiled(audio, visual, valid), model(audio, visual, valid))


def test_backward_is_traced_too(draw):
    model = JMT(JMTConfig(dim=16, ff_dim=16, visual_dim=16))
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    audio, visual, valid = draw(model.config)
    model(audio, visual, valid).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    compiled(audio, visual, valid).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_compiled_by_inductor(draw):
    model = JMT(JMTConfig(dim=16, ff_dim=16, visual_dim=16))
    audio, visual, valid = draw(model.config)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(audio, visual, valid), model(audio, visual, valid))


def test_head_dropout_acts_in_training_only(draw):
    model = JMT(JMTConfig(dim=16, ff_dim=16, visual_dim=16, head_dropout=0.5))
    audio, visual, valid = draw(model.config)
    assert not torch.equal(model(audio, visual, valid), model(audio, visual, valid))
    model.eval()
    assert torch.equal(model(audio, visual, valid), model(audio, visual, valid))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.no_grad()
def test_prepared_copy(config, draw, shaken, precision):
    """Its error against float64 is at most a small multiple of plain PyTorch's in the same precision."""
    reference = shaken(ReferenceJMT(config)).eval()
    prepared = prepare_fusion(reference, Runtime(CPU, precision, False))
    for batch, length in ((3, 7), (1, 1), (8, 13)):
        audio, visual, valid = draw(config, batch, length)
        exact = copy.deepcopy(reference).double()(audio.double(), visual.double(), valid)
        unit = torch.finfo(torch.bfloat16 if precision == "bf16" else torch.float32).eps
        output = prepared(audio, visual, valid)
        assert output.dtype == torch.float32
        assert (output[~valid] == 0).all()
        # The largest output is what rounding of the widest sum is relative to.
        assert (output - exact).abs().max() <= 16 * unit * max(1.0, float(exact.abs().max()))
        if valid.any():
            full = reference(audio, visual)
            assert (prepared(audio, visual) - full).abs().max() <= 16 * unit * max(1.0, float(full.abs().max()))


def test_folding_is_exact(config, draw, shaken):
    if config.heads > 1 or config.fusion in ("audio", "visual", "concat"):
        pytest.skip("nothing to fold")
    reference = shaken(ReferenceJMT(config)).double()
    audio, visual, valid = draw(config)
    exact = reference(audio.double(), visual.double(), valid)
    folded = FoldedFusion(reference, torch.float32)(audio, visual, valid)
    plain = reference.float()(audio, visual, valid)
    assert (folded - exact).abs().max() <= 4 * (plain - exact).abs().max() + 1e-7


def test_prepared_copy_is_independent_and_leaves_the_model_alone(config, draw):
    model = JMT(config).train()
    before = copy.deepcopy(model.state_dict())
    prepared = prepare_fusion(model, Runtime(CPU, "bf16", False))
    audio, visual, valid = draw(config)
    first = prepared(audio, visual, valid)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(prepared(audio, visual, valid), first)
    assert not first.requires_grad


def test_prepared_copy_names_wrong_shapes(draw):
    config = JMTConfig(dim=16, visual_dim=16)
    prepared = prepare_fusion(JMT(config), Runtime(CPU, "fp32", False))
    audio, visual, valid = draw(config)
    with pytest.raises(ValueError, match=r"^visual "):
        prepared(audio, visual[..., 1:], valid)
