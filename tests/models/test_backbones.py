"""Backbones against torchvision's own networks, their weights in and out, and what a user can do wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.video import r2plus1d_18

from jmt_fast.config import AudioConfig, FeatureConfig, FrameConfig, VisualConfig
from jmt_fast.errors import CheckpointError, JMTError
from jmt_fast.models.backbones import AudioBackbone, VisualBackbone
from jmt_fast.models.weights import load_backbones, save_backbones

SMALL = FeatureConfig(
    frames=FrameConfig(resize=40, crop=32),
    visual=VisualConfig(blocks=(1, 1), widths=(8, 16), features=24),
    audio=AudioConfig(blocks=(1, 1, 1, 1), features=32, gru=16),
)


def _shake_norms(module: nn.Module) -> None:
    """Fresh batch norms are nearly the identity, which would hide a mistake in them."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)


def _pretend_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nn.Module]:
    """torch hub's cache in `folder`, filled with random weights under the files' real names."""
    visual, audio = r2plus1d_18().eval(), resnet18().eval()
    _shake_norms(visual)
    _shake_norms(audio)
    (folder / "checkpoints").mkdir()
    torch.save(visual.state_dict(), folder / "checkpoints" / "r2plus1d_18-91a641e6.pth")
    torch.save(audio.state_dict(), folder / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(folder))
    return visual, audio


@torch.no_grad()
def test_the_defaults_are_torchvisions_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, audio_peer = _pretend_downloaded(tmp_path, monkeypatch)
    config = FeatureConfig(frames=FrameConfig(resize=72, crop=64), visual=VisualConfig(pooling="average"))
    ours = load_backbones(config, "pretrained")
    peer.fc = nn.Identity()
    frames = torch.randn(2, 3, 8, 64, 64)
    torch.testing.assert_close(ours.visual(frames), peer(frames), rtol=1e-5, atol=1e-5)

    audio_peer.fc = nn.Identity()
    sound = torch.randn(3, 1, 64, 107)
    # averaged filters on one channel = the RGB network on a third of that channel in each of three
    expected = audio_peer((sound / 3).expand(-1, 3, -1, -1))
    torch.testing.assert_close(ours.audio(sound), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pooling_reduces_the_last_map_of_torchvisions_network() -> None:
    peer = r2plus1d_18().eval()
    state = {name: value for name, value in peer.state_dict().items() if not name.startswith("fc.")}
    frames = torch.randn(2, 3, 8, 64, 64)
    maps: list[torch.Tensor] = []
    peer.layer4.register_forward_hook(lambda module, inputs, output: maps.append(output))
    peer(frames)
    assert maps[0].shape == (2, 512, 1, 4, 4)

    by_max = VisualBackbone(VisualConfig(), 64).eval()
    by_max.load_state_dict(state)
    torch.testing.assert_close(by_max(frames), maps[0].flatten(2).amax(2), rtol=1e-5, atol=1e-5)

    flat = VisualBackbone(VisualConfig(pooling="flatten", features=20), 64).eval()
    flat.load_state_dict(state | {f"project.{k}": v for k, v in flat.project.state_dict().items()})
    torch.testing.assert_close(flat(frames), flat.project(maps[0].flatten(1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["max", "average", "flatten"])
@pytest.mark.parametrize("crop", [32, 45])
@torch.no_grad()
def test_shapes_of_smaller_networks(pooling: str, crop: int) -> None:
    config = VisualConfig(blocks=(1, 2, 1), widths=(8, 12, 16), pooling=pooling, features=24)
    assert VisualBackbone(config, crop).eval()(torch.randn(2, 3, 8, crop, crop)).shape == (2, 24)


def test_every_parameter_gets_a_gradient() -> None:
    backbones = load_backbones(SMALL, "random")
    backbones.visual(torch.randn(2, 3, 8, 32, 32)).square().sum().backward()
    backbones.audio.sequence(backbones.audio(torch.randn(6, 1, 64, 107)).view(2, 3, 32)).square().sum().backward()
    for module in (backbones.visual, backbones.audio):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_the_gru_starts_each_sequence_from_zero() -> None:
    audio = load_backbones(SMALL, "random").audio
    features = torch.randn(2, 5, 32)
    out = audio.sequence(features)
    assert out.shape == (2, 5, 16)
    torch.testing.assert_close(audio.sequence(features[1:, :3])[0], out[1, :3])


def test_wrong_shapes_name_the_argument() -> None:
    backbones = load_backbones(SMALL, "random")
    with pytest.raises(ValueError, match="frames"):
        backbones.visual(torch.randn(1, 3, 8, 32, 40))
    with pytest.raises(ValueError, match="spectrograms"):
        backbones.audio(torch.randn(1, 3, 64, 107))
    with pytest.raises(ValueError, match="features"):
        AudioBackbone(AudioConfig(features=100))


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = load_backbones(SMALL, "random", seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert load_backbones(SMALL, "random", seed=5).digest() == first.digest()
    assert load_backbones(SMALL, "random", seed=6).digest() != first.digest()
    assert not first.visual.training
    assert not first.audio.training


def test_the_digest_sees_one_changed_number() -> None:
    backbones = load_backbones(SMALL, "random")
    digest, of_features = backbones.digest(), backbones.feature_digest()
    with torch.no_grad():
        backbones.audio.gru.bias_hh_l0[3] += 1e-3
    assert backbones.digest() != digest
    assert backbones.feature_digest() == of_features
    with torch.no_grad():
        backbones.visual.get_buffer("stem.1.running_mean")[0] += 1e-3
    assert backbones.feature_digest() != of_features


def test_save_and_load(tmp_path: Path) -> None:
    backbones = load_backbones(SMALL, "random", seed=3)
    _shake_norms(backbones.visual)
    save_backbones(backbones, tmp_path / "new")
    assert load_backbones(SMALL, tmp_path / "new").digest() == backbones.digest()
    assert load_backbones(SMALL, str(tmp_path / "new"), seed=9).digest() == backbones.digest()


def test_wrong_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"visual\.safetensors is missing"):
        load_backbones(SMALL, tmp_path)
    save_backbones(load_backbones(SMALL, "random"), tmp_path)
    wider = SMALL.model_copy(update={"visual": VisualConfig(blocks=(1, 1), widths=(8, 20), features=24)})
    longer = SMALL.model_copy(update={"visual": VisualConfig(blocks=(1, 2), widths=(8, 16), features=24)})
    shorter = SMALL.model_copy(update={"visual": VisualConfig(blocks=(1,), widths=(8,), features=24)})
    for config, words in ((wider, "has shape"), (longer, "no layer2.1"), (shorter, "unknown layer2|has shape")):
        with pytest.raises(CheckpointError, match=words) as caught:
            load_backbones(config, tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "audio.safetensors").write_bytes(b"not this")
    with pytest.raises(CheckpointError, match=r"audio\.safetensors cannot be read"):
        load_backbones(SMALL, tmp_path)


def test_pretrained_weights_refuse_other_networks() -> None:
    with pytest.raises(JMTError, match=r"visual\.widths=\(8, 16\)|visual\.blocks"):
        load_backbones(SMALL, "pretrained")
    with pytest.raises(JMTError, match=r"audio\.features=256"):
        load_backbones(FeatureConfig(audio=AudioConfig(features=256)), "pretrained")


def test_without_a_network_the_error_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens on the discard port
    with pytest.raises(JMTError) as caught:
        load_backbones(FeatureConfig(), "pretrained")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/r2plus1d_18-91a641e6.pth" in message
    assert str(tmp_path / "checkpoints" / "r2plus1d_18-91a641e6.pth") in message
    assert "\n" not in message


def test_a_damaged_download_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for content in (b"", b"<html>proxy says no</html>"):
        (tmp_path / "checkpoints" / "r2plus1d_18-91a641e6.pth").write_bytes(content)
        with pytest.raises(JMTError, match=r"r2plus1d_18-91a641e6\.pth is damaged"):
            load_backbones(FeatureConfig(), "pretrained")
