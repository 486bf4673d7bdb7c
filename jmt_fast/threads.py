"""Work in other threads on behalf of generators, which may be dropped half-way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """An executor that is not waited for: at the end its threads finish what they are at, drop the rest and stop.

    A generator that nobody finishes ends wherever the garbage collector happens to find it, and may not wait there:
    Python 3.11 collects while it registers a new thread, under the very lock that joining a thread takes.
    """
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, none of them None; the next one is made in a thread of its own while the last one is used."""
    with threads(1, "ahead") as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item


def made_ahead(make: Callable[[int], Item], steps: int, workers: int) -> Iterator[Item]:
    """make(0), make(1), ... of `steps`; as many of the next ones as there are `workers`, threads, are being made."""
    with threads(workers, "clips") as pool:
        left = iter(range(steps))
        made = deque(pool.submit(make, step) for step in islice(left, workers))
        while made:
            ready = made.popleft().result()
            made.extend(pool.submit(make, step) for step in islice(left, 1))
            yield ready
