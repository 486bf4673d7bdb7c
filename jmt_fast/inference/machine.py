"""What this machine has for the processes that predict: GPUs and memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from jmt_fast.errors import JMTError

SHARE = 0.8  # of the machine's memory, for all processes together


def devices(gpus: int | None, device: str) -> tuple[str, ...]:
    """The devices to share out over the processes: so many GPUs, by default all, or `device` where one was chosen.

    Raises JMTError for more GPUs than there are.
    """
    if gpus is None and device != "auto":
        return (device,)
    there = torch.cuda.device_count()
    if gpus is not None and gpus > there:
        raise JMTError(f"{gpus} GPUs asked for, this machine has {there}; ask for fewer, or leave out --gpus")
    return tuple(f"cuda:{index}" for index in range(there if gpus is None else gpus)) or ("cpu",)


def memory_share(asked: float | None, workers: int) -> int:
    """Bytes that each of so many processes may hold: `asked` GiB, by default its share of the machine."""
    return int(asked * 2**30) if asked else int(SHARE * machine_memory() / max(workers, 1))


def machine_memory() -> int:
    """Bytes that this machine has, or the container that this runs in."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return whole
