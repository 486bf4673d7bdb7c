"""A local Ray cluster of two cores, with real actors and real kills: every job has a result, once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from jmt_fast.errors import JMTError
from jmt_fast.inference import Settings, predict_collection, weights_digest
from jmt_fast.inference.cluster import RayCluster
from jmt_fast.inference.engines import choose
from jmt_fast.inference.workers import Job

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def two_cores():
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ray.init(
        num_cpus=2, num_gpus=0, log_to_driver=False, logging_level="ERROR", include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": here}},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(folder)
    import jobs

    return jobs


def run(cluster: RayCluster, make: object, tasks: list[str]) -> dict:
    results = list(cluster(make, [Job(*each) for each in enumerate(tasks)], lambda *_: None))
    assert sorted(result.number for result in results) == list(range(len(tasks)))
    return {result.number: result for result in results}


def test_an_actor_killed_in_the_middle_costs_nothing(jobs: ModuleType, tmp_path: Path) -> None:
    births = tmp_path / "births"

    def shoot() -> None:
        while not births.exists() or len(births.read_text().split("\n")) < 3:
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(int(births.read_text().split()[0]), signal.SIGKILL)

    gun = threading.Thread(target=shoot)
    gun.start()
    results = run(RayCluster(2), jobs.Make(births), [f"slow {number}" for number in range(6)])
    gun.join()
    assert len(births.read_text().splitlines()) == 3
    assert not [result for result in results.values() if result.error]


def test_what_kills_is_told_and_the_rest_is_done(jobs: ModuleType, tmp_path: Path) -> None:
    tasks = [f"work {number}" for number in range(6)] + ["segfault", "hang", "bug", "media"]
    results = run(RayCluster(2, patience=2.0), jobs.Make(tmp_path / "births"), tasks[::-1])
    by_task = {task: results[number] for number, task in enumerate(tasks[::-1])}
    assert by_task["media"].error.startswith("film: no video stream") and not by_task["media"].deadly
    assert by_task["bug"].error == "ZeroDivisionError: division by zero"
    for deadly in ("segfault", "hang"):
        assert by_task[deadly].deadly and "its process died twice" in by_task[deadly].error
    assert all(by_task[task].value for task in tasks[:6])


def test_what_the_cluster_has_not_is_said_at_once(jobs: ModuleType, tmp_path: Path) -> None:
    for cluster in (RayCluster(3), RayCluster(1, gpu=True)):
        with pytest.raises(JMTError, match=r"workers need a core.*the cluster has 2 cores and 0 GPUs for them"):
            run(cluster, jobs.Make(tmp_path / "births"), ["work 1"])


def test_what_stops_everything_is_said(jobs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(JMTError, match=r"^out: no space left; free some$"):
        run(RayCluster(1), jobs.Make(tmp_path / "births"), ["full"])
    with pytest.raises(JMTError, match=r"^weights: damaged; train again$"):
        run(RayCluster(1), jobs.Make(tmp_path / "births", refuse=True), ["work 1"])


def test_videos_and_the_ledger(small_checkpoint: Path, film: Callable[..., Path], tmp_path: Path) -> None:
    """The ledger decides what is done: a second run asks Ray for nothing."""
    settings = Settings(weights=weights_digest(small_checkpoint), precision="fp32")
    words = tmp_path / "words.mp4"
    words.write_text("words")
    videos = [film(), words, film(size=(64, 48))]
    recipe, engine = choose("ray", small_checkpoint, settings, 1, None, "auto", False, None, None)
    known = sorted(predict_collection(videos, tmp_path / "out", recipe, settings, engine), key=lambda each: each.number)
    assert [each.row.status for each in known] == ["done", "failed", "done"]
    assert [each.row.rows for each in known] == [40, 0, 40]
    again = predict_collection(videos, tmp_path / "out", recipe, settings, engine)
    assert not any(each.fresh for each in again)
