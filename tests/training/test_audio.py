"""Training of the GRU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jmt_fast.config import AudioTraining
from jmt_fast.models import AudioBackbone
from jmt_fast.runtime import Runtime
from jmt_fast.training import LabelledVideo, fit_audio_gru


def test_the_gru_learns_and_nothing_else_changes(
    audio_backbone: AudioBackbone, train: list[LabelledVideo], validation: list[LabelledVideo], runtime: Runtime,
    tmp_path: Path,
) -> None:  # fmt: skip
    before = {name: value.clone() for name, value in audio_backbone.state_dict().items()}
    audio_backbone.requires_grad_(False)
    config = AudioTraining(lr=1e-2, batch=8, epochs=6)
    result = fit_audio_gru(audio_backbone, train, validation, config, runtime, out=tmp_path)
    after = audio_backbone.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in after if name.startswith("gru.")}
    assert not any(parameter.requires_grad for parameter in audio_backbone.parameters())
    assert result.best_ccc[1] > 0.7  # arousal is in the sound
    saved = load_file(tmp_path / "best" / "gru.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in audio_backbone.gru.state_dict().items())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(result.history) == 6


def test_early_stopping_and_resume(
    audio_backbone: AudioBackbone, train: list[LabelledVideo], validation: list[LabelledVideo], runtime: Runtime,
    tmp_path: Path,
) -> None:  # fmt: skip
    start = {name: value.clone() for name, value in audio_backbone.state_dict().items()}
    config = AudioTraining(lr=3e-2, batch=16, epochs=40, patience=2)
    result = fit_audio_gru(audio_backbone, train, validation, config, runtime)
    expected = {name: value.clone() for name, value in audio_backbone.state_dict().items()}
    stopped = len(result.history)
    assert stopped < 40 and stopped - result.best_epoch == 2
    assert json.dumps(result.history)

    def interrupt(done: int, total: int, note: str) -> None:
        if note == "epoch 2":
            raise KeyboardInterrupt

    audio_backbone.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        fit_audio_gru(audio_backbone, train, validation, config, runtime, out=tmp_path, progress=interrupt)
    audio_backbone.load_state_dict(start)
    again = fit_audio_gru(audio_backbone, train, validation, config, runtime, out=tmp_path, resume=True)
    assert len(again.history) == stopped
    assert all(torch.equal(value, expected[name]) for name, value in audio_backbone.state_dict().items())
