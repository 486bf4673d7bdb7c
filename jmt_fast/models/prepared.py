"""A frozen copy of a fusion model that only infers: folded where it can be, weights in the runtime's precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jmt_fast.cuda_graph import CudaGraph, region
from jmt_fast.models.affine import Dense
from jmt_fast.models.folded import FoldedFusion, foldable
from jmt_fast.models.fusion import JMT
from jmt_fast.models.onednn import supports
from jmt_fast.models.parameters import FusionModel, check_inputs, in_stock_layout
from jmt_fast.runtime import Runtime


class PreparedFusion:
    """What `prepare_fusion` returns: call it like the model, with any number of sequences."""

    def __init__(self, model: FusionModel, runtime: Runtime, batch: int) -> None:
        self.config = model.config
        self.runtime = runtime
        self._batch = batch
        # Of a compiled CUDA graph every shape is another one: a few sizes of batch serve all.
        self._sizes = [batch]
        while self._sizes[0] > 1:
            self._sizes.insert(0, -(-self._sizes[0] // 4))
        self._compiled = runtime.compile and runtime.device.type == "cuda"
        self._network: Any = frozen_network(model, runtime)
        if runtime.device.type == "cpu" and supports(runtime.dtype):
            for module in self._network.modules():
                if isinstance(module, Dense) and module.dtype == runtime.dtype:
                    module.pack()
        if self._compiled:
            self._network = region(self._network, runtime.device)
        self._graphs: dict[Any, CudaGraph] = {}  # by size of batch, and shapes and dtypes of a sequence

    @torch.inference_mode()
    def __call__(self, audio: Tensor, visual: Tensor, valid: Tensor | None = None) -> Tensor:
        """audio (B, L, D), visual (B, L, visual_dim), valid bool (B, L) -> (B, L, 2) float32 on the runtime's device.

        As `JMT.forward`; ValueError for other shapes.
        """
        check_inputs(self.config, audio, visual, valid)
        if valid is None:
            valid = torch.ones(audio.shape[:2], dtype=torch.bool, device=audio.device)
        tensors = (audio, visual, valid)
        if not self._compiled or not len(audio):
            return self._network(*(tensor.to(self.runtime.device, non_blocking=True) for tensor in tensors))
        parts = zip(*(tensor.split(self._batch) for tensor in tensors), strict=True)
        outputs = [self._part(*part) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _part(self, *tensors: Tensor) -> Tensor:
        """At most `batch` sequences, in the graph of the next size. What it has more are sequences without a clip."""
        rows = len(tensors[0])
        size = next(size for size in self._sizes if size >= rows)
        kind = (size, *((tensor.shape[1:], tensor.dtype) for tensor in tensors))
        if kind not in self._graphs:
            example = (tensor.new_zeros(size, *tensor.shape[1:], device=self.runtime.device) for tensor in tensors)
            self._graphs[kind] = CudaGraph(self._network, example)
        graph = self._graphs[kind]
        for own, tensor in zip(graph.inputs, tensors, strict=True):
            own[:rows].copy_(tensor, non_blocking=True)
        if rows < size:
            graph.inputs[-1][rows:] = False
        return graph()[:rows]


class LowPrecision(nn.Module):
    """A model whose matrices are kept in the runtime's precision, under autocast."""

    def __init__(self, model: FusionModel, runtime: Runtime) -> None:
        super().__init__()
        self.model = JMT(model.config)
        self.model.load_state_dict(model.state_dict())
        self.model.eval().requires_grad_(False)
        self.runtime = runtime
        for parameter in self.model.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.to(runtime.dtype)

    def forward(self, audio: Tensor, visual: Tensor, valid: Tensor) -> Tensor:
        low = self.runtime.precision != "fp32"
        with torch.autocast(self.runtime.device.type, self.runtime.dtype if low else None, enabled=low):
            return self.model(audio.float(), visual.float(), valid)


def prepare_fusion(model: FusionModel, runtime: Runtime, batch: int = 64) -> PreparedFusion:
    """A fast copy of `model` (JMT or ReferenceJMT) for inference in `runtime.dtype`.

    The model stays as it is, and later changes of it do not reach the copy. Models with cross-attention are folded (see
    `folded`): exact but for rounding, with 2.5 times fewer weights to read if they have one head, 1.4 times otherwise.

    On a CPU the copy is ready at once and takes any batch: compiling would take seconds for each shape and save
    fractions of a millisecond a call. On a GPU it is compiled into CUDA graphs, if `runtime.compile`, for a few sizes
    up to `batch`; smaller batches are padded to the next of them, larger ones run in parts.
    """
    return PreparedFusion(model, runtime, batch)


def frozen_network(model: FusionModel, runtime: Runtime) -> nn.Module:
    """`model` for inference as plain PyTorch, (audio, visual, valid) -> (B, L, 2) float32 on the runtime's device."""
    if foldable(model.config):
        return FoldedFusion(in_stock_layout(model), runtime.dtype).to(runtime.device)
    return LowPrecision(model, runtime).to(runtime.device)
