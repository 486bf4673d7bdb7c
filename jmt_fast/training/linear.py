"""Ridge regression from the features of a clip to its label: what a model must beat to be worth its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jmt_fast.data import clip_labels
from jmt_fast.errors import DataError
from jmt_fast.features import VideoFeatures
from jmt_fast.training.batches import LabelledVideo
from jmt_fast.training.evaluation import Evaluation, score

PENALTIES = tuple(10.0**exponent for exponent in range(-6, 4))
_CHUNK = 4096  # clips in float64 at once: 32 MB

Clips = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class LinearModel:
    """`weights` float64 (D_visual + D_audio, 2) and `offset` (2,), on features as they are stored."""

    weights: np.ndarray
    offset: np.ndarray

    def predict(self, video: VideoFeatures) -> np.ndarray:
        """Valence and arousal of each clip: float64 (N, 2)."""
        chunks = np.split(np.arange(len(video.times)), range(_CHUNK, len(video.times), _CHUNK))
        return np.concatenate([_inputs(video, chunk) @ self.weights for chunk in chunks]) + self.offset


@dataclass(frozen=True)
class RidgeResult:
    """The model with the penalty that validated best, and what it reaches."""

    model: LinearModel
    penalty: float
    validation: Evaluation
    test: Evaluation | None


def ridge(
    train: Sequence[LabelledVideo],
    validation: Sequence[LabelledVideo],
    test: Sequence[LabelledVideo] = (),
    *,
    penalties: Sequence[float] = PENALTIES,
    length: int = 8,
    label_lag: float = 0.0,
) -> RidgeResult:
    """Closed form in float64 over all labelled clips of `train`, one clip at a time: no sequence, no time.

    The penalty (on standardised features, per clip) is the one with the highest mean CCC on `validation`. Evaluated
    exactly as the models are; `length` is that of the sequences whose deviation is reported. DataError when nothing is
    labelled.
    """
    solve = _decomposed(lambda: _labelled_clips(train, label_lag))
    best: RidgeResult | None = None
    for penalty in penalties:
        model = solve(penalty)
        result = score(validation, model.predict, length, label_lag)
        if best is None or result.mean > best.validation.mean:
            best = RidgeResult(model, penalty, result, None)
    if best is None:
        raise ValueError("penalties must hold one value at least")
    tested = score(test, best.model.predict, length, label_lag) if test else None
    return RidgeResult(best.model, best.penalty, best.validation, tested)


def _decomposed(clips: Callable[[], Clips]) -> Callable[[float], LinearModel]:
    """Two passes over the clips and one eigendecomposition; the solution for each penalty is then a product."""
    count, sums = 0, [np.zeros(()), np.zeros(())]
    for pair in clips():
        count += len(pair[0])
        sums = [total + part.sum(0) for total, part in zip(sums, pair, strict=True)]
    if not count:
        raise DataError("no training video has a labelled clip; check the annotations")
    centre, offset = (total / count for total in sums)
    gram, moment = np.zeros(()), np.zeros(())
    for inputs, target in clips():
        inputs = inputs - centre
        gram, moment = gram + inputs.T @ inputs / count, moment + inputs.T @ (target - offset) / count
    spread = np.sqrt(np.diag(gram))
    spread = np.where(spread > 0, spread, 1)  # a feature that never changes gets weight 0 whatever its scale
    values, vectors = np.linalg.eigh(gram / np.outer(spread, spread))
    projected = vectors.T @ (moment / spread[:, None])

    def solve(penalty: float) -> LinearModel:
        weights = vectors @ (projected / (np.maximum(values, 0) + penalty)[:, None]) / spread[:, None]
        return LinearModel(weights, offset - centre @ weights)

    return solve


def _labelled_clips(videos: Sequence[LabelledVideo], lag: float) -> Clips:
    for video in videos:
        features = video.features
        target, known = clip_labels(video.labels, features.timestamps, features.times, lag=lag)
        clips = np.flatnonzero(known)
        for start in range(0, len(clips), _CHUNK):
            part = clips[start : start + _CHUNK]
            yield _inputs(features, part), target[part].astype(np.float64)


def _inputs(video: VideoFeatures, clips: np.ndarray) -> np.ndarray:
    """The features of some clips, visual then audio: float64 (n, D_visual + D_audio)."""
    rows = torch.from_numpy(video.rows[clips])
    return np.concatenate([part[rows].double().numpy() for part in (video.visual, video.audio)], axis=1)
