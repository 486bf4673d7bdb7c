"""jmt-fast: continuous valence and arousal from talking-face video with the Joint Multimodal Transformer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jmt_fast import data, features, inference, kernels, media, models, training
    from jmt_fast.config import JMTConfig
    from jmt_fast.inference import Predictor, Trace
    from jmt_fast.models import JMT

__version__ = "0.1.0"
__all__ = [
    "JMT",
    "JMTConfig",
    "Predictor",
    "Trace",
    "data",
    "features",
    "inference",
    "kernels",
    "media",
    "models",
    "training",
]

# Resolved on first use: `jmt-fast --help` must not wait for torch.
_HOME = {
    "JMT": "jmt_fast.models",
    "JMTConfig": "jmt_fast.config",
    "Predictor": "jmt_fast.inference",
    "Trace": "jmt_fast.inference",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in __all__:
        return import_module(f"jmt_fast.{name}")
    raise AttributeError(f"module 'jmt_fast' has no attribute {name!r}")
