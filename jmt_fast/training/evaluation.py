"""Evaluation per frame, as the challenge does it, and whether predictions move within a sequence as labels do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from jmt_fast.data import clip_labels, labelled, sequences, to_frames
from jmt_fast.errors import DataError, JMTError
from jmt_fast.features import VideoFeatures, run_sequences
from jmt_fast.models import JMT, AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training.batches import LabelledVideo
from jmt_fast.training.distributed import of_all, own
from jmt_fast.training.loss import StreamingCCC
from jmt_fast.training.step import precision

Predict = Callable[[VideoFeatures], np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """CCC over labelled frames: `pooled` float64 (2,) over all of them, `per_video` for each video that has any.

    `frames`: labelled frames of each video. `prediction_deviation`, `label_deviation` (2,): standard deviation within a
    sequence (8.5 s), averaged over the sequences. A model that only follows the mean of each video scores well pooled
    and has a `deviation_ratio` near 0. `moments`: what `pooled` comes from, to be merged with that of other videos.
    `traces`: of each labelled video what was predicted for every frame, float32 (F, 2).
    """

    moments: StreamingCCC
    per_video: dict[str, np.ndarray]
    frames: dict[str, int]
    prediction_deviation: np.ndarray
    label_deviation: np.ndarray
    traces: dict[str, np.ndarray] = field(repr=False)

    @property
    def pooled(self) -> np.ndarray:
        return self.moments.value()

    @property
    def mean(self) -> float:
        """Mean of valence and arousal, pooled: what models are selected by."""
        return float(self.pooled.mean())

    @property
    def deviation_ratio(self) -> np.ndarray:
        """Deviation of the predictions over that of the labels, (2,); NaN where labels do not vary within sequences."""
        varying = self.label_deviation > 0
        return np.where(varying, self.prediction_deviation / np.where(varying, self.label_deviation, 1), np.nan)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: plain numbers, null where there is none."""
        ratio = [float(value) if np.isfinite(value) else None for value in self.deviation_ratio]
        return {
            "valence": float(self.pooled[0]),
            "arousal": float(self.pooled[1]),
            "mean": self.mean,
            "frames": sum(self.frames.values()),
            "deviation_ratio": ratio,
            "per_video": {
                name: {"valence": float(value[0]), "arousal": float(value[1]), "frames": self.frames[name]}
                for name, value in self.per_video.items()
            },
        }


def evaluate(
    model: JMT,
    audio_backbone: AudioBackbone,
    videos: Sequence[LabelledVideo],
    *,
    runtime: Runtime | None = None,
    label_lag: float = 0.0,
    batch: int = 64,
) -> Evaluation:
    """Predict every clip of the videos (all phases), bring the predictions to frames, compare the labelled ones.

    The model runs where its weights are, in fp32, or in `runtime`'s precision. `label_lag` is that of the training:
    what the model says of time t is compared with the label at t + lag. Raises DataError when no frame is labelled.
    """

    def fusion(audio: Tensor, visual: Tensor, present: Tensor) -> Tensor:
        if runtime is None:
            return model(audio, visual, present)
        with precision(runtime):
            return model(audio, visual, present)

    def predict(video: VideoFeatures) -> np.ndarray:
        return run_sequences(fusion, audio_backbone, video, length, batch)

    length = model.config.length
    modes = model.training, audio_backbone.training
    model.eval()
    audio_backbone.eval()
    try:
        return score(videos, predict, length, label_lag)
    finally:
        model.train(modes[0])
        audio_backbone.train(modes[1])


def judged_together(
    judge: Callable[[Sequence[LabelledVideo]], Evaluation], videos: Sequence[LabelledVideo]
) -> np.ndarray:
    """Pooled CCC, float64 (2,), of a split that the ranks share out for judging.

    Raises JMTError, on all ranks, when predictions are not finite, DataError when no frame is labelled.
    """
    videos = own([video for video in videos if labelled(video.labels).any()] or videos)
    found, total = judge(videos) if videos else None, StreamingCCC()
    bad = [name for name, ccc in found.per_video.items() if not np.isfinite(ccc).all()] if found else []
    for names, moments in of_all((bad, found.moments if found else StreamingCCC())):
        if names:
            raise JMTError(
                f"{names[0]}: predictions for the validation split are not finite; lower the lr, or extract these "
                "features again"
            )
        total.merge(moments)
    return total.value()


def score(videos: Sequence[LabelledVideo], predict: Predict, length: int, label_lag: float = 0.0) -> Evaluation:
    """Evaluate any predictor: `predict(features)` gives (N, 2), one row a clip. `length`: clips of a sequence."""
    pooled = StreamingCCC()
    per_video: dict[str, np.ndarray] = {}
    frames: dict[str, int] = {}
    deviations: list[np.ndarray] = []
    traces: dict[str, np.ndarray] = {}
    for video in videos:
        features = video.features
        known = labelled(video.labels)
        frames[video.name] = int(known.sum())
        if not frames[video.name]:
            continue
        values = predict(features)
        trace = to_frames(features.times + label_lag, values, features.timestamps)
        alone = StreamingCCC()
        alone.update(trace, video.labels, known)
        pooled.merge(alone)
        per_video[video.name] = alone.value()
        traces[video.name] = trace.astype(np.float32)
        deviations.append(_deviations(video, values, length, label_lag))
    if not per_video:
        raise DataError(f"none of the {len(videos)} videos to evaluate has a labelled frame; check the annotations")
    within = np.concatenate(deviations)
    prediction, label = within.mean(0) if len(within) else np.zeros((2, 2))
    return Evaluation(pooled, per_video, frames, prediction, label, traces)


def _deviations(video: LabelledVideo, values: np.ndarray, length: int, lag: float) -> np.ndarray:
    """(S, 2, 2): of each sequence with two labelled clips or more, deviation of predictions and of labels there."""
    features = video.features
    labels, known = clip_labels(video.labels, features.timestamps, features.times, lag=lag)
    rows = sequences(len(features.times), features.stride, length)
    mask = known[rows] & (rows >= 0)
    rows, mask = rows[mask.sum(1) > 1], mask[mask.sum(1) > 1][:, None, :, None]
    both = np.stack([values, labels]).astype(np.float64)[:, rows].swapaxes(0, 1)  # (S, 2, L, 2)
    return both.std(2, where=mask) if len(rows) else np.zeros((0, 2, 2))
