"""Work for test crews, in a module of its own that their processes can import: a task says what to do to them."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmt_fast.errors import CheckpointError, JMTError, MediaError


@dataclass(frozen=True)
class Make:
    """`births`: a file to which each process adds a line with its id and its place."""

    births: Path
    refuse: bool = False
    heavy: int = 0

    def __call__(self, place: int) -> Callable[[Any, Callable[[float], None]], Any]:
        with self.births.open("a") as file:
            file.write(f"{os.getpid()} {place}\n")
        if self.refuse:
            raise CheckpointError("weights: damaged; train again")
        ballast = bytearray(b"x" * self.heavy)
        return lambda task, told: do(task, told, ballast)


def do(task: str, told: Callable[[float], None], ballast: bytearray) -> str:
    told(0.5)
    kind, _, number = task.partition(" ")
    match kind:
        case "work":
            time.sleep(0.02)
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(7)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)
        case "slow":  # longer than the patience, with signs of life
            for _ in range(7):
                time.sleep(0.2)
                told(0.7)
        case "eat":
            held = []
            while True:
                held.append(b"x" * 2**26)
                told(0.6)
        case "bug":
            raise ZeroDivisionError("division\nby zero")
        case "media":
            raise MediaError("film: no video stream; give another")
        case "full":
            raise JMTError("out: no space left; free some")
    return f"{number} in {os.getpid()} with {len(ballast)}"
