"""The progress bar's part in Ctrl-C."""

from __future__ import annotations

import signal

import pytest

from jmt_fast.cli import show


class Closing:
    """Its destructor is where the signal comes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_that_a_destructor_swallows_is_raised_at_the_next_step() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), show.bar("Working") as progress:
            progress(0, 2)
            closing: Closing | None = Closing()
            assert closing
            closing = None  # Python prints the interrupt and drops it
            progress(1, 2)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with show.bar("Working") as progress:
            signal.raise_signal(signal.SIGINT)
            progress(1, 1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
