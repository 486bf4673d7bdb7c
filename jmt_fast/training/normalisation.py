"""Batch normalisation over the rows of all ranks, so that several processes compute what one would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jmt_fast.training.distributed import ranks


@contextmanager
def normalised_together(module: nn.Module) -> Iterator[None]:
    """Meanwhile batch normalisation in `module`, in training mode, takes the statistics of the rows of all ranks.

    Parameters, buffers and the state dict stay the module's own. All ranks must give batches of one shape.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    if ranks() > 1:
        for parent in list(module.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, _BatchNorm):
                    setattr(parent, name, _over_ranks(layer))
                    replaced.append((parent, name, layer))
    try:
        yield
    finally:
        for parent, name, layer in replaced:
            setattr(parent, name, layer.train(parent.training))


def _over_ranks(layer: _BatchNorm) -> nn.Module:
    if layer.weight.is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    twin = _OverRanks(layer.num_features, layer.eps, layer.momentum)
    twin._parameters, twin._buffers = layer._parameters, layer._buffers
    return twin.train(layer.training)


class _OverRanks(_BatchNorm):
    """What `nn.SyncBatchNorm` does, which knows GPUs only."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Stands for 1-D, 2-D and 3-D layers."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape, N being this rank's rows."""
        if not self.training:
            return super().forward(input)
        axes, shape = (0, *range(2, input.ndim)), (-1, *[1] * (input.ndim - 2))
        count = ranks() * input.numel() // input.shape[1]
        mean = _Summed.apply(input.sum(axes)) / count
        centred = input - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(axes)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale.view(shape) + self.bias.view(shape)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


class _Summed(torch.autograd.Function):
    """The sum over the ranks, on all of them; each one's loss depends on the values of all, so gradients are summed."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
