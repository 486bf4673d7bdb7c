"""A trained checkpoint at work: one video -> a trace, many videos -> many files."""

from jmt_fast.inference.collection import Outcome, predict_files
from jmt_fast.inference.predictor import Predictor
from jmt_fast.inference.trace import Trace

__all__ = ["Outcome", "Predictor", "Trace", "predict_files"]
