"""A compiled function of fixed shapes as one CUDA graph, and how regions that become graphs are compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

VARIANTS = 1024  # of one function's code: the compiler's own limit, 8, is meant for shapes that never settle


class CudaGraph:
    """A function of tensors of fixed shapes; from its fourth call on one launch.

    The first three are true calls, in which the compiler compiles and libraries get their workspaces. Between them and
    in a replay nothing waits for the device.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: Iterable[Tensor]) -> None:
        """`inputs`: tensors on the device like those of every call. The graph keeps copies: fill them before a call."""
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        self._function = function
        self._warm = 3
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output: Tensor | None = None

    def __call__(self) -> Tensor:
        """What the function makes of the present `inputs`: a copy, which later calls leave alone."""
        if self._warm:
            self._warm -= 1
            return self._function(*self.inputs)
        if self._graph is None:
            self._graph, self._output = self._captured()
        self._graph.replay()
        assert self._output is not None
        return self._output.clone()

    def _captured(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Notes what would be done, and does nothing."""
        device, graph = self.inputs[0].device, torch.cuda.CUDAGraph()
        # PyTorch's own stream for captures is on whichever device came first; on another one it would see nothing.
        # Other threads may use the device meanwhile, but not wait for all of it.
        with torch.cuda.device(device), torch.cuda.graph(
            graph, stream=_stream(device), capture_error_mode="thread_local"
        ):  # fmt: skip
            output = self._function(*self.inputs)
        return graph, output


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One a device: each stream that multiplies matrices has a workspace."""
    return torch.cuda.Stream(device)


def region(function: Callable[..., Tensor], device: torch.device, **settings: Any) -> Callable[..., Tensor]:
    """`function` compiled as a whole, to be captured in a `CudaGraph` on a GPU. `settings` are the compiler's front's.

    There kernels that do not depend on each other share a launch: a training step of the default model takes 65
    launches instead of 93, as counted in the compiler's output for sm_90.
    """
    options: dict[str, Any] | None = {"combo_kernels": True} if device.type == "cuda" else None
    return compiled(function, fullgraph=True, options=options, **settings)


def compiled(
    function: Callable[..., Tensor], fullgraph: bool = False, options: dict[str, Any] | None = None, **settings: Any
) -> Callable[..., Tensor]:
    """`function` compiled once for each set of shapes, and for each object that it belongs to or encloses.

    The compiler counts all of these together, for as long as the process lives, and at its own limit gives up: with
    `fullgraph` by an error.
    """
    inner = torch.compile(function, dynamic=False, fullgraph=fullgraph, options=options)

    def call(*tensors: Tensor) -> Tensor:
        limits: dict[str, Any] = {"recompile_limit": VARIANTS, "accumulated_recompile_limit": 64 * VARIANTS}
        with torch._dynamo.config.patch(**limits, **settings):
            return inner(*tensors)

    return call
