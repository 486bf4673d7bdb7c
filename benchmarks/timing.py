"""How long a call takes and what memory it needs, on a CPU and on a GPU, and what this machine reaches at best."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Call = Callable[[], Any]
SHORTEST = 2e-3  # seconds: a GPU runs shorter calls several times between two events, whose clock ticks in 0.5 us
MOST_CALLS = 100


@dataclass(frozen=True)
class Prepared:
    """A call that needs something made anew, untimed, before each of its turns: `call(make())`."""

    make: Call
    call: Callable[[Any], Any]

    def __call__(self) -> Any:
        return self.call(self.make())


Peer = Call | Prepared


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one peer: median, 20% and 80% quantiles; all NaN with the reason in `error` if it cannot run."""

    median: float
    low: float
    high: float
    rounds: int
    timed: str = ""
    error: str = ""

    @classmethod
    def of(cls, seconds: list[float], timed: str) -> Timing:
        low, median, high = np.quantile(seconds, (0.2, 0.5, 0.8)) * 1e3
        return cls(float(median), float(low), float(high), len(seconds), timed)

    @classmethod
    def failed(cls, error: str) -> Timing:
        return cls(float("nan"), float("nan"), float("nan"), 0, error=error)

    def columns(self) -> dict[str, Any]:
        """The columns of a row: `ms`, `ms_q20`, `ms_q80`, `rounds`, how it was `timed`, or the `error`."""
        row = {"ms": self.median, "ms_q20": self.low, "ms_q80": self.high, "rounds": self.rounds}
        return row | ({"error": self.error} if self.error else {"timed": self.timed})


def wall(peer: Peer, device: torch.device) -> float:
    """Seconds of one call on the wall clock, its work on a GPU included."""
    state = (peer.make(),) if isinstance(peer, Prepared) else ()
    call = peer.call if isinstance(peer, Prepared) else peer
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call(*state)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def stopwatch(peer: Peer, device: torch.device, cost: float, capture: bool = False) -> tuple[Callable[[], float], str]:
    """`(clock, how)`: `clock()` gives seconds a call, `how` says in words how they are taken.

    On a GPU they are between two CUDA events around as many calls as make `SHORTEST`, `cost` being the seconds of one.
    Before the first event the level-2 cache is overwritten, which also keeps the GPU busy while the calls are queued.
    With `capture` the calls are replayed from one CUDA graph, so that launching costs nothing: the kernels alone.
    """
    if device.type != "cuda":
        return lambda: wall(peer, device), "wall clock"
    many = 1 if isinstance(peer, Prepared) else int(min(max(1, SHORTEST / cost), MOST_CALLS))
    run, how = _queued(peer, many), f"CUDA events, {many} calls in a row"
    if capture and not isinstance(peer, Prepared):
        try:
            run, how = _captured(peer, many), f"CUDA events, a graph of {many} calls"
        except RuntimeError:
            torch.cuda.synchronize()
            how += " (no graph can be captured)"
    flush = _flush(device)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock() -> float:
        state = (peer.make(),) if isinstance(peer, Prepared) else ()
        flush.zero_()
        start.record()
        run(*state)
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3 / many

    return clock, how


@cache
def _flush(device: torch.device) -> Tensor:
    """256 MiB, more than any level-2 cache."""
    return torch.empty(64 << 20, device=device)


def _queued(peer: Peer, many: int) -> Callable[..., None]:
    if isinstance(peer, Prepared):
        return peer.call

    def run() -> None:
        for _ in range(many):
            peer()

    return run


def _captured(call: Call, many: int) -> Call:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call() for _ in range(many)]  # kept to the end, so that no two calls write to the same memory
    del results
    return graph.replay


def launches(call: Call) -> float:
    """Kernels, copies and fills that a call gives to a GPU; NaN where that cannot be told.

    They are the nodes of a graph that is captured from it and never run. A profiler would count them too, but once it
    has run, every later launch of the process takes longer.
    """
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    count = ctypes.c_size_t()
    try:
        with torch.cuda.graph(graph):
            call()
        failed = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(
            ctypes.c_void_p(graph.raw_cuda_graph()), None, ctypes.byref(count)
        )
    except (OSError, RuntimeError):
        torch.cuda.synchronize()
        return float("nan")
    return float("nan") if failed else float(count.value)


def peak_memory(call: Call, device: torch.device) -> int:
    """Bytes that a call holds at its peak beyond what was there before and what it returns, as PyTorch allocates them.

    On a CPU from the profiler's record of allocations: scratch memory inside oneDNN and MKL is not seen.
    """
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before - _nbytes(results)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        results = call()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(max(held, default=0)) - _nbytes(results)


def _nbytes(results: Any) -> int:
    tensors: Iterable[Tensor] = [results] if isinstance(results, Tensor) else results
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


@dataclass(frozen=True)
class Ceiling:
    """What this machine reaches in one plain copy and one plain matrix product, measured in this run.

    On a GPU also in a copy that stays in the level-2 cache, and the seconds between two dependent kernels of a graph.
    """

    bytes_per_second: float
    flops: dict[str, float]
    cached_bytes_per_second: float = float("nan")
    launch_seconds: float = float("nan")

    def floor(self, nbytes: float, flops: float, precision: str) -> float:
        """Milliseconds below which this work cannot go here: the slower of moving its bytes and doing its products."""
        return 1e3 * max(nbytes / self.bytes_per_second, flops / self.flops[precision])

    @classmethod
    def measure(cls, device: torch.device) -> Ceiling:
        """Best of several copies (CPU 128 MiB, GPU 1 GiB) and matrix products (2048 and 8192 wide) in fp32 and bf16."""
        gpu = device.type == "cuda"
        copied = _copy_speed(256 << 20 if gpu else 32 << 20, device)
        width, flops = 8192 if gpu else 2048, {}
        for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
            a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
            flops[name] = 2 * width**3 / min(_best(lambda f=f, a=a, b=b: f(a, b), device) for f in _products(gpu))
        if not gpu:
            return cls(copied, flops)
        one = torch.zeros(1, device=device)
        return cls(copied, flops, _copy_speed(2 << 20, device, True), _best(lambda: one.add_(1), device, True))


def _products(gpu: bool) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """PyTorch's matrix product, and on a CPU oneDNN's, which frozen copies use: the other library does fp32 products of
    AMD's processors in half of their vectors' width."""
    if gpu or not torch.backends.mkldnn.is_available():
        return [torch.matmul]
    return [torch.matmul, lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")]


def _copy_speed(floats: int, device: torch.device, capture: bool = False) -> float:
    """Bytes read and written a second."""
    source = torch.randn(floats, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device, capture)


def _best(call: Call, device: torch.device, capture: bool = False, repeats: int = 5) -> float:
    call()
    clock, _ = stopwatch(call, device, wall(call, device), capture)
    return min(clock() for _ in range(repeats))
