"""Weights of the backbones, in and out: pretrained, random from a seed, or a folder of safetensors files."""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, WeightsEnum
from torchvision.models.video import R2Plus1D_18_Weights

from jmt_fast.config import AudioConfig, FeatureConfig, VisualConfig
from jmt_fast.errors import CheckpointError, JMTError
from jmt_fast.models.backbones import AudioBackbone, Backbones, VisualBackbone

VISUAL_FILE = "visual.safetensors"
AUDIO_FILE = "audio.safetensors"


def load_backbones(config: FeatureConfig, weights: str | Path = "pretrained", seed: int = 0) -> Backbones:
    """The two extractors in evaluation mode, on the CPU, in FP32.

    `weights`: "pretrained" (torchvision's Kinetics-400 R(2+1)D-18 and ImageNet ResNet-18; the GRU, and a linear layer
    after other pooling than the default, start from `seed`), "random" (all from `seed`; the global random state is
    neither read nor changed), or a folder written by `save_backbones`.

    Raises JMTError when pretrained weights cannot be fetched or do not exist for this config, CheckpointError when the
    folder's files are missing, damaged, or of another config.
    """
    if weights == "pretrained":
        _check_pretrained(config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbones = Backbones(VisualBackbone(config.visual, config.frames.crop), AudioBackbone(config.audio))
    if weights == "pretrained":
        _load_pretrained(backbones)
    elif weights != "random":
        folder = Path(weights)
        _load_file(backbones.visual, folder / VISUAL_FILE)
        _load_file(backbones.audio, folder / AUDIO_FILE)
    backbones.visual.eval()
    backbones.audio.eval()
    return backbones


def save_backbones(backbones: Backbones, folder: str | Path) -> None:
    """Write `visual.safetensors` and `audio.safetensors` into `folder`, which is made if it is not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for module, name in ((backbones.visual, VISUAL_FILE), (backbones.audio, AUDIO_FILE)):
        save_file({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}, folder / name)


def _check_pretrained(config: FeatureConfig) -> None:
    """Pretrained weights fit torchvision's networks only; what comes after the last map is free."""
    for part, given, default in (("visual", config.visual, VisualConfig()), ("audio", config.audio, AudioConfig())):
        fields = ("blocks", "widths") if part == "visual" else ("blocks", "features")
        for field in fields:
            value, expected = getattr(given, field), getattr(default, field)
            if value != expected:
                raise JMTError(
                    f"{part}.{field}={value}: pretrained weights exist for {expected} only; "
                    'take "random" ones or a folder of trained ones (--backbones)'
                )


def _load_pretrained(backbones: Backbones) -> None:
    visual = _fetch(R2Plus1D_18_Weights.KINETICS400_V1)
    audio = _fetch(ResNet18_Weights.IMAGENET1K_V1)
    audio["conv1.weight"] = audio["conv1.weight"].mean(dim=1, keepdim=True)  # RGB filters -> one channel
    for module, state, fresh in ((backbones.visual, visual, "project."), (backbones.audio, audio, "gru.")):
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
        missing, unexpected = module.load_state_dict(state, strict=False)
        wrong = [name for name in missing if not name.startswith(fresh)] + unexpected
        if wrong:
            raise JMTError(f"torchvision's weights lack or add {wrong[0]!r}: install torchvision 0.26 or newer")


def _fetch(weights: WeightsEnum) -> dict[str, Tensor]:
    """A state dict from torch hub's cache, downloaded on the first use."""
    url = weights.url
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch announces downloads on stdout, which belongs to --json
            return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, HTTPException) as error:
        message = f"cannot download {place.name} ({error}): fetch {url} elsewhere and put it at {place}"
        raise JMTError(message) from error
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise JMTError(f"{place} is damaged: delete it and try again, or fetch {url} and put it there") from error


def _load_file(module: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: give a folder with {VISUAL_FILE} and {AUDIO_FILE}")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): write it again") from error
    problem = _difference(module.state_dict(), state)
    if problem:
        raise CheckpointError(f"{path} is of another configuration ({problem}): use the config it was saved with")
    module.load_state_dict(state)


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """What is wrong with `found` first, in words, or None."""
    for name, value in expected.items():
        if name not in found:
            return f"no {name}"
        if found[name].shape != value.shape:
            return f"{name} has shape {tuple(found[name].shape)}, {tuple(value.shape)} expected"
    extra = sorted(found.keys() - expected.keys())
    return f"unknown {extra[0]}" if extra else None
