"""What all ops rely on when they start kernels: the device of their tensors, and no code of earlier versions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._library.triton import get_triton_kernels_for_op

from jmt_fast.kernels import launch
from jmt_fast.kernels.sigmoid_attention.kernel import within_reach

KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.mark.parametrize(
    ("op", "names"),
    [
        ("sigmoid_attention", {"sigmoid_attention_forward"}),
        ("sigmoid_attention_backward",
         {f"sigmoid_attention_backward_{part}" for part in ("keys", "queries", "whole")}),
        ("fused_attention", {"project_attend", "project", "attend"}),
        ("fused_attention_backward", {"attend_backward"}),
        ("ccc_loss", {"statistics", "combine"}),
        ("ccc_loss_backward", {"gradient"}),
    ],
)  # fmt: skip
def test_torch_finds_the_kernels_of_an_op(op: str, names: set[str]) -> None:
    """It keys its cache of compiled graphs by them."""
    assert {kernel.__name__ for kernel in get_triton_kernels_for_op(f"jmt_fast::{op}")} == names  # type: ignore[attr-defined]


@pytest.mark.slow
def test_what_was_compiled_from_other_sources_is_not_taken_from_the_disk(tmp_path: Path) -> None:
    package = tmp_path / "kernels"
    shutil.copytree(KERNELS, package, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import torch\n"
        "from kernels import sigmoid_attention\n"
        "q = torch.ones(1, 1, 4, 8)\n"
        "out = torch.compile(lambda q: sigmoid_attention(q, q, q))(q)\n"
        "print(out.max().item(), torch._dynamo.utils.counters['aot_autograd']['autograd_cache_hit'])\n"
    )
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}

    def run() -> list[float]:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return [float(word) for word in done.stdout.split()]

    (first, hits), again = run(), run()
    assert hits == 0 and again == [first, 1]  # the cache works
    formula = package / "sigmoid_attention" / "reference.py"
    formula.write_text(formula.read_text().replace("@ v32).to(q.dtype)", "@ v32).to(q.dtype) * 2"))
    assert run() == [2 * first, 0]


def test_launches_go_to_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []

    class Guard:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "device", Guard)
    for devices, device in ((1, "cuda:0"), (2, "cpu"), (2, "cuda:1")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda devices=devices: devices)
        with launch.on_device(torch.device(device)):
            pass
    assert entered == [torch.device("cuda:1")]


def test_rows_too_far_apart_for_32_bits_are_copied() -> None:
    x = torch.empty(1, 1, 300, 16, device="meta")
    for stride in ((1, 1, 2**24 - 1, 1), (1, 1, 16, 2**22)):
        assert within_reach(x.as_strided(x.shape, stride)).is_contiguous()
    strided = (x.as_strided(x.shape, (1, 1, 2**22, 1)), x.as_strided(x.shape, (1, 1, 1, 300)))
    for near in (x, *strided, x.expand(4, 2, 300, 16)):
        assert within_reach(near) is near
