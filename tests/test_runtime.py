"""Which device: what is not there is one line that says what there is."""

from __future__ import annotations

import pytest
import torch

from jmt_fast.errors import JMTError
from jmt_fast.runtime import Runtime
from jmt_fast.training.distributed import processes


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("device", ["cuda:2", "cuda:9", "cuda:300"])
def test_a_gpu_that_is_not_there(two_gpus: None, device: str) -> None:
    with pytest.raises(JMTError, match=rf"^device {device}: PyTorch finds 2 CUDA devices here; use one up to cuda:1$"):
        Runtime.choose(device, "fp32", compile=False)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_devices_that_are_there(two_gpus: None, device: str) -> None:
    assert Runtime.choose(device, "fp32", compile=False).device == torch.device(device)


def test_no_gpu_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(JMTError, match=r"^device cuda:0: PyTorch finds no CUDA device here; use --device cpu$"):
        Runtime.choose("cuda:0", "fp32", compile=False)
    assert Runtime.choose("auto", "fp32", compile=False).device.type == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "mps", ""])
def test_an_unknown_device(two_gpus: None, device: str) -> None:
    with pytest.raises(JMTError, match=rf"^device '{device}' is unknown: choose auto, cpu, cuda or cuda:N$"):
        Runtime.choose(device, "fp32", compile=False)


def test_more_processes_than_gpus(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    line = "rank 2 of the 4 on this machine has no GPU, as there are 2; start so many with torchrun --nproc-per-node=2"
    with pytest.raises(JMTError, match=f"^{line}$"):
        with processes(Runtime.choose("cuda", "fp32", compile=False)):
            pass
