"""Projection and attention of short sequences in one op: the public function and its registration with PyTorch.

One call serves JMT's three encoders, another its six cross-attentions. As with `sigmoid_attention` the compiler sees
through the op: Triton launches and a few stacked products on a CUDA device, the plain formula elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from .projection import project, project_backward
from .reference import attend, attend_backward, fused_attention_reference, without_absent

# At module level, not inside the op: torch keys its cache of compiled graphs by the kernels that it finds here.
HAS_TRITON = find_spec("triton") is not None
if HAS_TRITON:
    from ..launch import on_device
    from .kernel import MAX_NUMBERS, MAX_PAIRS, launch_attend_backward, launch_forward

__all__ = ["MAX_LENGTH", "fused_attention", "fused_attention_reference"]

MAX_LENGTH = 128  # rows of the largest tile: a sequence lies in one
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def fused_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    query: Sequence[int],
    key: Sequence[int],
    choice: Sequence[int],
    heads: int = 1,
    scale: float = 1.0,
    shift: float | Tensor = 0.0,
    valid: Tensor | None = None,
    activation: str = "sigmoid",
    orientation: str = "key",
) -> Tensor:
    """P multi-head attentions over S streams of short sequences, input projections included, without the output's.

    With q, k, v of pair p and one head, its columns of `x[query[p]] W_q^T + b_q`, `x[key[p]] W_k^T + b_k` and
    `x[key[p]] W_v^T + b_v` under the weights number choice[p]:

    * orientation "key": `out_i = sum_j f(scale * k_i . q_j + shift) v_j`;
    * orientation "query": `out_i = sum_j f(scale * q_i . k_j + shift) v_j`;

    where f is the sigmoid or the softmax over j, and the sums run over valid positions of the same sequence.

    Args:
        x: the streams (S, B, L, D), L at most 128; float16, bfloat16, float32 or float64. Any strides do.
        weight: (W, 3D, D), the `in_proj_weight` (rows of q, of k, of v) of W attentions; dtype and device of `x`.
        bias: (W, 3D), likewise, or None.
        query, key, choice: P numbers each: which stream asks, which one is asked, and which weights serve pair p.
        heads: a divisor of D.
        scale: factor of the scores.
        shift: added to the scaled scores: a number, or a floating (B,) tensor, one number per sequence. A constant:
            no gradient flows to it. Softmax ignores it.
        valid: bool (B, L), False for absent positions. They may hold anything, NaN included; their rows of the result
            are 0, and so is everything that flows back to them.
        activation: "sigmoid" or "softmax".
        orientation: "key" or "query".

    Returns:
        (B, L, P * D) in the dtype of `x`: pair p in columns p * D to (p + 1) * D, its heads side by side. Gradients
        flow to x, weight and bias (once: there is no second derivative).

    On a CUDA device (up to 15 pairs, 16 streams and 16 sets of weights; not in float64, in float32 up to L = 64)
    Triton kernels do the forward and the attention's backward, deterministically, and matrix products of PyTorch give
    the gradients of x and weight. q, k and v are rounded to the dtype of `x`; scores, f and sums are float32. Elsewhere
    it is the plain formula with the same roundings. Autocast changes nothing here: the dtype of the inputs decides.

    Raises:
        TypeError: an argument is not of the kind or dtype stated here.
        ValueError: a shape, device, number or word does not fit, or `shift` requires a gradient.

    Source: Waligora et al., "Joint Multimodal Transformer for Emotion Recognition in the Wild", CVPRW 2024, the
    encoders' self-attention and section 3.3's cross-attention; weights as `torch.nn.MultiheadAttention` keeps them.
    """
    _check_tensors(x, weight, bias)
    _check_pairs(x, weight, query, key, choice, heads)
    _check_options(x, scale, shift, valid, activation, orientation)
    differentiable = (x, weight) if bias is None else (x, weight, bias)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in differentiable)
    offset, number = (shift, 0.0) if isinstance(shift, Tensor) else (None, float(shift))
    out, _ = _forward(
        x, weight, bias, offset, valid, list(query), list(key), list(choice), heads, float(scale), number,
        activation == "softmax", orientation == "key", save,
    )  # fmt: skip
    return out


def _check_tensors(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, not {tensor.dtype}")
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} is {tensor.dtype} but x is {x.dtype}: they must agree")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}")
    if x.dim() != 4 or x.shape[0] == 0 or x.shape[3] == 0:
        raise ValueError(f"x must have the shape (S, B, L, D) with S and D above 0, not {tuple(x.shape)}")
    if x.shape[2] > MAX_LENGTH:
        raise ValueError(f"x must hold sequences of at most {MAX_LENGTH} positions, not {x.shape[2]}")
    dim = x.shape[3]
    if weight.dim() != 3 or weight.shape[0] == 0 or weight.shape[1:] != (3 * dim, dim):
        raise ValueError(f"weight must have the shape (W, {3 * dim}, {dim}) for this x, not {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:2]:
        raise ValueError(f"bias must have the shape {tuple(weight.shape[:2])}, not {tuple(bias.shape)}")


def _check_pairs(
    x: Tensor, weight: Tensor, query: Sequence[int], key: Sequence[int], choice: Sequence[int], heads: int
) -> None:
    for name, numbers, count in (("query", query, len(x)), ("key", key, len(x)), ("choice", choice, len(weight))):
        if not isinstance(numbers, (list, tuple)) or not all(isinstance(number, int) for number in numbers):
            raise TypeError(f"{name} must be a list of integers, not {numbers!r}")
        if len(numbers) != len(query) or not numbers:
            raise ValueError(f"{name} must hold one number a pair, as many as query, and at least one: {numbers!r}")
        if not all(0 <= number < count for number in numbers):
            raise ValueError(f"{name} must hold numbers from 0 to {count - 1}, not {numbers!r}")
    if not isinstance(heads, int):
        raise TypeError(f"heads must be an integer, not {type(heads).__name__}")
    if heads < 1 or x.shape[3] % heads:
        raise ValueError(f"heads must divide D = {x.shape[3]}, not {heads}")


def _check_options(
    x: Tensor, scale: float, shift: float | Tensor, valid: Tensor | None, activation: str, orientation: str
) -> None:
    if not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number, not {type(scale).__name__}")
    if isinstance(shift, Tensor):
        if not shift.dtype.is_floating_point:
            raise TypeError(f"shift must be a floating tensor, not {shift.dtype}")
        if shift.shape != x.shape[1:2]:
            raise ValueError(f"shift must be a number or a tensor of shape ({x.shape[1]},), not {tuple(shift.shape)}")
        if shift.device != x.device:
            raise ValueError(f"shift is on {shift.device} but x is on {x.device}")
        if shift.requires_grad:
            raise ValueError("shift requires a gradient, but it is a constant here: pass shift.detach()")
    elif not isinstance(shift, (int, float)):
        raise TypeError(f"shift must be a number or a (B,) tensor, not {type(shift).__name__}")
    for name, word, words in (
        ("activation", activation, ("sigmoid", "softmax")), ("orientation", orientation, ("key", "query")),
    ):  # fmt: skip
        if word not in words:
            raise ValueError(f"{name} must be {words[0]!r} or {words[1]!r}, not {word!r}")
    if valid is None:
        return
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        kind = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise TypeError(f"valid must be a bool tensor, not {kind}")
    if valid.shape != x.shape[1:3]:
        raise ValueError(f"valid must have shape (B, L) = {tuple(x.shape[1:3])}, not {tuple(valid.shape)}")
    if valid.device != x.device:
        raise ValueError(f"valid is on {valid.device} but x is on {x.device}")


def _runs_as_kernel(x: Tensor, weight: Tensor, pairs: int) -> bool:
    if not (x.is_cuda and HAS_TRITON) or x.dtype == torch.float64:
        return False
    if x.dtype == torch.float32 and x.shape[2] > MAX_LENGTH // 2:  # two score tiles of 128 x 128 exceed shared memory
        return False
    return pairs <= MAX_PAIRS and len(x) <= MAX_NUMBERS and len(weight) <= MAX_NUMBERS


@triton_op("jmt_fast::fused_attention", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offset: Tensor | None,
    valid: Tensor | None,
    query: list[int],
    key: list[int],
    choice: list[int],
    heads: int,
    scale: float,
    shift: float,
    softmax: bool,
    by_key: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """(out, qkv): queries, keys and values (P, B * L, 3D) for the backward if `save`, else an empty tensor."""
    batch, length, dim = x.shape[1:]
    if not _runs_as_kernel(x, weight, len(query)):
        with torch.autocast(x.device.type, enabled=False):
            q, kv = project(without_absent(x, valid).flatten(1, 2), weight, bias, query, key, choice)
            out = attend(q, kv, x.shape[1:3], heads, scale, shift if offset is None else offset, valid, softmax, by_key)
            return out, torch.cat((q, kv), -1) if save else x.new_empty(0)
    out = x.new_empty(batch, length, len(query) * dim)
    saved = x.new_empty((len(query), batch * length, 3 * dim) if save else (0,))
    if out.numel() > 0:
        with on_device(x.device):
            launch_forward(
                x, weight, bias, offset, valid, query, key, choice, heads, scale, shift, softmax, by_key, out,
                saved if save else None,
            )  # fmt: skip
    return out, saved


@triton_op("jmt_fast::fused_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    qkv: Tensor,
    x: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    valid: Tensor | None,
    query: list[int],
    key: list[int],
    choice: list[int],
    heads: int,
    scale: float,
    shift: float,
    softmax: bool,
    by_key: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    with torch.autocast(x.device.type, enabled=False):
        if not _runs_as_kernel(x, weight, len(query)):
            summand = shift if offset is None else offset
            dqkv = attend_backward(grad, qkv, heads, scale, summand, valid, softmax, by_key)
        else:
            dqkv = torch.empty_like(qkv)
            if grad.numel() > 0:
                with on_device(x.device):
                    launch_attend_backward(grad, qkv, offset, valid, heads, scale, shift, softmax, by_key, dqkv)
        dx, dweight, dbias = project_backward(dqkv, without_absent(x, valid).flatten(1, 2), weight, query, key, choice)
        return dx.reshape(x.shape), dweight, dbias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, offset, valid, *ctx.options, _ = inputs
    ctx.save_for_backward(output[1], x, weight, offset, valid)
    ctx.has_bias = bias is not None


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = _backward(grad, *ctx.saved_tensors, *ctx.options)
    return dx, dweight, dbias if ctx.has_bias else None, *[None] * (2 + len(ctx.options) + 1)


_forward.register_autograd(_differentiate, setup_context=_save)
