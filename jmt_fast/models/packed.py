"""Parameters of the fast fusion model: weights of equal shape stacked, so that one product serves them all.

In memory they are stacks; in a state dict, and so in every file, they have the stock layout of `FusionParameters`.
Packing costs nothing at a call, and an optimizer sees a fifth as many tensors. Every optimizer that treats elements
alike (SGD, Adam) takes the same steps as on the stock layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from jmt_fast.config import JMTConfig
from jmt_fast.models.parameters import FusionModel, FusionParameters


class Packed(nn.Module):
    """Modules of one structure as one. Each parameter (count, ...) stacks theirs, in the order of `members`.

    `STOCK` gives the name of each parameter inside a member; one that the members lack is None here.
    """

    STOCK: ClassVar[dict[str, str]]

    def __init__(self, members: Mapping[str, nn.Module]) -> None:
        """`members`: the modules by the names that they have in the stock layout."""
        super().__init__()
        self.members = tuple(members)
        states = [dict(module.named_parameters()) for module in members.values()]
        for own, stock in self.STOCK.items():
            pieces = [state[stock].detach() for state in states if stock in state]
            self.register_parameter(own, nn.Parameter(torch.stack(pieces)) if pieces else None)

    def stock_names(self) -> Iterator[tuple[str, list[str]]]:
        """(parameter, stock names of its pieces) of each parameter."""
        for own, stock in self.STOCK.items():
            if getattr(self, own) is not None:
                yield own, [f"{member}.{stock}" for member in self.members]


class PackedAttention(Packed):
    """`AttentionWeights`, `count` times."""

    STOCK: ClassVar = {
        "in_proj_weight": "in_proj_weight",
        "in_proj_bias": "in_proj_bias",
        "out_proj_weight": "out_proj.weight",
        "out_proj_bias": "out_proj.bias",
    }
    in_proj_weight: Tensor  # (count, 3D, D)
    in_proj_bias: Tensor | None  # (count, 3D)
    out_proj_weight: Tensor | None  # (count, D, D)
    out_proj_bias: Tensor | None


class PackedLayer(Packed):
    """`EncoderLayer`, `count` times. Without the transformer's parts all but `attention` is None."""

    STOCK: ClassVar = {
        "norm1_weight": "norm1.weight",
        "norm1_bias": "norm1.bias",
        "up_weight": "feed_forward.0.weight",
        "up_bias": "feed_forward.0.bias",
        "down_weight": "feed_forward.2.weight",
        "down_bias": "feed_forward.2.bias",
        "norm2_weight": "norm2.weight",
        "norm2_bias": "norm2.bias",
    }
    norm1_weight: Tensor  # (count, D)
    norm1_bias: Tensor
    up_weight: Tensor  # (count, ff_dim, D)
    up_bias: Tensor
    down_weight: Tensor  # (count, D, ff_dim)
    down_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor

    def __init__(self, members: Mapping[str, Any]) -> None:
        super().__init__(members)
        self.attention = PackedAttention({f"{name}.attention": layer.attention for name, layer in members.items()})
        self.transformer = next(iter(members.values())).transformer


class PackedHeads(Packed):
    """The two regression heads."""

    STOCK: ClassVar = {
        "hidden_weight": "0.weight",
        "hidden_bias": "0.bias",
        "last_weight": "3.weight",
        "last_bias": "3.bias",
    }
    hidden_weight: Tensor  # (2, HEAD, embed_dim)
    hidden_bias: Tensor  # (2, HEAD)
    last_weight: Tensor  # (2, 1, HEAD)
    last_bias: Tensor  # (2, 1)


class PackedParameters(FusionModel):
    """The parameters of `FusionParameters`, with the same initial values from the same seed.

    | packed | stock |
    | --- | --- |
    | `visual_linear`, `joint`, `out` | the same |
    | `encoders.N` | `encoders.{a,v,av}.N` |
    | `cross` | `cross.*` |
    | `final_encoder.N`, `final_attention` | the same, in stacks of one |
    | `heads` | `valence`, `arousal` |
    """

    encoders: Sequence[PackedLayer]
    final_encoder: Sequence[PackedLayer]

    def __init__(self, config: JMTConfig) -> None:
        super().__init__(config)
        stock = FusionParameters(config)
        self.visual_linear = stock.visual_linear
        if "av" in self.streams:
            self.joint = stock.joint
        if self.pairs:
            self.encoders = nn.ModuleList(  # type: ignore[assignment]
                PackedLayer({f"encoders.{name}.{depth}": stock.encoders[name][depth] for name in self.streams})
                for depth in range(config.layers)
            )
            self.cross = PackedAttention({f"cross.{name}": stock.cross[name] for name in self.cross_names})
        if self.tokens:
            self.final_encoder = nn.ModuleList(  # type: ignore[assignment]
                PackedLayer({f"final_encoder.{depth}": layer}) for depth, layer in enumerate(stock.final_encoder)
            )
            self.final_attention = PackedAttention({"final_attention": stock.final_attention})
        else:
            self.out = stock.out
        self.heads = PackedHeads({"valence": stock.valence, "arousal": stock.arousal})
        self._stock_order = tuple(stock.state_dict())
        self._pieces = {
            f"{place}.{own}": names
            for place, module in self.named_modules()
            if isinstance(module, Packed)
            for own, names in module.stock_names()
        }
        self.register_state_dict_post_hook(_save_in_stock_layout)
        self.register_load_state_dict_pre_hook(_load_from_stock_layout)

    def named_gradients(self) -> dict[str, Tensor | None]:
        """The gradient of each weight by its stock name, as in the state dict; views of the packed gradients."""
        return self._unpacked({name: parameter.grad for name, parameter in self.named_parameters()})

    def _unpacked(self, packed: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        """What belongs to the parameters by their own names, by stock names and in stock order."""
        stock: dict[str, Tensor | None] = {}
        for name, value in packed.items():
            names = self._pieces.get(name, [name])
            pieces = [value] * len(names) if value is None or name not in self._pieces else value.unbind()
            stock.update(zip(names, pieces, strict=True))
        return {name: stock[name] for name in self._stock_order}


def _save_in_stock_layout(model: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    own = [name for name in state if name.startswith(prefix)]
    packed = {name.removeprefix(prefix): state.pop(name) for name in own}
    state.update({prefix + name: value for name, value in model._unpacked(packed).items()})


def _load_from_stock_layout(
    model: Any, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str],
    unexpected: list[str], errors: list[str],
) -> None:  # fmt: skip
    """Stacks the pieces. One that is missing or misshapen is reported by its own name and keeps its present value."""
    parameters = dict(model.named_parameters())
    for packed, names in model._pieces.items():
        if prefix + packed in state and packed not in names:
            unexpected.append(prefix + packed)
        pieces = []
        for name, present in zip(names, parameters[packed].detach().unbind(), strict=True):
            found = state.pop(prefix + name, None)
            if found is None:
                missing.append(prefix + name)
            elif found.shape != present.shape:
                shapes = f"{tuple(found.shape)} in the state dict, {tuple(present.shape)} in the model"
                errors.append(f"size mismatch for {prefix + name}: {shapes}")
                found = None
            pieces.append(present if found is None else found.detach())
        state[prefix + packed] = torch.stack([piece.to(pieces[0].device) for piece in pieces])
