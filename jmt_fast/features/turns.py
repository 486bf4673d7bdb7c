"""Networks that several videos share: one thread runs them, and what waits for it goes through in one batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from torch import Tensor

Batch = TypeVar("Batch", bound=Sized)
Given = ParamSpec("Given")
Found = TypeVar("Found")


class Turns:
    """Calls from any thread, run one at a time in a thread of their own.

    Threads that read, decode and write then never compute, so the networks have the cores to themselves; and compiled
    CUDA graphs belong to the thread that recorded them.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="networks")

    def __call__(self, function: Callable[Given, Found], *args: Given.args, **named: Given.kwargs) -> Found:
        return self._thread.submit(function, *args, **named).result()

    def shared(
        self, network: Callable[[Batch], Tensor], cat: Callable[[list[Batch]], Batch]
    ) -> Callable[[Batch], Tensor]:
        """The same network, B samples -> (B, D): batches that wait at the same time become one, made by `cat`."""
        waiting: deque[tuple[Batch, Future[Tensor]]] = deque()

        def run() -> None:
            taken = [waiting.popleft() for _ in range(len(waiting))]
            if not taken:  # went along with an earlier one
                return
            batches = [batch for batch, _ in taken]
            try:
                result = network(cat(batches) if len(batches) > 1 else batches[0])
                for (_, future), part in zip(taken, result.split([len(batch) for batch in batches]), strict=True):
                    future.set_result(part)
            except BaseException as error:
                for _, future in taken:
                    future.set_exception(error)

        def call(batch: Batch) -> Tensor:
            future: Future[Tensor] = Future()
            waiting.append((batch, future))
            self._thread.submit(run)
            return future.result()

        return call
