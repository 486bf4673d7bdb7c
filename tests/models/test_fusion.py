"""The fast model and its prepared copy against the reference: same parameters, same numbers."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from jmt_fast.config import JMTConfig
from jmt_fast.models import JMT, ReferenceJMT, prepare_fusion
from jmt_fast.models.folded import FoldedFusion
from jmt_fast.runtime import Runtime
from jmt_fast.verify import KINK, NearestToZero

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_compiler():
    """All models share one `forward`: without this the tests together would exceed the limit of recompilations."""
    torch._dynamo.reset()


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
        found[name] |= network.named_gradients()
        found[name] |= {"audio": a.grad, "visual": v.grad}
    for name, expected in found["reference"].items():
        actual = found["model"][name]
        if expected is None:  # an input that a baseline does not read
            assert actual is None, name
        else:
            torch.testing.assert_close(actual, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_state_dicts_are_interchangeable(both):
    reference, model = both
    assert list(reference.state_dict()) == list(model.state_dict()) == list(model.named_gradients())
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


@pytest.mark.parametrize("length", [129, 140])
@pytest.mark.parametrize("name", ["jmt", "jmt, 4 heads, wider visual", "softmax, key"])
def test_longer_than_one_tile(name, length, variants, draw, shaken):
    """The other path, on both sides of the limit."""
    reference = shaken(ReferenceJMT(variants[name])).double()
    model = JMT(variants[name]).double()
    model.load_state_dict(reference.state_dict())
    audio, visual, valid = draw(model.config, 2, length)
    for network in (reference, model):
        network(audio.double(), visual.double(), valid).sum().backward()
    for cut in (length, 128):
        batch = (audio.double()[:, :cut], visual.double()[:, :cut], valid[:, :cut])
        torch.testing.assert_close(model(*batch), reference(*batch))
    gradients = model.named_gradients()
    for name, expected in reference.named_gradients().items():
        torch.testing.assert_close(gradients[name], expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("batch", "length"), [(0, 8), (3, 0), (1, 1)])
def test_empty_and_tiny_batches(both, batch, length):
    reference, model = both
    config = model.config
    inputs = torch.randn(batch, length, config.dim), torch.randn(batch, length, config.visual_dim)
    torch.testing.assert_close(model(*inputs), reference(*inputs), rtol=1e-4, atol=1e-5)
    model(*inputs).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["jmt", "jmt, self_attention", "abaw6", "jmt, 4 heads, wider visual", "concat"])
@pytest.mark.parametrize("low", [False, True])
def test_forward_and_backward_are_traced_in_one_graph(name, low, variants, draw):
    model = JMT(variants[name])
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    batch = draw(model.config)
    found = []
    for network in (model, compiled):
        model.zero_grad()  # sets gradients to None, so that those kept stay
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            output = network(*batch)
        output.sum().backward()
        found.append({"output": output, **model.named_gradients()})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["jmt", "abaw6, self_attention"])
def test_exported(name, variants, draw):
    model = JMT(variants[name]).eval()
    batch = draw(model.config)
    exported = torch.export.export(model, batch)
    torch.testing.assert_close(exported.module()(*batch), model(*batch))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_compiled_by_inductor(mode, draw):
    """Forward and backward; `max-autotune` breaks nothing."""
    model = JMT(JMTConfig(dim=16, ff_dim=16, visual_dim=16))
    nearest = NearestToZero()
    nearest.distance = 0
    while nearest.distance <= KINK:  # of a ReLU: rounding could take an input to the other side
        batch, nearest = draw(model.config), NearestToZero()
        with torch.no_grad(), nearest:
            model(*batch)
    found = []
    for network in (model, torch.compile(model, fullgraph=True, dynamic=False, mode=mode)):
        model.zero_grad()
        output = network(*batch)
        output.sum().backward()
        found.append({"output": output, **model.named_gradients()})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_package_loads_in_a_fresh_process(draw, tmp_path):
    """An AOTInductor package needs no code of ours."""
    model = JMT(JMTConfig(dim=16, ff_dim=16, visual_dim=16)).eval()
    batch = draw(model.config)
    with torch.no_grad():
        exported = torch.export.export(model, batch)
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "jmt.pt2"))
        torch.save((batch, model(*batch)), tmp_path / "data.pt")
    code = """
import sys, torch
batch, expected = torch.load(sys.argv[2])
torch.testing.assert_close(torch._inductor.aoti_load_package(sys.argv[1])(*batch), expected)
assert not any(name.startswith("jmt_fast") for name in sys.modules)
"""
    arguments = [sys.executable, "-c", code, package, str(tmp_path / "data.pt")]
    shown = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert shown.returncode == 0, shown.stderr


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
    if config.fusion in ("audio", "visual", "concat"):
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
