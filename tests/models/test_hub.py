"""Checkpoints of the fusion: round trips, and one clear line for whatever is wrong with a folder."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from jmt_fast.config import JMTConfig
from jmt_fast.errors import CheckpointError
from jmt_fast.models import JMT, ReferenceJMT


@pytest.fixture
def saved(tmp_path):
    model = JMT(JMTConfig(dim=16, ff_dim=16, visual_dim=16))
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_round_trip(config, draw, tmp_path, capsys):
    model = JMT(config).eval()
    model.save_pretrained(tmp_path)
    loaded = JMT.from_pretrained(tmp_path)
    assert loaded.config == config
    assert not loaded.training
    inputs = draw(config)
    assert torch.equal(loaded(*inputs), model(*inputs))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()
    assert capsys.readouterr().out == ""


def test_layout_on_disk(saved):
    model, folder = saved
    assert JMTConfig(**json.loads((folder / "config.json").read_text())) == model.config
    ReferenceJMT(model.config).load_state_dict(load_file(folder / "model.safetensors"))


def test_saving_over_an_older_checkpoint(saved):
    _, folder = saved
    other = JMT(JMTConfig(fusion="concat", dim=16, visual_dim=16))
    other.save_pretrained(folder)
    assert JMT.from_pretrained(str(folder)).config == other.config


def broken(folder, how):
    path, weights = folder / "config.json", folder / "model.safetensors"
    config, tensors = json.loads(path.read_text()), load_file(weights)
    match how:
        case "no config":
            path.unlink()
        case "no weights":
            weights.unlink()
        case "config is not JSON":
            path.write_text("{")
        case "config is a list":
            path.write_text("[]")
        case "unknown field":
            path.write_text(json.dumps({**config, "depth": 3}))
        case "wrong value":
            path.write_text(json.dumps({**config, "heads": 3}))
        case "other width":
            path.write_text(json.dumps({**config, "ff_dim": 8}))
        case "missing weight":
            del tensors["joint.bias"]
            save_file(tensors, weights)
        case "unknown weight":
            save_file({**tensors, "extra": torch.zeros(1)}, weights)
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "empty weights":
            weights.write_bytes(b"")


@pytest.mark.parametrize(
    ("how", "mentions"),
    [
        ("no config", "config.json is missing"),
        ("no weights", "model.safetensors is missing"),
        ("config is not JSON", "not JSON"),
        ("config is a list", "config.json"),
        ("unknown field", "depth"),
        ("wrong value", "heads=3"),
        ("other width", "feed_forward"),
        ("missing weight", "joint.bias is missing"),
        ("unknown weight", "extra is unknown"),
        ("cut weights", "damaged"),
        ("empty weights", "damaged"),
    ],
)
def test_broken_checkpoints_are_named_in_one_line(saved, how, mentions):
    _, folder = saved
    broken(folder, how)
    with pytest.raises(CheckpointError) as caught:
        JMT.from_pretrained(folder)
    message = str(caught.value)
    assert mentions in message
    assert message.startswith(str(folder))
    assert "\n" not in message


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        JMT.from_pretrained(tmp_path / "nowhere")
