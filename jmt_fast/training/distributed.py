"""Training in several processes, one a device, as `torchrun` starts them; without it, one process alone.

Each rank reads its own rows of every batch and computes the loss of the whole batch: a concordance is no mean of the
concordances of parts. All ranks hold the same weights; only the first one writes and prints.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jmt_fast.errors import JMTError
from jmt_fast.runtime import Runtime

T = TypeVar("T")

_PATIENCE = timedelta(days=7)  # while others extract features; whoever dies is noticed by torchrun, which ends the rest


def launched() -> bool:
    """Whether `torchrun` started this process."""
    return dist.is_torchelastic_launched()


@contextmanager
def processes(runtime: Runtime) -> Iterator[Runtime]:
    """Join the other processes of `torchrun`; gives the runtime on this process's own device (cuda:LOCAL_RANK).

    Raises JMTError where a machine has more processes than GPUs.
    """
    if not launched():
        yield runtime
        return
    device = runtime.device
    if device.type == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise JMTError(
                f"rank {local} of the {os.environ['LOCAL_WORLD_SIZE']} on this machine has no GPU, as there are "
                f"{there}; start so many with torchrun --nproc-per-node={there}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, number, count = next(iter(dist.rendezvous("env://", timeout=_PATIENCE)))
    if os.environ["GROUP_WORLD_SIZE"] == "1":
        # torchrun's store outlives a restart: without a place of its own, a new rank finds the addresses of dead ones.
        store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=_PATIENCE)
    try:
        yield replace(runtime, device=device)
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def host() -> int:
    """Number of this process's host, from 0."""
    return int(os.environ["GROUP_RANK"]) if dist.is_initialized() else 0


def own_here(items: Sequence[T]) -> list[T]:
    """This rank's part of the items, where the ranks of its host share them."""
    if ranks() == 1:
        return list(items)
    return list(items[int(os.environ["LOCAL_RANK"]) :: int(os.environ["LOCAL_WORLD_SIZE"])])


@contextmanager
def shared_folder(parent: str | Path | None) -> Iterator[Path]:
    """A temporary folder `frames-...` that the ranks of a host share, in `parent` or else where the system has its own.

    It goes with the first of them; files that the others have mapped stay readable. What a run that was killed left in
    `parent` goes first.
    """
    made, prefix = None, f"frames-{host()}-"
    if ranks() == 1 or os.environ["LOCAL_RANK"] == "0":
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
            for left in Path(parent).glob(f"{prefix}*"):
                shutil.rmtree(left, ignore_errors=True)
        made = TemporaryDirectory(prefix=prefix, dir=parent)
    with made or nullcontext() as name:
        [folder] = [path for at, path in of_all((host(), name)) if at == host() and path]
        yield Path(folder)


def restarted() -> bool:
    """Whether `torchrun` has started the processes again because one had died; each host counts its own restarts."""
    return any(of_all(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0))


def own(items: Sequence[T]) -> list[T]:
    """This rank's part of the items: every `ranks()`-th."""
    return list(items[rank() :: ranks()])


def of_all(value: T) -> list[T]:
    """What each rank gave, in the order of the ranks; waits for all."""
    if ranks() == 1:
        return [value]
    values: list[Any] = [None] * ranks()
    dist.all_gather_object(values, value)
    return values


def of_first(make: Callable[[], T]) -> T:
    """What `make()` gives on the first rank, on all of them; what it raises is raised on all."""
    if ranks() == 1:
        return make()
    result: list[Any] = [None, None]
    if rank() == 0:
        try:
            result[0] = make()
        except Exception as error:
            result[1] = error
    dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise result[1]
    return result[0]


def replicated(module: nn.Module) -> nn.Module:
    """The module with the first rank's weights, its gradients averaged over the ranks in every backward."""
    return module if ranks() == 1 else DistributedDataParallel(module, gradient_as_bucket_view=True)


def whole_batch(prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of all ranks, in the order of the ranks, each (B, L, ...) -> (ranks B, L, ...).

    The batch, of one shape on all ranks, is the whole batch's: with them each rank computes the loss, and with
    `replicated` the gradients, that a single process has. They travel as one tensor, a few kilobytes, which costs less
    than the two rounds that stable sums of squares would take, and leaves the same roundings as in one process.
    """
    if ranks() == 1:
        return prediction, target, labelled
    dims = prediction.shape[-1]
    rows = torch.cat((prediction, target.to(prediction.dtype), labelled[..., None].to(prediction.dtype)), -1)
    gathered = _gathered(rows)
    return gathered[..., :dims], gathered[..., dims:-1], gathered[..., -1] > 0


def _gathered(rows: Tensor) -> Tensor:
    """(B, ...) on each rank -> (ranks B, ...) on all."""
    # Not an autograd.Function: torch 2.11 compiles one that fills its result in place into code without gradients.
    own = rows.detach()
    gathered = own.new_empty(ranks() * len(own), *own.shape[1:])
    dist.all_gather_into_tensor(gathered, own.contiguous())
    parts = list(gathered.chunk(ranks()))
    # Every rank has the gradient of the one loss; `replicated` divides the sum over the ranks by their number. The term
    # added is 0.
    parts[rank()] = own + ranks() * (rows - own)
    return torch.cat(parts)
