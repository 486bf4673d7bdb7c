"""Where the videos of a collection are done: in this process, in processes of this machine, on a Ray cluster."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from jmt_fast.errors import JMTError
from jmt_fast.inference.cluster import RayCluster
from jmt_fast.inference.collection import Engine, Recipe, Settings
from jmt_fast.inference.workers import PATIENCE, Crew, run_here

SHARE = 0.8  # of the machine's memory, for all processes together


def choose(
    engine: str,
    checkpoint: Path,
    settings: Settings,
    workers: int | None,
    gpus: int | None,
    device: str,
    compile: bool | None,
    patience: float | None,
    memory: float | None,
) -> tuple[Recipe, Engine]:
    """What each process is to load, and what runs the processes.

    `workers`: by default one a GPU, else one; 0 for this process. `gpus`: by default all of this machine, of a cluster
    none. `patience`: seconds; `memory`: GiB a process, by default a share of the machine. Raises JMTError for more GPUs
    than there are.
    """
    patience = patience or PATIENCE
    limit = int(memory * 2**30) if memory else None
    if engine == "ray":
        recipe = Recipe(checkpoint, settings, ("cuda" if gpus else "cpu",), compile)
        return recipe, RayCluster(workers or gpus or None, bool(gpus), patience, limit)
    places = devices(gpus, device)
    count = len(places) if workers is None else workers
    recipe = Recipe(checkpoint, settings, places, compile, max(count, 1))
    if not count:
        return recipe, run_here
    together = 4 if places[0].startswith("cuda") else 2  # short videos then fill a GPU's batches
    return recipe, Crew(count, together, patience, limit or int(SHARE * machine_memory() / count))


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


def machine_memory() -> int:
    """Bytes that this machine has, or the container that this runs in."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        return whole
