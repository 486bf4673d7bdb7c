"""Loss, metric and training of the backbones and the fusion."""

from __future__ import annotations

from jmt_fast.training.audio import fit_audio_gru
from jmt_fast.training.batches import LabelledVideo
from jmt_fast.training.evaluation import Evaluation, evaluate, score
from jmt_fast.training.fusion import fit_fusion
from jmt_fast.training.linear import RidgeResult, ridge
from jmt_fast.training.loop import FitResult
from jmt_fast.training.loss import StreamingCCC, ccc, ccc_loss
from jmt_fast.training.tuning import Grid, SearchResult, Trial, search
from jmt_fast.training.unfrozen import fit_unfrozen
from jmt_fast.training.visual import fit_visual

__all__ = [
    "Evaluation",
    "FitResult",
    "Grid",
    "LabelledVideo",
    "RidgeResult",
    "SearchResult",
    "StreamingCCC",
    "Trial",
    "ccc",
    "ccc_loss",
    "evaluate",
    "fit_audio_gru",
    "fit_fusion",
    "fit_unfrozen",
    "fit_visual",
    "ridge",
    "score",
    "search",
]
