"""Processes that die of a job, really: the job is found and set aside, and every other one is done, once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from jmt_fast.errors import JMTError
from jmt_fast.inference import workers
from jmt_fast.inference.workers import Crew, Job, Result, run_here


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import jobs

    return jobs


@pytest.fixture
def done(jobs: ModuleType, tmp_path: Path) -> Callable[..., tuple[dict[int, Result], list[str]]]:
    """done(crew, tasks) -> results by number, and the processes' lines."""

    def call(crew: Crew, tasks: Sequence[str], **make: object) -> tuple[dict[int, Result], list[str]]:
        births = tmp_path / "births"
        births.write_text("")
        results = list(crew(jobs.Make(births, **make), [Job(*each) for each in enumerate(tasks)], lambda *_: None))
        assert sorted(result.number for result in results) == list(range(len(tasks)))
        lines = births.read_text().splitlines()
        assert not [line for line in lines if Path("/proc", line.split()[0]).exists()]
        return {result.number: result for result in results}, lines

    return call


DEADLY = {
    "segfault": "died of SIGSEGV",
    "exit": "ended with code 7",
    "kill": "died of SIGKILL",
    "hang": "no progress for 1 s",
    "eat": "took more than 0.5 GiB",
    "bug": "ZeroDivisionError: division by zero",
}


def test_what_kills_a_process_is_set_aside_and_the_rest_is_done(done: Callable) -> None:
    tasks = [f"work {number}" for number in range(12)]
    for place, kind in enumerate(DEADLY):
        tasks.insert(2 * place, kind)
    tasks.insert(5, "media")
    tasks.insert(9, "slow")
    results, lines = done(Crew(2, together=2, patience=1.0, memory=2**29), tasks)
    for number, task in enumerate(tasks):
        result = results[number]
        if task in DEADLY:
            assert result.deadly and DEADLY[task] in result.error and "\n" not in result.error
        elif task == "media":
            assert result.error == "film: no video stream; give another" and not result.deadly
        else:
            assert not result.error and result.value
    assert {line.split()[1] for line in lines} == {"0", "1"}  # a replacement takes the place, and the GPU with it


def test_a_process_killed_from_outside_costs_nothing(done: Callable, tmp_path: Path) -> None:
    """Whoever was in work is tried again, alone: nobody is blamed for what came from elsewhere."""

    def shoot() -> None:
        births = tmp_path / "births"
        while not births.exists() or len(births.read_text().split("\n")) < 3:
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(int(births.read_text().split()[0]), signal.SIGKILL)

    gun = threading.Thread(target=shoot)
    gun.start()
    results, lines = done(Crew(2, together=2), [f"slow {number}" for number in range(4)])
    gun.join()
    assert len(lines) > 2
    assert not [result for result in results.values() if result.error]


@pytest.mark.parametrize("young", [0.0, 600.0])
def test_processes_are_renewed_between_jobs(done: Callable, monkeypatch: pytest.MonkeyPatch, young: float) -> None:
    """After so many jobs, and a while; nothing is lost, and nobody is a suspect for it."""
    monkeypatch.setattr(workers, "YOUNG", young)
    tasks = [f"work {number}" for number in range(40)]
    tasks[7] = "media"
    results, lines = done(Crew(2, together=2, jobs=5), tasks)
    served = Counter(result.value.split()[2] for result in results.values() if not result.error)
    assert [number for number, result in results.items() if result.error] == [7]
    assert not results[7].deadly
    assert {line.split()[1] for line in lines} == {"0", "1"}
    if young:
        assert len(lines) == 2
    else:
        assert max(served.values()) == 5
        assert len(lines) >= 8


def test_a_renewed_crew_still_finds_who_kills(done: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "YOUNG", 0.0)
    tasks = [f"work {number}" for number in range(14)]
    tasks[3] = tasks[8] = "kill"
    results, _ = done(Crew(1, together=2, jobs=3), tasks)
    assert {number for number, result in results.items() if result.error} == {3, 8}
    assert all(results[number].deadly for number in (3, 8))


def test_what_stops_everything_is_said(done: Callable) -> None:
    with pytest.raises(JMTError, match=r"^out: no space left; free some$"):
        done(Crew(1), ["work 1", "full", "work 2"])
    with pytest.raises(JMTError, match=r"^weights: damaged; train again$"):
        done(Crew(1), ["work 1"], refuse=True)
    with pytest.raises(JMTError, match=r"took more than 0\.25 GiB of memory before its first video"):
        done(Crew(1, memory=2**28), ["work 1"], heavy=2**29)


def test_leaving_early_ends_the_processes(jobs: ModuleType, tmp_path: Path) -> None:
    births = tmp_path / "births"
    results = Crew(2)(jobs.Make(births), [Job(0, "work 0"), *(Job(n, "hang") for n in range(1, 4))], lambda *_: None)
    assert next(results).number == 0
    results.close()
    assert not [line for line in births.read_text().splitlines() if Path("/proc", line.split()[0]).exists()]


def test_here_means_in_this_process(jobs: ModuleType, tmp_path: Path) -> None:
    shares: list[tuple[int, float]] = []
    tasks = [Job(0, "media"), Job(1, "work 1")]
    first, second = run_here(jobs.Make(tmp_path / "births"), tasks, lambda *share: shares.append(share))
    assert (first.error, first.deadly) == ("film: no video stream; give another", False)
    assert str(os.getpid()) in second.value
    assert shares == [(0, 0.5), (1, 0.5)]
