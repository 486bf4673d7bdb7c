"""Sigmoid attention: the public function and its registration with PyTorch.

The op is a `triton_op`, so `torch.compile` sees through it on every device. On a CUDA device the compiler finds the two
Triton launches; on a CPU it finds the plain formula, because the branch stands inside the op's body. That matters for
short sequences on a CPU: an opaque op would cut the graph in two for TorchInductor, and neither the projections
before nor the additions after the attention could be fused with it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from .blocked import is_long, sigmoid_attention_backward_blocked, sigmoid_attention_blocked
from .reference import sigmoid_attention_backward_reference, sigmoid_attention_reference

# At module level, not inside the op: torch looks for the kernels when an op is registered, and keys its cache of
# compiled graphs by their source. Kernels imported later would be left out of the key.
HAS_TRITON = find_spec("triton") is not None
if HAS_TRITON:
    from ..launch import on_device
    from .kernel import launch_backward, launch_forward, within_reach

__all__ = ["sigmoid_attention"]

MAX_KERNEL_DIM = 512
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def sigmoid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float = 1.0,
    bias: float | Tensor = 0.0,
    valid: Tensor | None = None,
) -> Tensor:
    """`out_i = sum_j sigmoid(scale * q_i . k_j + bias) v_j` over the valid keys j.

    Args:
        q: queries (B, H, Lq, D), float16, bfloat16, float32 or float64.
        k, v: keys and values (B, H, Lk, D), same dtype and device as `q`. Any strides do, expanded tensors included.
        scale: factor of the scores.
        bias: added to the scaled scores: a number, or a floating (B,) tensor, one number per batch element. It is a
            constant: no gradient flows to it. `-log(number of keys)` keeps the sums from growing with the length.
        valid: bool (B, Lk), False for keys that are left out. Such keys and values may hold anything, NaN included;
            their gradients are 0.

    Returns:
        (B, H, Lq, D) in the dtype of `q`: 0 where no key is valid, and where Lk is 0. Gradients flow to q, k and v
        (once: there is no second derivative).

    On a CUDA device and up to D = 512 this runs as tiled Triton kernels, forward and backward, that hold no (Lq, Lk)
    tensor in memory: operands in the dtype of `q` (float32 in IEEE arithmetic, never TF32), sums in float32, results
    the same from run to run. 16-bit inputs under a number as bias of -2 (float16: -1) or more use the GPU's approximate
    tanh, whose error is within their rounding. Elsewhere (CPU, float64, larger D) it is the plain formula, at least in
    float32; from a million scores a head on by blocks of queries, unless the lengths are symbolic.
    Autocast changes nothing here: the dtype of the inputs decides.

    Key orientation (the output's row is the key's, which needs Lq = Lk): pass k as q and q as k.

    Raises:
        TypeError: an argument is not of the kind or dtype stated here.
        ValueError: a shape or device does not fit, or `bias` requires a gradient.

    Source: Ramapuram et al., "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", ICLR 2025, eq. 3, whose
    gradient needs no row statistics; the key orientation is that of the Joint Multimodal Transformer.
    """
    _check_inputs(q, k, v)
    _check_options(q, k, scale, bias, valid)
    if isinstance(bias, Tensor):
        return _forward(q, k, v, bias, valid, float(scale), 0.0)
    return _forward(q, k, v, None, valid, float(scale), float(bias))


def _check_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
        if x.dtype not in DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, not {x.dtype}")
        if x.dtype != q.dtype:
            raise TypeError(f"{name} is {x.dtype} but q is {q.dtype}: they must agree")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} but q is on {q.device}")
        if x.dim() != 4:
            raise ValueError(f"{name} must have four dimensions (B, H, L, D), not shape {tuple(x.shape)}")
    if k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise ValueError(f"k must agree with q in B, H and D: k is {tuple(k.shape)}, q is {tuple(q.shape)}")
    if v.shape != k.shape:
        raise ValueError(f"v must have the shape of k: v is {tuple(v.shape)}, k is {tuple(k.shape)}")


def _check_options(q: Tensor, k: Tensor, scale: float, bias: float | Tensor, valid: Tensor | None) -> None:
    if not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number, not {type(scale).__name__}")
    if isinstance(bias, Tensor):
        if not bias.dtype.is_floating_point:
            raise TypeError(f"bias must be a floating tensor, not {bias.dtype}")
        if bias.shape != q.shape[:1]:
            raise ValueError(f"bias must be a number or a tensor of shape ({q.shape[0]},), not {tuple(bias.shape)}")
        if bias.device != q.device:
            raise ValueError(f"bias is on {bias.device} but q is on {q.device}")
        if bias.requires_grad:
            raise ValueError("bias requires a gradient, but it is a constant here: pass bias.detach()")
    elif not isinstance(bias, (int, float)):
        raise TypeError(f"bias must be a number or a (B,) tensor, not {type(bias).__name__}")
    if valid is None:
        return
    if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        kind = valid.dtype if isinstance(valid, Tensor) else type(valid).__name__
        raise TypeError(f"valid must be a bool tensor, not {kind}")
    if valid.shape != (k.shape[0], k.shape[2]):
        raise ValueError(f"valid must have shape (B, Lk) = {(k.shape[0], k.shape[2])}, not {tuple(valid.shape)}")
    if valid.device != q.device:
        raise ValueError(f"valid is on {valid.device} but q is on {q.device}")


def _runs_as_kernel(q: Tensor) -> bool:
    return q.is_cuda and HAS_TRITON and q.dtype != torch.float64 and q.shape[3] <= MAX_KERNEL_DIM


# `bias` is the (B,) tensor, `shift` the number: a schema has no union of the two. The CPU branch is inside the body
# because a separate CPU registration would hide the formula from the compiler (and fails opcheck).
@triton_op("jmt_fast::sigmoid_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, valid: Tensor | None, scale: float, shift: float
) -> Tensor:
    if not _runs_as_kernel(q):
        formula = sigmoid_attention_blocked if is_long(q, k) else sigmoid_attention_reference
        return formula(q, k, v, scale, shift if bias is None else bias, valid)
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q)
    q, k, v = within_reach(q), within_reach(k), within_reach(v)
    out = torch.empty_like(q)
    with on_device(q.device):
        launch_forward(q, k, v, bias, valid, scale, shift, out)
    return out


@triton_op("jmt_fast::sigmoid_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    valid: Tensor | None,
    scale: float,
    shift: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if not _runs_as_kernel(q):
        formula = sigmoid_attention_backward_blocked if is_long(q, k) else sigmoid_attention_backward_reference
        return formula(grad, q, k, v, scale, shift if bias is None else bias, valid)
    if q.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    grad, q, k, v = within_reach(grad), within_reach(q), within_reach(k), within_reach(v)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    with on_device(q.device):
        launch_backward(grad, q, k, v, bias, valid, scale, shift, dq, dk, dv)
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, bias, valid, scale, shift = inputs
    ctx.save_for_backward(q, k, v, bias, valid)
    ctx.scale, ctx.shift = scale, shift


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, bias, valid = ctx.saved_tensors
    dq, dk, dv = _backward(grad, q, k, v, bias, valid, ctx.scale, ctx.shift)
    return dq, dk, dv, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
