"""Packed parameters: the stock layout in every state dict, one initialisation, gradients by stock name."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from jmt_fast.config import JMTConfig
from jmt_fast.models import JMT, ReferenceJMT
from jmt_fast.models.parameters import in_stock_layout

SMALL = JMTConfig(dim=16, ff_dim=8, visual_dim=24)


def equal(state, other):
    return list(state) == list(other) and all(torch.equal(state[name], other[name]) for name in state)


def test_one_seed_gives_the_references_initial_values(config):
    torch.manual_seed(5)
    reference = ReferenceJMT(config).state_dict()
    torch.manual_seed(5)
    assert equal(JMT(config).state_dict(), reference)


def test_packed_means_few_tensors():
    assert len(list(JMT(JMTConfig()).parameters())) == 24
    assert len(list(ReferenceJMT(JMTConfig()).parameters())) > 70


def test_state_dict_shows_the_parameters_themselves():
    model = JMT(SMALL)
    with torch.no_grad():
        model.state_dict()["cross.a_v.in_proj_weight"].fill_(7)
    assert (model.cross.in_proj_weight[model.cross_names.index("a_v")] == 7).all()
    assert model.state_dict(keep_vars=True)["encoders.av.0.norm1.weight"].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_dtype_is_loaded_and_saved(config, dtype):
    reference, model = ReferenceJMT(config).to(dtype), JMT(config)
    model.load_state_dict(reference.state_dict())
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert equal(model.to(dtype).state_dict(), reference.state_dict())


def test_missing_unknown_and_misshapen_weights_are_named():
    model = JMT(SMALL)
    before = copy.deepcopy(model.state_dict())
    state = ReferenceJMT(SMALL).state_dict()
    del state["joint.bias"], state["encoders.v.0.norm1.weight"]
    state |= {"extra": torch.zeros(1), "cross.in_proj_weight": torch.zeros(6, 48, 16)}
    found = model.load_state_dict(state, strict=False)
    assert sorted(found.missing_keys) == ["encoders.v.0.norm1.weight", "joint.bias"]
    assert sorted(found.unexpected_keys) == ["cross.in_proj_weight", "extra"]
    after = model.state_dict()
    for name, value in after.items():
        assert torch.equal(value, state.get(name, before[name])), name
    with pytest.raises(RuntimeError, match=r"Missing.*encoders.v.0.norm1.weight(.|\n)*Unexpected.*extra"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"size mismatch for valence.3.bias: \(2,\) in the state dict, \(1,\)"):
        model.load_state_dict(before | {"valence.3.bias": torch.zeros(2)})


def test_inside_another_module():
    outer, other = (nn.ModuleDict({"first": nn.Linear(2, 2), "model": JMT(SMALL)}) for _ in range(2))
    assert "model.encoders.a.0.attention.out_proj.weight" in outer.state_dict()
    other.load_state_dict(outer.state_dict())
    assert equal(other.state_dict(), outer.state_dict())


def test_copies_pickles_and_files_keep_the_layout():
    model = JMT(SMALL)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert equal(torch.load(file, weights_only=True), model.state_dict())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.cross.in_proj_weight.zero_()
    assert not equal(copied.state_dict(), model.state_dict())
    copied.load_state_dict(model.state_dict())
    assert equal(copied.state_dict(), model.state_dict())


def test_assign_gives_a_model_on_the_meta_device_its_weights():
    with torch.device("meta"):
        empty = JMT(SMALL)
    model = JMT(SMALL)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert equal(empty.state_dict(), model.state_dict())


def test_stock_layout_shares_memory(config):
    model = JMT(config)
    stock = in_stock_layout(model)
    assert equal(stock.state_dict(), model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3)
    assert all((value == 3).all() for value in stock.state_dict().values())
    assert in_stock_layout(stock) is stock


def test_gradients_by_stock_name_are_views(draw):
    model = JMT(SMALL)
    assert set(model.named_gradients().values()) == {None}
    model(*draw(SMALL)).sum().backward()
    gradients = model.named_gradients()
    assert list(gradients) == list(model.state_dict())
    gradients["encoders.v.0.feed_forward.2.bias"].fill_(9)
    assert (model.encoders[0].down_bias.grad[model.streams.index("v")] == 9).all()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_optimizers_take_the_same_steps_and_resume(config, draw, kind):
    """As on the stock layout, with a stop in between: weights and optimizer state from files."""

    def optimizer(model):
        if kind == "sgd":
            return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
        return torch.optim.Adam(model.parameters(), 1e-3)

    def train(model, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            model(*batch).square().mean().backward()
            optimizer.step()

    batches = [tuple(x.double() if x.is_floating_point() else x for x in draw(config)) for _ in range(4)]
    reference, model, resumed = ReferenceJMT(config).double(), JMT(config).double(), JMT(config).double()
    model.load_state_dict(reference.state_dict())
    train(reference, optimizer(reference), batches)
    first = optimizer(model)
    train(model, first, batches[:2])
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    second = optimizer(resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(resumed, second, batches[2:])
    for name, expected in reference.state_dict().items():
        # Adam divides by the gradient's size: where that is all rounding, so is the step.
        torch.testing.assert_close(resumed.state_dict()[name], expected, rtol=1e-6, atol=1e-8, msg=name)
