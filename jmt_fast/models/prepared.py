"""A frozen copy of a fusion model that only infers: folded where it can be, weights in the runtime's precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
            self._network = torch.compile(self._network, dynamic=False, mode="reduce-overhead")

    @torch.inference_mode()
    def __call__(self, audio: Tensor, visual: Tensor, valid: Tensor | None = None) -> Tensor:
        """audio (B, L, D), visual (B, L, visual_dim), valid bool (B, L) -> (B, L, 2) float32 on the runtime's device.

        As `JMT.forward`; ValueError for other shapes.
        """
        check_inputs(self.config, audio, visual, valid)
        if valid is None:
            valid = torch.ones(audio.shape[:2], dtype=torch.bool)
        tensors = [tensor.to(self.runtime.device, non_blocking=True) for tensor in (audio, visual, valid)]
        if not self._compiled or not len(audio):
            return self._network(*tensors)
        parts = zip(*(tensor.split(self._batch) for tensor in tensors), strict=True)
        return torch.cat([self._part(*part) for part in parts])

    def _part(self, *tensors: Tensor) -> Tensor:
        rows = len(tensors[0])
        size = next(size for size in self._sizes if size >= rows)
        padded = [torch.cat([tensor, tensor.new_zeros(size - rows, *tensor.shape[1:])]) for tensor in tensors]
        return self._network(*padded)[:rows].clone()  # the graph's next run writes over its output


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
