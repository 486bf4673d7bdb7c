"""Fusion and backbones trained together from video: gradients, what moves and what does not, batches, resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jmt_fast.config import AudioConfig, FeatureConfig, FrameConfig, JMTConfig, UnfrozenTraining, VisualConfig
from jmt_fast.data import Recording, clip_labels, load
from jmt_fast.data.graph import ClipGraph
from jmt_fast.data.synthetic import synthesise
from jmt_fast.errors import CheckpointError, DataError, JMTError
from jmt_fast.models import JMT, Backbones, Checkpoint, ReferenceJMT, load_backbones
from jmt_fast.runtime import Runtime
from jmt_fast.training import FitResult, ccc, evaluate, fit_unfrozen
from jmt_fast.training.batches import SequenceSampler
from jmt_fast.training.clip_cache import ClipCache
from jmt_fast.training.clips import ClipReader
from jmt_fast.training.experiment import labelled_videos, open_store
from jmt_fast.training.sequence_clips import SequenceClips
from jmt_fast.training.unfrozen import WholeModel

FEATURES = FeatureConfig(
    frames=FrameConfig(resize=20, crop=16),
    visual=VisualConfig(blocks=(1, 1), widths=(4, 8), features=8),
    audio=AudioConfig(blocks=(1, 1, 1, 1), features=16, gru=8),
)
MODEL = JMTConfig(dim=8, ff_dim=8, visual_dim=8, length=3)
CONFIG = UnfrozenTraining(
    lr=0.02, visual_lr=0.02, audio_lr=0.02, momentum=0.9, clip_norm=1.0, batch=4, epochs=3, patience=3, stride=16
)
Split = dict[str, list[Recording]]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("unfrozen") / "set"
    made = synthesise(folder, 5, 5.0, seed=3, size=32, fps=15)
    assert made
    return {name: [each for each in load(folder) if each.split == name] for name in ("train", "validation")}


@pytest.fixture
def make() -> Callable[[], tuple[JMT, Backbones]]:
    """Networks in which batch normalisation has statistics to keep."""

    def call() -> tuple[JMT, Backbones]:
        with torch.random.fork_rng([]):
            torch.manual_seed(4)
            fusion, backbones = JMT(MODEL), load_backbones(FEATURES, "random", 5)
            for network in (backbones.visual, backbones.audio):
                for name, buffer in network.named_buffers():
                    if buffer.is_floating_point():
                        buffer.copy_(torch.rand_like(buffer) + (0.5 if name.endswith("var") else -0.5))
        return fusion, backbones

    return call


@pytest.fixture
def fit(split: Split) -> Callable[..., FitResult]:
    def call(networks: tuple[JMT, Backbones], config: UnfrozenTraining = CONFIG, **options: object) -> FitResult:
        runtime = Runtime.choose("cpu", "fp32", compile=False)
        return fit_unfrozen(*networks, FEATURES, split["train"], split["validation"], config, runtime, **options)  # type: ignore[arg-type]

    return call


def state(networks: tuple[JMT, Backbones]) -> dict[str, torch.Tensor]:
    fusion, backbones = networks
    parts = {"fusion": fusion, "visual": backbones.visual, "audio": backbones.audio}
    return {
        f"{part}.{key}": value.clone() for part, module in parts.items() for key, value in module.state_dict().items()
    }


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def clips(split: Split, tmp_path: Path) -> SequenceClips:
    graph = ClipGraph(FEATURES.frames, FEATURES.sound, threads=1)
    reader = ClipReader(split["train"], graph, 16, every=True)
    return SequenceClips(tmp_path / "sound", ClipCache(tmp_path / "frames", reader), 16)


def test_gradients_are_those_of_plain_pytorch(clips: SequenceClips, make: Callable) -> None:
    """Of every parameter of backbones, GRU and fusion, in float64, clip by clip and with the plain model."""
    fusion, backbones = make()
    whole = WholeModel(fusion, backbones, FEATURES.frames).double().train()
    sampler = SequenceSampler(clips.videos, length=3, batch=4, seed=0)
    batches = [batch for _, batch in clips.epoch(sampler, 1)]
    pictures, sounds, present, target, known = next(each for each in batches if not each[2].all())  # with padding
    target, known = target.double(), known & (torch.rand(known.shape, generator=torch.manual_seed(0)) < 0.8)
    loss = (1 - ccc(whole(pictures, sounds.double(), present), target, known)).sum()
    loss.backward()
    found = {f"fusion.{name}": grad for name, grad in fusion.named_gradients().items()}
    found |= {name: each.grad for name, each in whole.named_parameters() if not name.startswith("fusion.")}

    plain = ReferenceJMT(MODEL).double()
    plain.load_state_dict(fusion.state_dict())
    _, twins = make()
    visual, audio = twins.visual.double().eval(), twins.audio.double().eval()
    heard, seen = torch.zeros(4, 3, 8, dtype=torch.float64), torch.zeros(4, 3, 8, dtype=torch.float64)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (FEATURES.frames.mean, FEATURES.frames.std))
    for row in range(4):
        count = int(present[row].sum())
        assert present[row, :count].all()
        if count:
            frames = (pictures[row, :count].double() / 255 - mean) / std
            seen[row, :count] = visual(frames.permute(0, 4, 1, 2, 3))
            heard[row, :count] = audio.gru(audio(sounds[row, :count].double())[None])[0][0]
    expected = (1 - ccc(plain(heard, seen, present), target, known)).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)  # mean and scale are float32 numbers
    for part, module in (("fusion", plain), ("visual", visual), ("audio", audio)):
        for name, each in module.named_parameters():
            assert each.grad is not None and each.grad.abs().max() > 1e-9, (part, name)
            difference = (found[f"{part}.{name}"] - each.grad).norm() / each.grad.norm()
            assert difference < 1e-5, (part, name, difference)


def test_all_parts_learn_and_statistics_stay(make: Callable, fit: Callable, split: Split, tmp_path: Path) -> None:
    networks, runtime = make(), Runtime.choose("cpu", "fp32", compile=False)
    before = state(networks)
    result = fit(networks, out=tmp_path / "run")
    after = state(networks)
    moved = changed(before, after)
    statistics = {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert not moved & statistics
    assert before.keys() - statistics - moved == set()  # every parameter moved
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "last.pt", "metrics.jsonl"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == len(result.history) == 3

    best = Checkpoint.load(tmp_path / "run" / "best")
    assert not changed(state((best.fusion, best.backbones)), after)
    store = open_store(tmp_path / "store", best.features, best.backbones, 16, runtime)
    videos = labelled_videos(split["validation"], store, best.backbones, runtime).split("validation")
    again = evaluate(best.fusion, best.backbones.audio, videos)
    np.testing.assert_allclose(again.pooled, result.best_ccc, atol=5e-3)  # frames were rounded once more


def test_frozen_parts_stay(make: Callable, fit: Callable) -> None:
    networks = make()
    before = state(networks)
    fit(networks, CONFIG.model_copy(update={"freeze": ("visual.layer1", "audio.gru"), "epochs": 1}))
    moved = changed(before, state(networks))
    assert not any(name.startswith(("visual.layer1.", "audio.gru.")) for name in moved)
    assert {name.split(".")[0] for name in moved} == {"fusion", "visual", "audio"}
    assert all(parameter.requires_grad for parameter in networks[1].visual.parameters())


def test_a_baseline_leaves_the_backbone_alone_that_it_does_not_hear(make: Callable, fit: Callable) -> None:
    networks = JMT(MODEL.model_copy(update={"fusion": "visual"})), make()[1]
    before = state(networks)
    fit(networks, CONFIG.model_copy(update={"epochs": 1, "weight_decay": 0.1}))
    assert {name.split(".")[0] for name in changed(before, state(networks))} == {"fusion", "visual"}


def test_each_part_has_its_rate(make: Callable, fit: Callable) -> None:
    networks = make()
    before = state(networks)
    config = UnfrozenTraining(lr=1e-2, visual_lr=1e-12, audio_lr=1e-3, batch=4, epochs=1, stride=16)
    fit(networks, config)
    after = state(networks)
    steps = {
        part: max(float((after[name] - before[name]).abs().max()) for name in before if name.startswith(part))
        for part in ("fusion", "visual", "audio")
    }
    assert steps["visual"] < 1e-7 < steps["audio"] and steps["fusion"] > 1e-5, steps


def test_freezing_what_is_not_there_or_everything(make: Callable, fit: Callable) -> None:
    with pytest.raises(JMTError, match=r"freeze=visual.layer9: no such part; choose fusion, visual"):
        fit(make(), CONFIG.model_copy(update={"freeze": ("visual.layer9",)}))
    with pytest.raises(JMTError, match="nothing is left to train"):
        fit(make(), UnfrozenTraining(freeze="visual,audio, fusion"))


def test_a_resumed_run_ends_with_the_same_bits(make: Callable, fit: Callable, tmp_path: Path) -> None:
    whole, resumed = make(), make()
    config = CONFIG.model_copy(update={"schedule": "cosine"})
    expected = fit(whole, config)

    def interrupt(done: int, total: int, note: str) -> None:
        if note == "epoch 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(make(), config, out=tmp_path, progress=interrupt)
    with pytest.raises(CheckpointError, match=r"visual_lr=0\.02, not 0\.5"):
        fit(make(), config.model_copy(update={"visual_lr": 0.5}), out=tmp_path, resume=True)
    result = fit(resumed, config, out=tmp_path, resume=True)
    assert [entry["loss"] for entry in result.history] == [entry["loss"] for entry in expected.history]
    assert not changed(state(whole), state(resumed))
    assert not list(tmp_path.glob("frames-*"))


def test_early_stopping(make: Callable, fit: Callable) -> None:
    config = UnfrozenTraining(lr=1e-12, visual_lr=1e-12, audio_lr=1e-12, batch=4, epochs=9, patience=2, stride=16)
    result = fit(make(), config)
    assert len(result.history) - result.best_epoch == 2


def test_a_split_without_labels(make: Callable, split: Split) -> None:
    bare = [Recording(each.name, each.video, None) for each in split["validation"]]
    with pytest.raises(DataError, match="none of the 1 validation videos has a label"):
        fit_unfrozen(*make(), FEATURES, split["train"], bare, CONFIG, Runtime.choose("cpu", "fp32", compile=False))


def test_batches_hold_one_random_phase_a_video_and_one_transform_a_clip(clips: SequenceClips) -> None:
    sampler = SequenceSampler(clips.videos, length=3, batch=4, seed=0)
    batches = list(clips.epoch(sampler, 1))
    again = list(clips.epoch(sampler, 1))
    assert all(
        torch.equal(a, b)
        for (_, one), (_, two) in zip(batches, again, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    stored = [np.append(np.argsort(features.rows), -1) for features in sampler.features]  # rows count phase by phase
    drawn = [(video, stored[video][row]) for video, row in zip(*sampler.draw(1), strict=True)]
    labels = [clip_labels(each.labels, each.features.timestamps, each.features.times) for each in clips.videos]
    assert len({(video, int(row[0]) % 2) for video, row in drawn}) == len(clips.videos)  # of two phases, one
    for number, (names, (pictures, sounds, present, target, known)) in enumerate(batches):
        assert pictures.shape == (4, 3, 8, 16, 16, 3) and sounds.shape == (4, 3, 1, 64, 107)
        for place, (video, row) in enumerate(drawn[4 * number : 4 * number + 4]):
            assert clips.videos[video].name in names
            assert present[place].tolist() == (row >= 0).tolist()
            for clip in np.flatnonzero(row >= 0):
                _, sound = clips.inputs(clips.videos[video], row[clip], row[clip] + 1)
                assert torch.equal(sounds[place, clip], sound[0])
                assert torch.equal(target[place, clip], torch.from_numpy(labels[video][0][row[clip]]))
                assert bool(known[place, clip]) == labels[video][1][row[clip]]
                assert transformed(clips, video, row[clip], pictures[place, clip]), (place, clip)
        assert not pictures[~present].any() and not sounds[~present].any()
    assert not torch.equal(batches[0][1][0], next(clips.epoch(sampler, 2))[1][0])


def transformed(clips: SequenceClips, video: int, clip: int, shown: torch.Tensor) -> bool:
    """Whether one crop and flip of all frames of the clip gives what is shown."""
    first = int(np.flatnonzero(clips.clips.videos == video)[0])
    frames = np.stack(clips.clips.frames(first + clip))  # (8, h, w, 3)
    for top in range(frames.shape[1] - 15):
        for left in range(frames.shape[2] - 15):
            part = frames[:, top : top + 16, left : left + 16]
            if np.array_equal(part, shown) or np.array_equal(part[:, :, ::-1], shown):
                return True
    return False


def test_parts_are_together_the_batch(clips: SequenceClips) -> None:
    def read(part: tuple[int, int]) -> list[tuple[torch.Tensor, ...]]:
        sampler = SequenceSampler(clips.videos, length=3, batch=4, seed=2, part=part)
        return [batch for _, batch in clips.epoch(sampler, 1)]

    for whole, *parts in zip(read((0, 1)), read((0, 2)), read((1, 2)), strict=True):
        joined = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(joined, whole, strict=True))
