"""Backbones, alone and with the fusion, trained in two processes against one: each step, what is on disk, a kill."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jmt_fast.data.synthetic import synthesise
from jmt_fast.training import LabelledVideo

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "backbone_ranks.py"
spec = importlib.util.spec_from_file_location("backbone_ranks", WORKER)
assert spec and spec.loader
ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)

Found = list[dict[str, dict[str, torch.Tensor]]]


def torchrun(data: Path, out: Path, *more: object, restarts: int = 0) -> Found:
    """What both ranks found."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        f"--max-restarts={restarts}", "--monitor-interval=0.1", *map(str, (WORKER, data, out, *more)),
    ]  # fmt: skip
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert shown.returncode == 0, shown.stderr
    return [torch.load(out / f"rank{rank}.pt") for rank in range(2)]


def history(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    synthesise(folder, 5, 4.0, seed=1, size=32, fps=15)
    return folder


@pytest.fixture
def videos(data: Path, make_video: Callable[..., LabelledVideo]) -> list[LabelledVideo]:
    made = [make_video(f"v{number}", 500 + 97 * number) for number in range(5)]
    torch.save(made, data / "videos.pt")
    return made


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.mark.slow
def test_two_processes_train_as_one(data: Path, videos: list[LabelledVideo], out: Path, tmp_path: Path) -> None:
    found = torchrun(data, out)
    expected = ranks.gradients()
    for rank in found:
        for step, state in expected.items():
            for name, value in state.items():
                torch.testing.assert_close(
                    rank[step][name], value, rtol=1e-9, atol=1e-12, msg=lambda text, at=(step, name): f"{at}: {text}"
                )
    expected = ranks.fit(data, videos, tmp_path)
    for kind in ("visual", "audio", "unfrozen"):
        one, two = history(tmp_path / kind), history(out / kind)
        assert [entry["epoch"] for entry in two] == [1, 2]
        for mine, theirs in zip(one, two, strict=True):  # float32: roundings differ, and grow
            assert theirs == pytest.approx(mine, abs=5e-4)
        for name, value in expected[kind].items():
            assert torch.equal(found[0][kind][name], found[1][kind][name])
            torch.testing.assert_close(found[0][kind][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_killed_rank_is_started_again(data: Path, videos: list[LabelledVideo], out: Path, tmp_path: Path) -> None:
    found = torchrun(data, tmp_path, 2, restarts=1)
    assert (tmp_path / "died").exists()
    assert not list(tmp_path.rglob("frames-*"))  # nor does what the dead ones had decoded stay
    whole = torch.load(out / "rank0.pt")
    for kind in ("visual", "audio", "unfrozen"):
        assert history(tmp_path / kind) == history(out / kind)
        assert all(torch.equal(found[0][kind][name], value) for name, value in whole[kind].items())
