"""What people see: progress bars on stderr, tables on stdout."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from jmt_fast.errors import JMTError

out = Console(soft_wrap=False)
err = Console(stderr=True)


@contextmanager
def bar(title: str) -> Iterator[Callable[..., None]]:
    """A progress bar; gives `progress(done, total, note="")`. Silent where stderr is not a terminal, and in all but the
    first of the processes that `torchrun` starts."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    silent = not err.is_terminal or os.environ.get("RANK", "0") != "0"
    with _interrupts() as check, Progress(*columns, console=err, disable=silent) as shown:
        task = shown.add_task(title, total=None, note="")

        def progress(done: int, total: int, note: str = "") -> None:
            check()
            shown.update(task, completed=done, total=total, note=note)

        yield progress


@contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Ctrl-C that cannot get lost: gives `check()`, which raises it again if it was raised and did not arrive.

    Python drops an exception that is raised inside a destructor, a weak reference's callback or some extension
    modules' callbacks, and a signal may come at any of those moments.
    """
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, or somebody else's
        yield check
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> None:
    """Print a table; the first `left` columns are text, the others numbers, which are right-aligned."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        shown.add_column(name, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    out.print(shown)


def as_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def finish(failed: Mapping[str, JMTError], total: int, what: str = "videos") -> None:
    """List what failed; exit 3 when some inputs did, JMTError (exit 1) when all."""
    for error in failed.values():
        print(f"error: {error}", file=sys.stderr)
    if failed:
        if len(failed) == total:
            raise JMTError(f"none of the {total} {what} can be used")
        print(f"{len(failed)} of {total} {what} failed", file=sys.stderr)
        raise typer.Exit(3)
