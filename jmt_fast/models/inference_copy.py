"""A frozen copy of a backbone that only infers: batch norm folded away, low precision, fused convolutions."""

from __future__ import annotations

import copy
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from jmt_fast.models import cudnn, onednn
from jmt_fast.models.backbones import VisualBackbone
from jmt_fast.models.clips import Clips, SharingNetwork
from jmt_fast.runtime import Runtime

NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
CACHED = 3 * 8 * 224 * 224  # numbers of input whose maps a CPU keeps in its last-level cache (32 MiB here): one clip


class FastCopy:
    """What `fast_inference` returns: call it with a batch of any size, get FP32 features."""

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        example: Tensor,
        runtime: Runtime,
        fixed: bool,
        sharing: SharingNetwork | None = None,
    ) -> None:
        self.runtime = runtime
        self.rows = len(example)
        self.fixed = fixed
        self.network = network
        self.sharing = sharing
        self._sample = example.shape[1:]
        self._layout = LAYOUTS[example.dim()]

    def __call__(self, batch: Tensor | Clips) -> Tensor:
        """batch (B, *sample) of any B > 0, dtype, device and strides -> (B, features) FP32 on the runtime's device.

        Clips that share frames may be given as `Clips`, with the same result; on a CPU what consecutive ones have in
        common is computed once. Runs in parts of at most the example's rows. ValueError for another shape of a sample
        or an empty batch.
        """
        if batch.shape[1:] != self._sample or not len(batch):
            expected = ", ".join(map(str, self._sample))
            raise ValueError(f"batch: shape (B > 0, {expected}) expected, got {tuple(batch.shape)}")
        with cudnn.tuned():
            return torch.cat(self._in_turn(batch) if self.fixed else self._side_by_side(batch))

    def _side_by_side(self, batch: Tensor | Clips) -> list[Tensor]:
        """Each of PyTorch's threads takes parts of its own; what cannot be shared out evenly takes all of them.

        A clip split over the threads waits for the slowest at each of its hundred steps, and a thread that has to share
        its core, with decoding for instance, is slow: on two busy cores this costs more than half the speed.
        """
        threads = torch.get_num_threads()
        if threads == 1 or len(batch) < threads:
            return self._in_turn(batch)
        share = len(batch) // threads
        parts = batch.split(share if self._shares(batch) else min(self.rows, share))
        even = len(parts) // threads * threads
        return list(_lone_threads(threads, os.getpid()).map(self._part, parts[:even])) + [
            self._part(part) for part in parts[even:]
        ]

    def _in_turn(self, batch: Tensor | Clips) -> list[Tensor]:
        return [self._part(part) for part in batch.split(len(batch) if self._shares(batch) else self.rows)]

    def _shares(self, batch: Tensor | Clips) -> bool:
        return self.sharing is not None and isinstance(batch, Clips)

    def _part(self, part: Tensor | Clips) -> Tensor:
        if isinstance(part, Clips):
            if self.sharing is not None:
                with torch.inference_mode():
                    return self.sharing(part).float()
            part = part.stacked()
        rows = len(part)
        part = part.to(self.runtime.device, self.runtime.dtype, non_blocking=True)
        if self.fixed and rows < self.rows:  # the compiled network and cuDNN's tuning are for one shape
            part = torch.cat([part, part.new_zeros(self.rows - rows, *self._sample)])
        with torch.inference_mode():
            return self.network(part.contiguous(memory_format=self._layout))[:rows].float()


def fast_inference(module: nn.Module, example: Tensor, runtime: Runtime) -> FastCopy:
    """A fast copy of `module` (a backbone) for batches like `example`, in `runtime.dtype`.

    The module stays as it is, and later changes of it do not reach the copy. Batch norm is folded into the
    convolutions in the module's own precision; activations are channels-last.

    On a CPU (`onednn.py`) there is nothing to compile: the copy is ready in a fraction of a second, where TorchInductor
    (with freezing) took 27 s for R(2+1)D-18 at 224, 5 s from its cache, and a tenth longer per clip. Batches run in
    smaller parts there, one clip at 224 each, side by side on the threads: give it batches of a multiple of
    `torch.get_num_threads()`. `Clips` that share frames take about a tenth less time (`clips.py`). On a GPU,
    TorchInductor compiles the network if `runtime.compile`, for exactly the example's shape: smaller batches are padded
    and nothing recompiles. Its default mode: a batch keeps a GPU busy for milliseconds, which leaves nothing for CUDA
    graphs to hide.

    example: (B, 3, 8, crop, crop) or (B, 1, mels, columns); only its shape counts.
    """
    network = _folded(module)
    if runtime.device.type == "cpu" and onednn.supports(runtime.dtype):
        fused = onednn.fuse(network.to(runtime.dtype), example.shape[1:])
        part = example[: max(1, CACHED // example[0].numel())]
        # where several clips at once are faster than one, so are all their layers
        shares = isinstance(module, VisualBackbone) and len(part) == 1
        return FastCopy(fused, part, runtime, fixed=False, sharing=SharingNetwork(fused) if shares else None)
    network.to(runtime.device, runtime.dtype).to(memory_format=LAYOUTS[example.dim()])
    if runtime.device.type == "cuda":
        cudnn.align(network)
    if runtime.compile and runtime.device.type == "cuda":
        return FastCopy(torch.compile(network, dynamic=False), example, runtime, fixed=True)
    return FastCopy(network, example, runtime, fixed=True)


@functools.cache
def _lone_threads(count: int, process: int) -> ThreadPoolExecutor:
    """`count` threads in which PyTorch computes on one core each. `process`: a fork has none of its parent's."""
    ready = threading.Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # PyTorch's own first step in a thread, which later would undo the next line
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="jmt-fast-clips", initializer=start)
    for _ in range(count):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(count)  # a thread's setting is also the process's default and MKL's
    return pool


def _folded(module: nn.Module) -> fx.GraphModule:
    """A traced copy in evaluation mode, without gradients and without the batch norms that follow a convolution."""
    network = fx.symbolic_trace(copy.deepcopy(module).eval().requires_grad_(False))
    for node in list(network.graph.nodes):
        norm = onednn.module_of(network, node)
        if not isinstance(norm, NORMS):
            continue
        before = node.args[0]
        convolution = onednn.module_of(network, before)
        if not isinstance(convolution, onednn.CONVOLUTIONS) or len(before.users) > 1:
            continue
        network.set_submodule(before.target, fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(before)
        network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
    return network
