"""The linear baseline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from jmt_fast.data import clip_labels
from jmt_fast.errors import DataError
from jmt_fast.training import LabelledVideo, ridge, score


def test_ridge_is_the_textbook_solution(train: list[LabelledVideo], validation: list[LabelledVideo]) -> None:
    for video in train + validation:  # one feature far off, one constant, one at another scale
        video.features.visual[:, 0] += 1e4
        video.features.visual[:, 1] = 3
        video.features.audio[:, 2] *= 1e-3
    penalty = 0.05
    result = ridge(train, validation, validation, penalties=[penalty])
    inputs, targets = [], []
    for video in train:
        features = video.features
        target, known = clip_labels(video.labels, features.timestamps, features.times)
        inputs.append(np.concatenate([features.visual.double().numpy(), features.audio.double().numpy()], 1)[known])
        targets.append(target[known].astype(float))
    x, y = np.concatenate(inputs), np.concatenate(targets)
    spread = np.where(x.std(0) > 0, x.std(0), 1)
    z = (x - x.mean(0)) / spread
    # Ridge is least squares with one more row a feature.
    rows = np.concatenate([z, np.sqrt(penalty * len(z)) * np.eye(z.shape[1])])
    weights = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((z.shape[1], 2))]), rcond=None)[0]
    held_out = validation[0].features
    inputs_held = np.concatenate([held_out.visual.double().numpy(), held_out.audio.double().numpy()], 1)
    expected = (inputs_held - x.mean(0)) / spread @ weights + y.mean(0)
    np.testing.assert_allclose(result.model.predict(held_out), expected, atol=1e-8)
    assert result.test is not None and result.test.as_dict() == result.validation.as_dict()


def test_ridge_chooses_the_penalty_on_validation(train: list[LabelledVideo], validation: list[LabelledVideo]) -> None:
    result = ridge(train, validation)
    assert result.validation.pooled.min() > 0.9  # the labels are linear in these features
    assert score(validation, result.model.predict, length=8).mean == result.validation.mean
    for penalty in (1e-6, 1e3):
        assert ridge(train, validation, penalties=[penalty]).validation.mean <= result.validation.mean
    assert result.test is None


def test_ridge_in_chunks(
    train: list[LabelledVideo], validation: list[LabelledVideo], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ridge(train, validation, penalties=[0.1])
    monkeypatch.setattr("jmt_fast.training.linear._CHUNK", 17)
    parts = ridge(train, validation, penalties=[0.1])
    np.testing.assert_allclose(parts.model.weights, whole.model.weights, rtol=1e-9, atol=1e-12)
    assert torch.tensor(parts.validation.pooled).allclose(torch.tensor(whole.validation.pooled))


def test_ridge_without_labels(make_video: Callable[..., LabelledVideo], validation: list[LabelledVideo]) -> None:
    with pytest.raises(DataError, match="labelled clip"):
        ridge([make_video(unlabelled=slice(None))], validation)
