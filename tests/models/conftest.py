"""Small fusion models and batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jmt_fast.config import JMTConfig
from jmt_fast.models.parameters import FusionParameters

VARIANTS = {
    "jmt": JMTConfig.preset("jmt", dim=32, ff_dim=24, visual_dim=32),
    "jmt, query, 2 layers": JMTConfig.preset("jmt", dim=32, visual_dim=32, orientation="query", layers=2),
    "jmt, 4 heads, wider visual": JMTConfig.preset("jmt", dim=32, visual_dim=48, heads=4),
    "jmt, self_attention": JMTConfig.preset("jmt", dim=32, visual_dim=32, output="self_attention"),
    "literal": JMTConfig.preset("literal", dim=32, visual_dim=32),
    "softmax, key": JMTConfig.preset("jmt", dim=32, visual_dim=32, activation="softmax", cross_weights="query"),
    "abaw6": JMTConfig.preset("abaw6", dim=32, visual_dim=32),
    "abaw6, self_attention": JMTConfig.preset("abaw6", dim=32, visual_dim=32, output="self_attention", heads=2),
    "audio": JMTConfig(fusion="audio", dim=32, visual_dim=32),
    "visual": JMTConfig(fusion="visual", dim=32, visual_dim=48),
    "concat": JMTConfig(fusion="concat", dim=32, visual_dim=48),
    "cross_attention": JMTConfig(fusion="cross_attention", dim=32, visual_dim=32),
}


@pytest.fixture(params=VARIANTS, ids=str)
def config(request: pytest.FixtureRequest) -> JMTConfig:
    return VARIANTS[request.param]


@pytest.fixture
def variants() -> dict[str, JMTConfig]:
    return VARIANTS


@pytest.fixture
def draw() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """`draw(config, batch, length)` -> audio, visual and a mask whose last sequence is wholly absent."""

    def make(config: JMTConfig, batch: int = 3, length: int = 7) -> tuple[Tensor, Tensor, Tensor]:
        valid = torch.rand(batch, length) < 0.7
        valid[0, 0], valid[-1] = True, False
        return torch.randn(batch, length, config.dim), torch.randn(batch, length, config.visual_dim), valid

    return make


@pytest.fixture
def shaken() -> Callable[[FusionParameters], FusionParameters]:
    """Gives biases and norms random values too: at their initial 0 and 1 they would hide mistakes."""

    def shake(model: FusionParameters) -> FusionParameters:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
        return model

    return shake
