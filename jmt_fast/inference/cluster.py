"""Jobs for the machines of a Ray cluster: the same work as `workers`, in actors of Ray Data."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jmt_fast.errors import JMTError, MediaError
from jmt_fast.inference.workers import PATIENCE, Job, Progress, Result, Work

SLICE = 5000  # jobs in one data set: Ray keeps something of each for as long as the set is in work
FREE = 60.0  # seconds that what an earlier run held may take to be free
TICK = 0.5  # seconds between an actor's looks at its clock and memory


@dataclass(frozen=True)
class RayCluster:
    """`workers` actors on the cluster that RAY_ADDRESS names, or on a local one made for the run; each has one core,
    and a GPU with `gpu`. By default as many as there are GPUs, or cores.

    `make(0)` is called once in each actor. One that dies, shows no progress for `patience` seconds or holds more than
    `memory` bytes is replaced, and its job tried once more: what fails twice is a `deadly` result. Jobs must reach the
    same files on every machine.
    """

    workers: int | None = None
    gpu: bool = False
    patience: float = PATIENCE
    memory: int | None = None

    def __call__(self, make: Callable[[int], Work], jobs: Sequence[Job], progress: Progress) -> Generator[Result]:
        """Results as they come; `progress` is told of none before. Raises JMTError where Ray is not installed or cannot
        start, where the cluster has not what the actors need, and if a job raises one that is no MediaError."""
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise JMTError(f"Ray is not there ({error}); pip install 'jmt-fast[ray]'") from error
        ours = not ray.is_initialized()
        try:
            if ours:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            size = self._size(ray)
            for first in range(0, len(jobs), SLICE):
                yield from self._run(ray, make, jobs[first : first + SLICE], min(size, len(jobs) - first))
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise JMTError(f"Ray: {' '.join(str(error).split())[:500]}; see its logs in /tmp/ray") from error
        finally:
            if ours:
                ray.shutdown()

    def _size(self, ray: Any) -> int:
        """How many actors. A request for more than the cluster has would wait for ever, without a word."""
        until = time.monotonic() + FREE
        there = ray.cluster_resources()
        while True:
            cores, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
            most = min(cores, gpus) if self.gpu else cores
            if max(self.workers or 1, 1) > most:
                each = "a core and a GPU" if self.gpu else "a core"
                raise JMTError(
                    f"{self.workers or 1} workers need {each} each, the cluster has {cores} cores and {gpus} GPUs "
                    "for them; ask for fewer, or wait for what else it does"
                )
            free = ray.available_resources()
            if free.get("CPU", 0) >= (self.workers or most) and (
                not self.gpu or free.get("GPU", 0) >= (self.workers or most)
            ):
                return self.workers or most
            if time.monotonic() > until:  # somebody else has them
                there = free
            gc.collect()  # an earlier run's may hang on what it logged
            time.sleep(TICK)

    def _run(self, ray: Any, make: Callable[[int], Work], jobs: Sequence[Job], size: int) -> Generator[Result]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # a block is one job, so no other is lost with it; what is missing shows here
        rows = [{"number": job.number, "task": pickle.dumps(job.task)} for job in jobs]
        found = ray.data.from_items(rows, override_num_blocks=len(rows)).map(  # else at most 200 blocks
            _Actor,
            fn_constructor_args=(make, self.patience, self.memory),
            # Jobs that wait for an actor die with it, and would be taken for deadly ones.
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=1 if self.gpu else 0,
            max_restarts=-1,
            max_task_retries=1,  # of a job whose actor died; for ever by default
        )
        missing = {job.number for job in jobs}
        refused = ""
        try:
            for row in found.iter_rows():
                if row["stop"]:
                    refused = row["error"]
                    break
                missing.discard(row["number"])
                yield Result(row["number"], pickle.loads(row["value"]), row["error"], row["deadly"])
        finally:
            del found
            gc.collect()  # with the data set go its actors, and it is part of a circle
        if refused:
            raise JMTError(refused)
        for number in sorted(missing):
            yield Result(number, error=f"its process died twice, or {self._limits()} twice", deadly=True)

    def _limits(self) -> str:
        memory = f" or held more than {self.memory / 2**30:.3g} GiB" if self.memory else ""
        return f"showed no progress for {self.patience:g} s{memory}"


class _Actor:
    """One checkpoint and one media graph; errors are rows, as a data set would drop what raises."""

    def __init__(self, make: Callable[[int], Work], patience: float, memory: int | None) -> None:
        self._heard: float | None = None  # when the job in work last showed progress
        self._sick = False
        self._refused = ""
        try:
            self._work = make(0)
        except JMTError as error:
            self._refused = str(error)
        threading.Thread(target=self._watch, args=(patience, memory), daemon=True).start()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._sick:  # what is wrong with this process may not hit the next job: another one takes over
            os._exit(1)
        blank = {"number": row["number"], "value": pickle.dumps(None), "error": "", "stop": False, "deadly": False}
        answer: Callable[..., dict[str, Any]] = partial(dict, blank)
        if self._refused:
            return answer(error=self._refused, stop=True)
        self._told(0)
        try:
            return answer(value=pickle.dumps(self._work(pickle.loads(row["task"]), self._told)))
        except MediaError as error:
            return answer(error=str(error))
        except JMTError as error:
            return answer(error=str(error), stop=True)
        except Exception as error:
            self._sick = True
            return answer(error=" ".join(f"{type(error).__name__}: {error}".split()), deadly=True)
        finally:
            self._heard = None

    def _told(self, share: float) -> None:
        self._heard = time.monotonic()

    def _watch(self, patience: float, memory: int | None) -> None:
        while True:
            time.sleep(TICK)
            heard = self._heard
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            if heard is not None and time.monotonic() - heard > patience:
                os._exit(1)
            if memory and heard is not None and pages * os.sysconf("SC_PAGE_SIZE") > memory:
                os._exit(1)
