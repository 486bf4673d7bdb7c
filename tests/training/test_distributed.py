"""Several processes against one: gradients, a killed rank, another number of ranks, what each one reads."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jmt_fast.errors import DataError
from jmt_fast.runtime import Runtime
from jmt_fast.training import LabelledVideo
from jmt_fast.training.batches import SequenceSampler

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "ranks.py"
spec = importlib.util.spec_from_file_location("ranks", WORKER)
assert spec and spec.loader
ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)


def torchrun(*arguments: object, processes: int = 2, restarts: int = 0) -> subprocess.CompletedProcess:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}", "--monitor-interval=0.1", *map(str, arguments),
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


def history(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in two processes that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    shown = torchrun(WORKER, "fit", out)
    assert shown.returncode == 0, shown.stderr
    return out


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gradients", "compiled"])
def test_gradients_are_those_of_one_process(tmp_path: Path, what: str) -> None:
    """In float64, with labels on both ranks, on one alone, of one clip, and none at all."""
    shown = torchrun(WORKER, what, tmp_path)
    assert shown.returncode == 0, shown.stderr
    expected = ranks.gradients(Runtime.choose("cpu", "fp32", compile=False))
    assert all(any(value.abs().max() > 1e-4 for value in step.values()) for step in expected[:4])
    for rank in range(2):
        for step, (found, one) in enumerate(zip(torch.load(tmp_path / f"rank{rank}.pt"), expected, strict=True)):
            for name, value in one.items():
                torch.testing.assert_close(
                    found[name], value, rtol=1e-9, atol=1e-12, msg=lambda text, at=(rank, step, name): f"{at}: {text}"
                )


@pytest.mark.slow
def test_ranks_hold_the_same_weights_and_the_first_one_writes(whole: Path) -> None:
    first, second = (torch.load(whole / f"weights{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(history(whole)) == ranks.CONFIG.epochs
    assert not list(whole.rglob("*.part"))


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_run_ends_with_the_same_weights(whole: Path, tmp_path: Path) -> None:
    shown = torchrun(WORKER, "fit", tmp_path, 3, restarts=1)
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "died").exists()
    expected, found = (torch.load(out / "weights0.pt") for out in (whole, tmp_path))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert history(tmp_path) == history(whole)


@pytest.mark.slow
def test_one_process_takes_up_what_two_began(whole: Path, tmp_path: Path) -> None:
    stopped = torchrun(WORKER, "fit", tmp_path, 3, int(signal.SIGTERM))
    assert stopped.returncode == 1
    assert history(tmp_path) == history(whole)[:2]
    ranks.fit(tmp_path, resume=True)
    assert history(tmp_path)[:2] == history(whole)[:2]
    assert len(history(tmp_path)) == ranks.CONFIG.epochs
    assert torch.load(tmp_path / "weights0.pt").keys() == torch.load(whole / "weights0.pt").keys()


@pytest.mark.parametrize(("batch", "parts"), [(4, 2), (3, 2), (5, 4), (64, 3), (2, 1)])
def test_parts_are_disjoint_and_together_the_epoch(train: list[LabelledVideo], batch: int, parts: int) -> None:
    def read(part: tuple[int, int], epoch: int) -> list[tuple[str, torch.Tensor]]:
        sampler = SequenceSampler(train, length=4, batch=batch, seed=2, part=part)
        return [(names, rows.visual) for block in sampler.blocks(epoch) for names, rows in sampler.cut(*block)]

    alone = read((0, 1), 1)
    for step in zip(alone, *(read((number, parts), 1) for number in range(parts)), strict=True):
        (names, rows), *shares = step
        assert [name for name, _ in shares] == [names] * parts  # a message names all that the loss was made of
        assert len({share.shape for _, share in shares}) == 1
        joined = torch.cat([share for _, share in shares])
        assert torch.equal(joined[:batch], rows)
        assert not joined[batch:].any()
    again, other = read((0, parts), 1), read((0, parts), 2)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(again, read((0, parts), 1), strict=True))
    assert not np.array_equal(again[0][1], other[0][1])


def test_a_batch_smaller_than_the_number_of_processes_is_an_error(train: list[LabelledVideo]) -> None:
    with pytest.raises(DataError, match="batches of 2 sequences cannot be shared by 3 processes"):
        SequenceSampler(train, length=8, batch=2, seed=0, part=(0, 3))
