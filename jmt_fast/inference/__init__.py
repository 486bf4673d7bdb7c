"""A trained checkpoint at work: one video -> a trace, many videos -> many files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jmt_fast.inference.collection import Known, Recipe, Settings, predict_collection, weights_digest
    from jmt_fast.inference.inputs import Found, find_videos
    from jmt_fast.inference.predictor import Outcome, Predictor
    from jmt_fast.inference.trace import Trace
    from jmt_fast.inference.workers import Crew, run_here

# Resolved on first use: a process that does other work than predicting starts in a tenth of a second.
_HOME = {
    "Crew": "workers",
    "Found": "inputs",
    "Known": "collection",
    "Outcome": "predictor",
    "Predictor": "predictor",
    "Recipe": "collection",
    "Settings": "collection",
    "Trace": "trace",
    "find_videos": "inputs",
    "predict_collection": "collection",
    "run_here": "workers",
    "weights_digest": "collection",
}
__all__ = [
    "Crew",
    "Found",
    "Known",
    "Outcome",
    "Predictor",
    "Recipe",
    "Settings",
    "Trace",
    "find_videos",
    "predict_collection",
    "run_here",
    "weights_digest",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"jmt_fast.inference.{_HOME[name]}"), name)
    raise AttributeError(f"module 'jmt_fast.inference' has no attribute {name!r}")
