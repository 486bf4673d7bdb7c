"""Evaluation per frame against values worked out another way."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from jmt_fast.data import clip_labels
from jmt_fast.errors import DataError
from jmt_fast.features import VideoFeatures, run_sequences
from jmt_fast.models import JMT, AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training import LabelledVideo, ccc, evaluate, score


def truth(videos: list[LabelledVideo], ahead: float = 0.0) -> Callable[[VideoFeatures], np.ndarray]:
    """A predictor that knows: the label `ahead` seconds after each clip (held at the end)."""
    labels = {video.name: video.labels for video in videos}

    def predict(features: VideoFeatures) -> np.ndarray:
        at = features.times + ahead
        return np.stack([np.interp(at, features.timestamps, labels[features.name][:, d]) for d in range(2)], 1)

    return predict


def test_pools_labelled_frames_of_interpolated_predictions(make_video: Callable[..., LabelledVideo]) -> None:
    videos = [
        make_video("a", 500, 16, unlabelled=slice(100, 180)),
        make_video("b", 333, 8),
        make_video("c", unlabelled=slice(None)),
    ]
    random = np.random.default_rng(0)
    predictions = {video.name: random.uniform(-1.2, 1.2, (len(video.features.times), 2)) for video in videos}
    result = score(videos, lambda features: predictions[features.name], length=8)

    pooled = []
    for video in videos:
        frames = []
        for i, time in enumerate(video.features.timestamps):
            if video.labels[i, 0] != -5:
                clips = np.clip(predictions[video.name], -1, 1)
                value = [np.interp(time, video.features.times, clips[:, d]) for d in range(2)]
                frames.append((value, video.labels[i]))
        pooled += frames
        if frames:
            x, y = (torch.tensor(np.array(part)) for part in zip(*frames, strict=True))
            np.testing.assert_allclose(result.per_video[video.name], ccc(x.double(), y.double()).numpy(), atol=1e-6)
    x, y = (torch.tensor(np.array(part)) for part in zip(*pooled, strict=True))
    np.testing.assert_allclose(result.pooled, ccc(x.double(), y.double()).numpy(), atol=1e-6)
    assert result.frames == {"a": 420, "b": 333, "c": 0}
    assert result.per_video.keys() == {"a", "b"}
    assert result.mean == pytest.approx(result.pooled.mean())


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_deviation_ratio_is_that_of_the_movement_within_sequences(
    validation: list[LabelledVideo], factor: float
) -> None:
    labels = {}
    for video in validation:
        features = video.features
        labels[video.name], _ = clip_labels(video.labels, features.timestamps, features.times)
    moved = score(validation, lambda features: 0.3 + factor * labels[features.name], length=8)
    np.testing.assert_allclose(moved.deviation_ratio, [factor, factor], atol=1e-6)


def test_a_lag_compares_with_the_label_that_comes_later(validation: list[LabelledVideo]) -> None:
    lag = 0.8
    for video in validation:
        video.labels[:24] = -5  # of these frames, no prediction speaks
    right = score(validation, truth(validation, lag), length=8, label_lag=lag)
    wrong = score(validation, truth(validation, lag), length=8)
    assert right.pooled.min() > 0.99
    assert (wrong.pooled < right.pooled).all()


def test_json_has_no_nan(make_video: Callable[..., LabelledVideo]) -> None:
    video = make_video(frames=200)
    video.labels[:] = 0.25  # labels that never move have no ratio
    result = score([video], lambda features: np.zeros((len(features.times), 2)), length=8)
    assert np.isnan(result.deviation_ratio).all()
    assert result.pooled.tolist() == [0, 0]
    read = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert read["deviation_ratio"] == [None, None]
    assert read["per_video"]["a"] == {"valence": 0, "arousal": 0, "frames": 200}


def test_evaluate_is_the_score_of_the_model(
    make_model: Callable[..., JMT], audio_backbone: AudioBackbone, validation: list[LabelledVideo], runtime: Runtime
) -> None:
    model = make_model(head_dropout=0.5, length=5).train()
    result = evaluate(model, audio_backbone, validation)
    assert model.training and not audio_backbone.training
    model.eval()
    expected = score(validation, lambda video: run_sequences(model, audio_backbone, video, 5), length=5)
    assert result.as_dict() == expected.as_dict()
    assert evaluate(model, audio_backbone, validation, runtime=runtime, batch=3).mean == pytest.approx(
        result.mean, abs=1e-6
    )
    rounded = evaluate(model, audio_backbone, validation, runtime=Runtime.choose("cpu", "bf16", compile=False))
    assert rounded.mean != result.mean
    assert rounded.mean == pytest.approx(result.mean, abs=0.05)


def test_nothing_to_evaluate(make_video: Callable[..., LabelledVideo]) -> None:
    silent = make_video(unlabelled=slice(None))
    with pytest.raises(DataError, match="1 videos to evaluate has a labelled frame"):
        score([silent], truth([silent]), length=8)
