"""What an epoch consists of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from jmt_fast.data import clip_labels
from jmt_fast.errors import DataError
from jmt_fast.models import AudioBackbone
from jmt_fast.training import LabelledVideo
from jmt_fast.training.batches import ResidentClips, SequenceSampler, content


def test_an_epoch_is_one_phase_of_each_video(train: list[LabelledVideo]) -> None:
    sampler = SequenceSampler(train, length=8, batch=2, seed=3)
    seen = [set() for _ in train]
    for epoch in range(1, 40):
        drawn = sampler.draw(epoch)
        for number, video in enumerate(train):
            rows = drawn.rows[drawn.owners == number].ravel()
            clips = np.argsort(video.features.by_phase().rows)[rows[rows >= 0]]
            phase = set(clips % 4)  # stride 8: four phases
            assert len(phase) == 1
            seen[number] |= phase
            assert len(set(clips)) == len(clips)
            features = video.features
            _, labelled = clip_labels(video.labels, features.timestamps, features.times)
            expected = {n for n in np.flatnonzero(labelled) if n % 4 in phase}
            assert expected <= set(clips)
    assert all(phases == {0, 1, 2, 3} for phases in seen)


def test_the_order_depends_on_seed_and_epoch_alone(train: list[LabelledVideo]) -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, tuple[int, ...]]]:
        sampler = SequenceSampler(train, length=8, batch=2, seed=seed)
        return [(int(video), tuple(row)) for video, row in zip(*sampler.draw(epoch), strict=True)]

    assert order(3, 1) == order(3, 1)
    assert order(3, 1) != order(3, 2)
    assert order(3, 1) != order(4, 1)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batches_have_one_shape_and_hold_what_was_drawn(train: list[LabelledVideo], batch: int) -> None:
    sampler = SequenceSampler(train, length=5, batch=batch, seed=0)
    parts = [item for names, block in sampler.blocks(1) for item in sampler.cut(names, block)]
    drawn = sampler.draw(1)
    assert len(parts) == sampler.batches(1) == -(-len(drawn.owners) // batch)
    for _, part in parts:
        assert [tuple(tensor.shape) for tensor in part] == [
            (batch, 5, 32), (batch, 5, 24), (batch, 5), (batch, 5, 2), (batch, 5)
        ]  # fmt: skip
        assert not (part.labelled & ~part.present).any()
    rows = [[tensor[k] for tensor in part] for _, part in parts for k in range(batch)]
    for (number, clips), (audio, visual, present, target, labelled) in zip(
        zip(*drawn, strict=True), rows, strict=False
    ):
        features = train[number].features
        there = clips >= 0
        clips = np.append(np.argsort(features.by_phase().rows), -1)[clips]  # from rows to clips
        assert present.tolist() == there.tolist()
        assert torch.equal(visual[present], features.visual[clips[there]])
        assert torch.equal(audio[present], features.audio[clips[there]])
        labels, known = clip_labels(train[number].labels, features.timestamps, features.times)
        assert labelled[present].tolist() == known[clips[there]].tolist()
        np.testing.assert_array_equal(target[present].numpy(), labels[clips[there]])
    assert not any(present.any() for _, _, present, _, _ in rows[len(drawn.owners) :])
    assert {name for names, _ in parts for name in names.split(", ")} == {video.name for video in train}


@pytest.mark.parametrize(("stride", "part"), [(8, (0, 1)), (16, (1, 2))])
def test_clips_on_the_device_give_the_same_batches(
    train: list[LabelledVideo], audio_backbone: AudioBackbone, stride: int, part: tuple[int, int]
) -> None:
    sampler = SequenceSampler(train, length=5, batch=3, seed=0, stride=stride, part=part)
    clips = ResidentClips(sampler, audio_backbone.sequence, torch.device("cpu"))
    for epoch in (1, 2):
        expected = [item for names, block in sampler.blocks(epoch) for item in sampler.cut(names, block)]
        for (names, (rows,)), (videos, batch) in zip(clips.epoch(epoch), expected, strict=True):
            assert names == videos
            found = clips.batch(rows)
            with torch.no_grad():
                heard = audio_backbone.sequence(batch.audio).masked_fill(~batch.present[..., None], 0)
            torch.testing.assert_close(found.audio, heard)
            for name in ("visual", "present", "labelled"):
                assert torch.equal(getattr(found, name), getattr(batch, name)), name
            assert torch.equal(found.target[found.present], batch.target[batch.present])


def test_clips_on_the_device_pass_over_a_video_without_a_label(
    make_video: Callable[..., LabelledVideo], audio_backbone: AudioBackbone
) -> None:
    videos = [make_video("silent", unlabelled=slice(None)), make_video("a")]
    sampler = SequenceSampler(videos, length=5, batch=3, seed=0)
    clips = ResidentClips(sampler, audio_backbone.sequence, torch.device("cpu"))
    [(names, (rows,)), *_] = clips.epoch(1)
    batch = clips.batch(rows)
    assert names == "a" and batch.labelled.any() and batch.audio[batch.present].abs().sum(-1).all()


def test_a_coarser_stride_draws_from_some_of_the_phases(make_video: Callable[..., LabelledVideo]) -> None:
    video = make_video(stride=4)
    sampler = SequenceSampler([video], length=8, batch=2, seed=0, stride=16)
    clips = np.argsort(video.features.by_phase().rows)
    phases = {int(clips[row[0]]) % 8 for epoch in range(30) for row in sampler.draw(epoch).rows}
    assert phases == {0, 4}
    with pytest.raises(DataError, match=r"a: features are stored every 4 .* stride=2"):
        SequenceSampler([video], length=8, batch=2, seed=0, stride=2)


def test_one_clip_with_a_label_is_enough_and_none_is_an_error(make_video: Callable[..., LabelledVideo]) -> None:
    silent = make_video("silent", unlabelled=slice(None))
    with pytest.raises(DataError, match="labelled clip"):
        SequenceSampler([silent], length=8, batch=2, seed=0)
    nearly = make_video("nearly", stride=32, unlabelled=slice(1, None))
    sampler = SequenceSampler([silent, nearly], length=8, batch=2, seed=0)
    ((names, block),) = sampler.blocks(1)
    assert names == ["nearly"]
    assert block.labelled.sum() == 1


def test_labels_of_another_length_are_fitted_with_a_warning(make_video: Callable[..., LabelledVideo]) -> None:
    video = make_video(frames=300)
    with pytest.warns(UserWarning, match=r"a: 298 annotation rows for 300 frames"):
        short = LabelledVideo(video.features, video.labels[:298])
    assert short.labels.shape == (300, 2)
    assert (short.labels[298:] == -5).all()


def test_content_is_names_labels_and_features(
    train: list[LabelledVideo], make_video: Callable[..., LabelledVideo]
) -> None:
    before = content(train)
    assert before == content(train)
    assert {name for name, value in content(train[::-1]).items() if value != before[name]} == set(before)
    train[2].labels[50] = 0.123
    assert {name for name, value in content(train).items() if value != before[name]} == {"labels"}
    before = content(train)
    train[4].features.audio[-1, -1] += 1  # the last number of the last clip
    assert {name for name, value in content(train).items() if value != before[name]} == {"features"}
    assert content([make_video("a")])["features"] != content([make_video("a", stride=16)])["features"]
