"""Convolutions of a frozen network as oneDNN calls, for inference on a CPU.

Two savings. A convolution, the addition of a residual and the ReLU after it are one call on weights packed once.
And the 1x3x3 convolutions of stride 1, three quarters of R(2+1)D's work, take Winograd's minimal filtering F(2, 3)
along the rows (Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", section 4.1): two output rows
from four products instead of six. The sums it needs run over whole rows if even and odd rows lie apart, so the network
keeps its maps split by the parity of the row from one such convolution to the next.

Rows and columns at once, F(2 x 2, 3 x 3), need 16 products where this needs 24, and more sums. In the first stage at
224 the sums, compiled, cost what the products save (32.7 against 32.1 ms a convolution on two cores); in the later
stages, whose maps stay in the cache, a tenth would be won: 3% of the network, for which no compiler is asked of users.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


def supports(dtype: torch.dtype) -> bool:
    """Whether this build and this processor convolve in `dtype` through oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return False
    match dtype:
        case torch.float32:
            return True
        case torch.bfloat16:
            return torch.ops.mkldnn._is_mkldnn_bf16_supported()
        case torch.float16:
            return torch.ops.mkldnn._is_mkldnn_fp16_supported()
        case _:
            return False


class FusedConvolution(nn.Module):
    """relu(convolution(x) + bias + other) in one call; the addition and the ReLU only where asked for.

    x (B, C, ...) channels-last; `other` like the output, or None; all of the network's dtype.
    """

    def __init__(self, convolution: nn.Conv2d | nn.Conv3d, relu: bool) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = "relu" if relu else None
        self.options = _options(convolution)
        self.packed = _pack(convolution.weight, self.options)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        convolve, bias = torch.ops.mkldnn._convolution_pointwise, self.convolution.bias
        if other is None:
            return convolve(x, self.packed, bias, *self.options, self.activation or "none", [], "")
        return convolve.binary(x, other, self.packed, bias, *self.options, "add", 1.0, self.activation, [], "")


class RowWinograd(nn.Module):
    """relu(convolution(x) + bias) for a 1x3x3 convolution of stride 1 and padding 1 on an even number of rows.

    x (2B, C, T, H/2, W) channels-last: the even rows of B samples, then their odd rows; the output likewise.

    With the rows d0..d3 around output rows 2j and 2j + 1 and the filter's rows g0..g2:
    m1 = (d0 - d2) g0, m2 = (d1 + d2) (g0 + g1 + g2) / 2, m3 = (d2 - d1) (g0 - g1 + g2) / 2, m4 = (d1 - d3) g2;
    row 2j is m1 + m2 + m3, row 2j + 1 is m2 - m3 - m4. The products m1 and m4 are added by oneDNN, in its registers.
    """

    def __init__(self, fused: FusedConvolution) -> None:
        super().__init__()
        self.activation = fused.activation
        self.bias = fused.convolution.bias
        self.channels = fused.convolution.out_channels
        _, stride, dilation, groups = fused.options
        self.options = ([0, 0, 1], stride, dilation, groups)
        weight = fused.convolution.weight
        g0, g1, g2 = weight.float().split(1, dim=3)
        rows = (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, -g2)
        self.packed = [_pack(row.to(weight.dtype), self.options) for row in rows]

    def forward(self, x: Tensor) -> Tensor:
        batch, _, *sizes = x.shape
        out = torch.empty(batch, self.channels, *sizes, dtype=x.dtype, memory_format=torch.channels_last_3d)
        self.halves(x.chunk(2), out.chunk(2))
        return out

    def halves(self, rows: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """The same with even and odd rows as two tensors, (B, C, T, H/2, W) each, into two like them."""
        even, odd = rows  # d1 and d2
        upper, lower = torch.empty_like(odd), torch.empty_like(even)
        torch.neg(odd[..., :1, :], out=upper[..., :1, :])  # above the first row: zeros
        torch.sub(odd[..., :-1, :], odd[..., 1:, :], out=upper[..., 1:, :])
        torch.sub(even[..., :-1, :], even[..., 1:, :], out=lower[..., :-1, :])
        lower[..., -1:, :] = even[..., -1:, :]  # below the last row: zeros
        convolve = torch.ops.mkldnn._convolution_pointwise
        plus = convolve(even + odd, self.packed[1], None, *self.options, "none", [], "")
        minus = convolve(odd - even, self.packed[2], None, *self.options, "none", [], "")
        torch.add(plus, minus, out=out[0])
        torch.sub(plus, minus, out=out[1])
        self._add(out[0], upper, self.packed[0])
        self._add(out[1], lower, self.packed[3])

    def _add(self, total: Tensor, x: Tensor, weight: Tensor) -> None:
        """total = relu(total + convolution(x) + bias), in place."""
        torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, weight, self.bias, *self.options, "add", 1.0, self.activation, [], ""
        )


def split_rows(maps: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (2B, C, T, H/2, W), channels-last: the even rows, then the odd rows."""
    return torch.cat([maps[..., 0::2, :], maps[..., 1::2, :]])


def merge_rows(maps: Tensor) -> Tensor:
    """The inverse of `split_rows`."""
    batch, channels, time, rows, columns = maps.shape
    size = (batch // 2, channels, time, 2 * rows, columns)
    merged = torch.empty(size, dtype=maps.dtype, memory_format=torch.channels_last_3d)
    merged[..., 0::2, :], merged[..., 1::2, :] = maps.chunk(2)
    return merged


def fuse(network: fx.GraphModule, sample: torch.Size) -> fx.GraphModule:
    """`network`, in place, with oneDNN's calls for its convolutions; `sample` is an input's shape without the batch."""
    rows = _output_rows(network, sample)
    _fuse_neighbours(network)
    _split_where_it_pays(network, rows)
    network.delete_all_unused_submodules()
    network.graph.lint()
    network.recompile()
    return network


def _fuse_neighbours(network: fx.GraphModule) -> None:
    """Each convolution, and the addition and the ReLU after it, become one FusedConvolution."""
    for node in list(network.graph.nodes):
        convolution = module_of(network, node)
        if not isinstance(convolution, CONVOLUTIONS):
            continue
        last, inputs = node, [node.args[0]]
        after = _only_user(last)
        if after is not None and after.target in (operator.add, operator.iadd, torch.add) and len(after.args) == 2:
            inputs.append(after.args[1] if after.args[0] is last else after.args[0])
            last, after = after, _only_user(after)
        relu = isinstance(module_of(network, after), nn.ReLU)
        last = after if after is not None and relu else last
        network.set_submodule(node.target, FusedConvolution(convolution, relu))
        with network.graph.inserting_before(last):  # where the other summand is known too
            call = network.graph.call_module(node.target, tuple(inputs))
        last.replace_all_uses_with(call)
        network.graph.eliminate_dead_code()


def _split_where_it_pays(network: fx.GraphModule, rows: dict[str, int]) -> None:
    """RowWinograd for the convolutions that allow it, with the maps between them left split by the parity of the row.

    rows: how many each convolution gives, by its name.
    """
    split: set[fx.Node] = set()
    known: dict[tuple[fx.Node, Callable], fx.Node] = {}

    def converted(node: fx.Node, to_split: bool) -> fx.Node:
        if (node in split) == to_split:
            return node
        function = split_rows if to_split else merge_rows
        if (node, function) not in known:
            with network.graph.inserting_after(node):
                known[node, function] = network.graph.call_function(function, (node,))
        return known[node, function]

    for node in list(network.graph.nodes):
        fused = module_of(network, node)
        becomes_split = False
        if isinstance(fused, FusedConvolution):
            if _takes_winograd(fused, rows[str(node.target)]) and len(node.args) == 1:
                network.set_submodule(node.target, RowWinograd(fused))
                becomes_split = True
            else:
                becomes_split = _keeps_rows(fused) and node.args[0] in split
        for value in node.all_input_nodes:
            node.replace_input_with(value, converted(value, becomes_split))
        if becomes_split:
            split.add(node)


def _takes_winograd(fused: FusedConvolution, rows: int) -> bool:
    # below 64 channels the sums cost more than the products they save: measured on the `demo` networks
    wide = fused.convolution.in_channels >= 64
    wanted = ([0, 1, 1], [1, 1, 1], [1, 1, 1], 1)
    return wide and fused.convolution.kernel_size == (1, 3, 3) and fused.options == wanted and rows % 2 == 0


def _keeps_rows(fused: FusedConvolution) -> bool:
    """Whether each output row comes from the input row of the same index alone."""
    padding, stride, *_ = fused.options
    kernel = fused.convolution.kernel_size
    return len(kernel) == 3 and (kernel[1], stride[1], padding[1]) == (1, 1, 0)


def _output_rows(network: fx.GraphModule, sample: torch.Size) -> dict[str, int]:
    """How many rows (the last axis but one) each convolution gives, by its name."""
    shapes = copy.deepcopy(network).to("meta")
    ShapeProp(shapes).propagate(torch.empty(1, *sample, device="meta", dtype=next(network.parameters()).dtype))
    return {
        str(node.target): node.meta["tensor_meta"].shape[-2]
        for node in shapes.graph.nodes
        if isinstance(module_of(network, node), CONVOLUTIONS)
    }


def _options(convolution: nn.Conv2d | nn.Conv3d) -> tuple[list[int], list[int], list[int], int]:
    """Padding, stride, dilation and groups, as oneDNN's calls take them."""
    padding = [int(size) for size in convolution.padding]
    return padding, list(convolution.stride), list(convolution.dilation), convolution.groups


def _pack(weight: Tensor, options: tuple[list[int], list[int], list[int], int]) -> Tensor:
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *options)


def module_of(network: fx.GraphModule, node: object) -> nn.Module | None:
    """The module that `node` calls, or None."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return network.get_submodule(str(node.target))
    return None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
