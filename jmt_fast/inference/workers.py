"""Jobs for processes that may die of them: the job that kills is found and set aside, all others are done."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from jmt_fast.errors import JMTError, MediaError

PATIENCE = 600.0  # seconds without a sign of life
TICK = 0.2  # seconds between looks at clocks and memory
YOUNG = 1800.0  # seconds; starting a process, half a minute where it compiles, is then 2% of its life at most
CONTEXT = multiprocessing.get_context("spawn")  # CUDA, DALI and threads do not survive a fork
Told = Callable[[float], None]  # the share of a job that is done
Work = Callable[[Any, Told], Any]
Progress = Callable[[int, float], None]  # a job's number and share


@dataclass(frozen=True)
class Job:
    number: int
    task: Any


@dataclass(frozen=True)
class Result:
    """What the work returned, or why there is nothing; `deadly` if the job took its process down."""

    number: int
    value: Any = None
    error: str = ""
    deadly: bool = False


def run_here(make: Callable[[int], Work], jobs: Sequence[Job], progress: Progress) -> Generator[Result]:
    """The jobs one after the other in this process. A MediaError is a result, any other exception ends the run."""
    work = make(0)
    for job in jobs:
        try:
            yield Result(job.number, work(job.task, partial(progress, job.number)))
        except MediaError as error:
            yield Result(job.number, error=str(error))


@dataclass(frozen=True)
class Crew:
    """`count` processes, each with up to `together` jobs at a time in threads of its own.

    `make(place)` is called once in each process, `place` being 0 to count - 1, and gives the function that does a job;
    both must be importable (pickled). A process that dies, in which a job shows no progress for `patience` seconds, or
    that holds more than `memory` bytes is ended and replaced. Its jobs are done again, each first and alone in a fresh
    process: one that ends that too is to blame, and is a `deadly` result. So is one that raises what is no JMTError.

    A process that has done `jobs` jobs, and is not `YOUNG`, is replaced when none is in it: libraries keep a little of
    each file, DALI's reader of videos 17 bytes a frame, which is 3 GB after 10,000 videos of ten minutes.
    """

    count: int = 1
    together: int = 2
    patience: float = PATIENCE
    memory: int | None = None
    jobs: int = 2000

    def __call__(self, make: Callable[[int], Work], jobs: Sequence[Job], progress: Progress) -> Generator[Result]:
        """Results as they come. Raises JMTError if a process cannot start or a job raises one that is no MediaError,
        such as a full disk, when the jobs in work then are done."""
        shift = _Shift(self, make, jobs, progress)
        try:
            yield from shift.run()
        finally:
            for worker in shift.workers:
                worker.end()


@dataclass
class _Worker:
    """The near end of a process. `held`: its jobs, each with the time at which it was last heard of."""

    place: int
    process: Any
    pipe: Connection
    held: dict[int, tuple[Job, float]] = field(default_factory=dict)
    ready: bool = False
    born: float = field(default_factory=time.monotonic)
    served: int = 0
    trial: bool = False  # its only job, in a fresh process, is one that may kill it

    @classmethod
    def start(cls, make: Callable[[int], Work], place: int) -> _Worker:
        near, far = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_serve, args=(far, make, place), daemon=True)
        # Inherited: Ctrl-C, which a terminal sends to all, is for the parent to handle.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            far.close()
        return cls(place, process, near)

    def give(self, job: Job, trial: bool = False) -> None:
        self.held[job.number] = (job, time.monotonic())
        self.trial = trial
        with contextlib.suppress(OSError):  # it is dead, which the reading will tell
            self.pipe.send((job.number, job.task))

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def memory(self) -> int:
        """Bytes resident, 0 for a process that is gone."""
        try:
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return 0


class _Shift:
    """One run of a crew: who has which job, and what is left."""

    def __init__(self, crew: Crew, make: Callable[[int], Work], jobs: Sequence[Job], progress: Progress) -> None:
        self.crew = crew
        self.make = make
        self.progress = progress
        self.left = deque(jobs)
        self.suspects: deque[Job] = deque()
        self.stopped: JMTError | None = None
        self.workers = [_Worker.start(make, place) for place in range(min(crew.count, len(jobs)))]

    def run(self) -> Iterator[Result]:
        looked = time.monotonic()
        while self.left or self.suspects or any(worker.held for worker in self.workers):
            for worker in list(self.workers):
                self._hand_out(worker)
            ready = wait([worker.pipe for worker in self.workers], TICK)
            for worker in [worker for worker in self.workers if worker.pipe in ready]:
                yield from self._hear(worker)
            if time.monotonic() - looked >= TICK:
                looked = time.monotonic()
                for worker in list(self.workers):
                    if why := self._fault(worker):
                        yield from self._replace(worker, why)
        if self.stopped:
            raise self.stopped

    def _hand_out(self, worker: _Worker) -> None:
        if not worker.ready:
            return
        if self.suspects and not worker.held:
            if worker.served:
                [*self._replace(worker, "")]
            else:
                worker.give(self.suspects.popleft(), trial=True)
            return
        if worker.served + len(worker.held) >= self.crew.jobs and time.monotonic() - worker.born >= YOUNG:
            if self.left and not worker.held:
                [*self._replace(worker, "")]
            return
        while self.left and len(worker.held) < self.crew.together and not (worker.trial and worker.held):
            worker.give(self.left.popleft())

    def _hear(self, worker: _Worker) -> Iterator[Result]:
        try:
            kind, number, value = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            yield from self._replace(worker, _how_it_died(worker.process.exitcode))
            return
        match kind:
            case "ready":
                worker.ready = True
                if why := self._over(worker):
                    raise JMTError(f"a process {why} before its first video; allow more --memory")
            case "progress":
                worker.held[number] = (worker.held[number][0], time.monotonic())
                self.progress(number, value)
            case "stop":
                self.stopped = JMTError(value)
                self.left.clear()
                self.suspects.clear()
                worker.held.pop(number, None)
            case "broken":
                yield from self._replace(worker, value)
            case _:
                del worker.held[number]
                worker.served += 1
                yield Result(number, value) if kind == "done" else Result(number, error=value)

    def _fault(self, worker: _Worker) -> str:
        silent = min((heard for _, heard in worker.held.values()), default=time.monotonic())
        if time.monotonic() - silent > self.crew.patience:
            return f"no progress for {self.crew.patience:g} s (--timeout)"
        return self._over(worker) if worker.held else ""

    def _over(self, worker: _Worker) -> str:
        limit = self.crew.memory
        return f"took more than {limit / 2**30:.3g} GiB of memory" if limit and worker.memory() > limit else ""

    def _replace(self, worker: _Worker, why: str) -> Iterator[Result]:
        worker.end()
        if not worker.ready and not self.stopped:
            raise JMTError(f"a process cannot start: {why}; --workers 0 works without, and shows what is wrong")
        self.workers.remove(worker)
        jobs = [job for job, _ in worker.held.values()]
        if worker.trial and jobs:
            yield Result(jobs[0].number, error=why, deadly=True)
        elif not self.stopped:
            self.suspects.extend(jobs)
        if self.left or self.suspects:
            self.workers.append(_Worker.start(self.make, worker.place))


def _how_it_died(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"its process died of {name}" + (" (out of memory, or killed by hand)" if name == "SIGKILL" else "")


def _serve(pipe: Connection, make: Callable[[int], Work], place: int) -> None:
    """The far end: builds the work, then does jobs until the parent is gone, or kills this process."""
    talking = threading.Lock()

    def tell(kind: str, number: int = -1, value: Any = None) -> None:
        with talking:
            try:
                pipe.send((kind, number, value))
            except OSError:  # the parent is gone: nobody wants the rest
                os._exit(1)

    # Else tqdm's lock, which PyTorch makes, would be on the books of the parent, which complains of it after a kill.
    multiprocessing.set_start_method("fork", force=True)
    with contextlib.suppress(OSError):  # where the system runs out of memory, it ends this process, not the parent
        Path("/proc/self/oom_score_adj").write_text("500")
    try:
        work = make(place)
    except JMTError as error:
        tell("stop", value=str(error))
        return
    tell("ready")
    with contextlib.suppress(EOFError):
        while True:
            number, task = pipe.recv()
            threading.Thread(target=_do, args=(work, number, task, tell), daemon=True).start()
    os._exit(0)


def _do(work: Work, number: int, task: Any, tell: Callable[..., None]) -> None:
    try:
        value = work(task, lambda share: tell("progress", number, share))
    except MediaError as error:
        tell("failed", number, str(error))
    except JMTError as error:
        tell("stop", number, str(error))
    except BaseException as error:
        tell("broken", number, " ".join(f"{type(error).__name__}: {error}".split()))
    else:
        tell("done", number, value)
