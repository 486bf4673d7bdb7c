"""Training of the fusion from end to end: learning, selection, resuming, and all that can go wrong."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jmt_fast.config import FusionTraining
from jmt_fast.errors import CheckpointError, DataError, JMTError
from jmt_fast.models import JMT, AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training import FitResult, LabelledVideo, evaluate, fit_fusion
from jmt_fast.training.fusion import rate

CONFIG = FusionTraining(lr=5e-3, momentum=0.9, epochs=4, stride=8)
Fit = Callable[..., FitResult]


@pytest.fixture
def fit(
    audio_backbone: AudioBackbone, train: list[LabelledVideo], validation: list[LabelledVideo], runtime: Runtime
) -> Fit:
    def call(model: JMT, config: FusionTraining = CONFIG, **options: object) -> FitResult:
        return fit_fusion(model, audio_backbone, train, validation, config, runtime, **options)  # type: ignore[arg-type]

    return call


def stop_in(epoch: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[[int, int, str], None]:
    """Progress that is interrupted in the middle of an epoch."""

    def progress(done: int, total: int, note: str) -> None:
        if note == f"epoch {epoch}" and done % 1000 > 500:
            raise error

    return progress


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(model: JMT) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_learns_and_returns_the_best_epoch(
    make_model: Callable[..., JMT], audio_backbone: AudioBackbone, validation: list[LabelledVideo], fit: Fit,
    tmp_path: Path,
) -> None:  # fmt: skip
    model, seen = make_model(), []
    gru = {name: value.clone() for name, value in audio_backbone.state_dict().items()}
    result = fit(model, out=tmp_path, progress=lambda done, total, note: seen.append((done, total)))
    assert result.best_ccc.mean() > 0.5
    assert result.best_epoch == 1 + int(np.argmax([entry["mean"] for entry in result.history]))
    again = evaluate(model, audio_backbone, validation)
    np.testing.assert_allclose(again.pooled, result.best_ccc, atol=1e-6)
    assert all(torch.equal(value, gru[name]) for name, value in audio_backbone.state_dict().items())
    assert seen == sorted(seen) and seen[-1] == (4000, 4000)

    assert same(weights(JMT.from_pretrained(tmp_path / "best")), weights(model))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_a_resumed_run_ends_with_the_same_bits(
    make_model: Callable[..., JMT], fit: Fit, tmp_path: Path, epoch: int
) -> None:
    whole = make_model(head_dropout=0.3)
    expected = fit(whole, out=tmp_path / "whole")
    torch.manual_seed(123)  # what happens to the global random state must not matter
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(head_dropout=0.3), out=tmp_path / "parts", progress=stop_in(epoch))
    model = make_model(seed=5, head_dropout=0.3)
    if epoch == 1:  # no state yet: the run starts over, from the weights it is given
        model = make_model(head_dropout=0.3)
    result = fit(model, out=tmp_path / "parts", resume=True)
    assert same(weights(model), weights(whole))
    final = [torch.load(tmp_path / run / "last.pt", weights_only=True)["state"] for run in ("whole", "parts")]
    assert same(final[0]["module"], final[1]["module"])

    def timeless(history: list[dict]) -> list[dict]:
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]

    assert timeless(result.history) == timeless(expected.history)
    again = fit(make_model(seed=6, head_dropout=0.3), out=tmp_path / "parts", resume=True)  # nothing is left to do
    assert again.best_epoch == expected.best_epoch


def test_training_leaves_the_global_random_state_alone(make_model: Callable[..., JMT], fit: Fit) -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    fit(make_model(head_dropout=0.3), CONFIG.model_copy(update={"epochs": 1}))
    assert torch.equal(torch.rand(3), expected)


def test_resume_refuses_another_run(
    make_model: Callable[..., JMT], fit: Fit, train: list[LabelledVideo], validation: list[LabelledVideo],
    tmp_path: Path,
) -> None:  # fmt: skip
    short = CONFIG.model_copy(update={"epochs": 1})
    fit(make_model(), short, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"training\.lr=0\.005, not 0\.1"):
        fit(make_model(), short.model_copy(update={"lr": 0.1}), out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"model\.layers=1, not 2"):
        fit(make_model(layers=2), short, out=tmp_path, resume=True)
    for changed, reason in (
        (train[3].labels[200:210], "labels in the train split"),
        (validation[1].labels[200:210], "labels in the validation split"),
        (train[3].features.clips[-1:], "features in the train split"),
        (validation[1].features.clips[-1:], "features in the validation split"),
    ):
        before = changed.copy() if isinstance(changed, np.ndarray) else changed.clone()
        changed[:] = 0.5
        with pytest.raises(CheckpointError, match=f"made with other {reason}; resume with") as caught:
            fit(make_model(), short, out=tmp_path, resume=True)
        assert "\n" not in str(caught.value)
        changed[:] = before
    last = validation.pop()
    with pytest.raises(CheckpointError, match="made with other videos in the validation split"):
        fit(make_model(), short, out=tmp_path, resume=True)
    validation.append(last)
    fit(make_model(), short, out=tmp_path, resume=True)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_state_is_one_line(
    make_model: Callable[..., JMT], fit: Fit, tmp_path: Path, damage: bytes | None
) -> None:
    fit(make_model(), CONFIG.model_copy(update={"epochs": 1}), out=tmp_path)
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:5000] if damage is None else damage)
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged") as caught:
        fit(make_model(), CONFIG.model_copy(update={"epochs": 1}), out=tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_good(
    make_model: Callable[..., JMT], fit: Fit, train: list[LabelledVideo], tmp_path: Path
) -> None:
    train[3] = LabelledVideo(train[3].features.by_phase(), train[3].labels)  # as from a store: read when it is needed
    before = {}

    def spoil(done: int, total: int, note: str) -> None:
        if note.startswith("epoch 1: "):
            before.update(files(tmp_path))
            train[3].features.visual[:] = float("nan")

    with pytest.raises(JMTError, match=r"^epoch 2, batch \d+ \(.*train3.*\): the loss is not finite") as caught:
        fit(make_model(), out=tmp_path, progress=spoil)
    assert "\n" not in str(caught.value)
    assert before == files(tmp_path)
    assert all(value.isfinite().all() for value in JMT.from_pretrained(tmp_path / "best").state_dict().values())


def test_validation_features_that_are_not_finite_are_named(
    make_model: Callable[..., JMT], fit: Fit, validation: list[LabelledVideo], tmp_path: Path
) -> None:
    validation[1].features.audio[20:24] = float("nan")
    with pytest.raises(JMTError, match=r"^validation1: predictions .* not finite.*extract these features again$"):
        fit(make_model(), out=tmp_path)
    assert not files(tmp_path)


@pytest.mark.parametrize("limit", [3_000, 40_000])
def test_a_full_disk_leaves_the_checkpoint_before_it(
    make_model: Callable[..., JMT], fit: Fit, tmp_path: Path, limit: int
) -> None:
    """A limit on the size of files acts as a disk that is full after so many bytes."""
    whole = make_model()
    expected = fit(whole, out=tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before: dict[Path, bytes] = {}

    def fill(done: int, total: int, note: str) -> None:
        if note == "epoch 2" and not before:
            before.update({path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()})
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    try:
        with pytest.raises(JMTError, match=r"cannot be written .* what was there before is whole") as caught:
            fit(make_model(), out=tmp_path / "full", progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    model = make_model(seed=8)
    result = fit(model, out=tmp_path / "full", resume=True)
    assert result.best_epoch == expected.best_epoch
    assert same(weights(model), weights(whole))


def test_a_place_that_cannot_be_written_is_said_first(make_model: Callable[..., JMT], fit: Fit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JMTError, match="cannot be written"):
        fit(make_model(), out=tmp_path / "file")


def test_data_that_cannot_be_trained_on(
    make_model: Callable[..., JMT], make_video: Callable[..., LabelledVideo], audio_backbone: AudioBackbone,
    train: list[LabelledVideo], runtime: Runtime,
) -> None:  # fmt: skip
    silent = make_video("silent", unlabelled=slice(None))
    for wrong, held_out, message in [
        ([silent], train[:1], "labelled clip"),
        (train, [silent], "labelled frame"),
        (train, [], "validation split is empty"),
    ]:
        with pytest.raises(DataError, match=message):
            fit_fusion(make_model(), audio_backbone, wrong, held_out, CONFIG, runtime)


@pytest.mark.parametrize("schedule", ["step", "cosine", "plateau"])
def test_schedules_resume_to_the_same_bits(
    make_model: Callable[..., JMT], fit: Fit, tmp_path: Path, schedule: str
) -> None:
    config = CONFIG.model_copy(update={"schedule": schedule, "clip_norm": 0.5, "patience": 2})
    whole, constant, model = make_model(), make_model(), make_model()
    expected = fit(whole, config, out=tmp_path / "whole")
    fit(constant, config.model_copy(update={"schedule": "constant"}))
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), config, out=tmp_path / "parts", progress=stop_in(3))
    result = fit(model, config, out=tmp_path / "parts", resume=True)
    assert result.best_epoch == expected.best_epoch
    assert same(weights(model), weights(whole))
    if schedule != "plateau":  # which has no reason to slow down while the model gains
        assert not same(weights(constant), weights(whole))


def test_the_rate_of_each_schedule() -> None:
    def rates(schedule: str, gains: list[bool], **fields: object) -> list[float]:
        config = FusionTraining(schedule=schedule, epochs=len(gains) + 1, **fields)  # type: ignore[arg-type]
        return [rate(config, [{"improved": gain} for gain in gains[:epoch]]) for epoch in range(len(gains) + 1)]

    assert rates("step", [True] * 5) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rates("cosine", [True] * 3) == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
    gains = [True, False, False, True, False, False, False]
    assert rates("plateau", gains, patience=4) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert rates("constant", [True] * 2) == [1, 1, 1]


def test_gradients_are_clipped(make_model: Callable[..., JMT], fit: Fit) -> None:
    """SGD without momentum moves a step by lr times the gradient, which is at most `clip_norm` long."""
    model = make_model()
    before = weights(model)
    config = FusionTraining(lr=1.0, epochs=1, stride=8, clip_norm=1e-4, batch=1000)
    result = fit(model, config)
    moved = sum(
        float((value.double() - before[name].double()).square().sum()) for name, value in weights(model).items()
    )
    assert result.best_epoch == 1
    assert 0 < moved**0.5 <= 1.01e-4


def test_a_video_without_a_label_beside_others_is_passed_over(
    make_model: Callable[..., JMT], make_video: Callable[..., LabelledVideo], audio_backbone: AudioBackbone,
    train: list[LabelledVideo], validation: list[LabelledVideo], runtime: Runtime,
) -> None:  # fmt: skip
    silent = make_video("silent", unlabelled=slice(None))
    one = CONFIG.model_copy(update={"epochs": 1})
    plain, beside = make_model(), make_model()
    expected = fit_fusion(plain, audio_backbone, train, validation, one, runtime)
    found = fit_fusion(beside, audio_backbone, train, [*validation, silent], one, runtime)
    assert np.array_equal(found.best_ccc, expected.best_ccc)
    result = fit_fusion(make_model(), audio_backbone, [*train, silent], validation, one, runtime)
    assert np.isfinite(result.history[0]["loss"])


def test_batches_with_one_valid_clip_do_no_harm(
    make_model: Callable[..., JMT], make_video: Callable[..., LabelledVideo], audio_backbone: AudioBackbone,
    validation: list[LabelledVideo], runtime: Runtime,
) -> None:  # fmt: skip
    """One clip has no variance: its CCC is 0, the loss 2, whatever the model says."""
    nearly = make_video("nearly", stride=32, unlabelled=slice(1, None))
    model = make_model()
    config = CONFIG.model_copy(update={"epochs": 1, "stride": 32})
    result = fit_fusion(model, audio_backbone, [nearly], validation, config, runtime)
    assert result.history[0]["loss"] == pytest.approx(2, abs=1e-3)
    assert all(value.isfinite().all() for value in weights(model).values())


def test_watch_sees_each_epoch_and_may_end_the_run(make_model: Callable[..., JMT], fit: Fit, tmp_path: Path) -> None:
    seen = []

    def watch(entry: dict) -> None:
        seen.append(entry)
        if entry["epoch"] == 2:
            raise StopIteration

    with pytest.raises(StopIteration):
        fit(make_model(), out=tmp_path, watch=watch)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == seen


@pytest.mark.parametrize("kind", ["audio", "visual", "concat", "cross_attention"])
def test_baselines_train_through_the_same_loop(make_model: Callable[..., JMT], fit: Fit, kind: str) -> None:
    result = fit(make_model(fusion=kind), CONFIG.model_copy(update={"epochs": 2}))
    assert np.isfinite(result.best_ccc).all()
    assert result.history[-1]["loss"] < 2
