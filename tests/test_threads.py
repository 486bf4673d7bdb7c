"""What a generator leaves to other threads, and how it lets go of them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from jmt_fast import media
from jmt_fast.threads import ahead, made_ahead

Film = Callable[..., Path]


def test_the_next_item_is_made_while_the_last_is_used() -> None:
    begun = [threading.Event() for _ in range(3)]

    def source() -> Iterator[int]:
        for number, event in enumerate(begun):
            event.set()
            yield number

    items = ahead(source())
    assert next(items) == 0
    assert begun[1].wait(10)  # though nobody asks for it yet
    assert list(items) == [1, 2]


def test_an_error_comes_in_its_turn() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("second")

    items = ahead(source())
    assert next(items) == 1
    with pytest.raises(ValueError, match="second"):
        next(items)


@pytest.mark.parametrize("workers", [1, 3])
def test_made_ahead_keeps_the_order(workers: int) -> None:
    begun = [threading.Event() for _ in range(8)]

    def make(number: int) -> int:
        begun[number].set()
        if number + 1 < min(8, workers):
            assert begun[number + 1].wait(10)  # they run side by side
        return number

    assert list(made_ahead(make, 8, workers)) == list(range(8))


@pytest.mark.parametrize("kind", ["ahead", "made_ahead"])
def test_a_dropped_generator_waits_for_nobody(kind: str) -> None:
    """The garbage collector may drop it in a place where waiting for a thread is waiting for ever."""
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    def make(number: int) -> int:
        if number:
            begun.set()
            assert go.wait(10)
            ended.set()
        return number

    class Holder:
        """In a cycle with its generator, which the collector therefore drops."""

        def __init__(self) -> None:
            self.items = ahead(map(make, range(5))) if kind == "ahead" else made_ahead(make, 5, 2)
            self.me = self

    holder = Holder()
    assert next(holder.items) == 0
    assert begun.wait(10)  # what has not begun does not begin any more
    del holder
    gc.collect()
    assert not ended.is_set()
    go.set()
    assert ended.wait(10)


def test_half_a_video_leaves_no_thread(film: Film, kit: SimpleNamespace) -> None:
    video = film(times=kit.steps(40))
    for _ in media.frames(video):
        break
    for thread in threading.enumerate():
        if thread.name.startswith("to-rgb"):
            thread.join(10)
            assert not thread.is_alive()
