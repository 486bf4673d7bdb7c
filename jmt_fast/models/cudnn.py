"""Convolutions as a GPU likes them: algorithms tried out, and a frozen network's shapes made those of its matrix units.

Channels: 16-bit kernels for tensor cores want multiples of 8 (NVIDIA, "Convolutional Layers User's Guide", on channels
in NHWC). R(2+1)D has 45, 230, 460 and 921 between its spatial and its temporal convolutions, a fifth of its work; zero
filters fill them up, whose maps are zero behind the ReLU too. It costs 1.7% more operations.

Axes: on channels-last maps a 1 x k x k convolution is a two-dimensional one of all frames as a batch, a k x 1 x 1
convolution one along time over the H W pixels as columns. Both are views, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from jmt_fast.models.onednn import CONVOLUTIONS, module_of

MULTIPLE = 8


@contextmanager
def tuned() -> Iterator[None]:
    """Meanwhile cuDNN tries its algorithms on each new shape and keeps the fastest: for shapes that come again."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class FrameConvolution(nn.Module):
    """A 1 x k x k convolution, stride 1 in time, as a two-dimensional one: (B, C, T, H, W) -> (B, C', T, H', W')."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.convolution = _two_dimensional(convolution, (1, 2))

    def forward(self, maps: Tensor) -> Tensor:
        frames = self.convolution(maps.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (-1, maps.shape[2])).transpose(1, 2)


class TimeConvolution(nn.Module):
    """A k x 1 x 1 convolution, stride 1 in space, as a two-dimensional one: (B, C, T, H, W) -> (B, C', T', H, W)."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.convolution = _two_dimensional(convolution, (0, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return self.convolution(maps.flatten(3)).unflatten(3, maps.shape[3:])


def align(network: fx.GraphModule) -> fx.GraphModule:
    """`network`, in place, with the same outputs. Its batch norms are folded already."""
    for node in list(network.graph.nodes):
        convolution = module_of(network, node)
        if not isinstance(convolution, CONVOLUTIONS):
            continue
        reader = _only_reader(network, node)
        if reader is not None and convolution.out_channels % MULTIPLE:
            _pad(convolution, reader)
    for node in network.graph.nodes:
        convolution = module_of(network, node)
        if isinstance(convolution, nn.Conv3d):
            network.set_submodule(node.target, _as_two_dimensional(convolution))
    network.recompile()
    return network


def _only_reader(network: fx.GraphModule, node: fx.Node) -> nn.Conv2d | nn.Conv3d | None:
    """The convolution that alone reads what `node` gives, at most through ReLUs, which leave zeros as they are."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        module = module_of(network, node)
        if isinstance(module, CONVOLUTIONS):
            return module
        if not isinstance(module, nn.ReLU):
            return None
    return None


def _pad(convolution: nn.Conv2d | nn.Conv3d, reader: nn.Conv2d | nn.Conv3d) -> None:
    """Filters of zeros up to the next multiple, and zeros where the reader weighs what they give."""
    missing = -convolution.out_channels % MULTIPLE
    for layer, axis in ((convolution, 0), (reader, 1)):
        sizes = [0, 0] * (layer.weight.dim() - 1 - axis) + [0, missing]
        layer.weight = nn.Parameter(F.pad(layer.weight, sizes), requires_grad=False)
    if convolution.bias is not None:
        convolution.bias = nn.Parameter(F.pad(convolution.bias, [0, missing]), requires_grad=False)
    convolution.out_channels += missing
    reader.in_channels += missing


def _as_two_dimensional(convolution: nn.Conv3d) -> nn.Module:
    time, *space = zip(convolution.kernel_size, convolution.stride, convolution.padding, strict=True)
    alone = (1, 1, 0)  # kernel, stride and padding of an axis along which nothing is mixed or left out
    if time == alone:
        return FrameConvolution(convolution)
    return TimeConvolution(convolution) if space == [alone, alone] else convolution


def _two_dimensional(convolution: nn.Conv3d, axes: tuple[int, int]) -> nn.Conv2d:
    """The same filters along the two `axes` of (T, H, W); along the rest they have size 1."""
    kernel, stride, padding = (
        (int(sizes[axes[0]]), int(sizes[axes[1]]))
        for sizes in (convolution.kernel_size, convolution.stride, convolution.padding)
    )
    channels = (convolution.in_channels, convolution.out_channels)
    flat = nn.Conv2d(*channels, kernel, stride, padding, bias=convolution.bias is not None, device="meta")
    weight = convolution.weight.flatten(2).unflatten(2, flat.kernel_size)
    flat.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    flat.bias = convolution.bias
    return flat
