"""The Triton kernels of fused projection and attention against FP64: on a CUDA device, or under Triton's interpreter.

With TRITON_INTERPRET=1 (set by tests/kernels/test_interpreter.py) the small cases run on a CPU in FP32 and FP16.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from jmt_fast.kernels.fused_attention import fused_attention, fused_attention_reference
from jmt_fast.kernels.fused_attention.kernel import launch_attend_backward, launch_forward
from jmt_fast.kernels.fused_attention.projection import project_backward
from jmt_fast.kernels.fused_attention.reference import without_absent

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: runs the compiled kernels")
pytestmark = [] if INTERPRETED else [needs_cuda]

SELF = ([0, 1, 2], [0, 1, 2], [0, 1, 2])  # the encoders: query, key, choice
PAIR = ([1, 0, 2, 1, 2, 0], [0, 1, 1, 2, 0, 2], [0, 1, 2, 3, 4, 5])  # the six cross-attentions
QUERY = (PAIR[0], PAIR[1], PAIR[0])  # weights shared by query stream
NAMES = ("out", "qkv", "dx", "dweight", "dbias")


@dataclass(frozen=True)
class Case:
    """`shift`: a number, or "-log_n" for a (B,) tensor. `split`: the head is too wide for one launch."""

    batch: int
    length: int
    dim: int
    heads: int = 1
    pairs: str = "self"
    activation: str = "sigmoid"
    orientation: str = "key"
    shift: float | str = "-log_n"
    masked: bool = True
    bias: bool = True
    layout: str = "dense"
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        words = [f"{self.batch}x{self.length}x{self.dim}", f"h{self.heads}", self.pairs, self.activation]
        words += [self.orientation, str(self.shift), self.layout, str(self.dtype)[6:]]
        return "-".join(words + ["masked"] * self.masked + ["no_bias"] * (not self.bias))


SMALL = [
    Case(3, 1, 16),
    Case(9, 7, 32, 2, "pair", masked=False, shift=0.3),  # nine sequences and a rest in a tile
    Case(5, 8, 64, 4, "query", "softmax", "query"),
    Case(5, 8, 64, 8, "pair", orientation="query", shift=-2.0, bias=False),
    Case(3, 13, 40, 2, "pair", layout="sequence_first"),  # a head's width that no tile has
    Case(3, 16, 32, 1, "query", "softmax", masked=False, layout="expanded"),
    Case(2, 60, 32, 1, "pair", layout="sliced"),
    Case(2, 63, 32, 2, "self", "softmax", bias=False),
    Case(2, 64, 16, 1, "pair", "softmax", "query", masked=False),
    Case(1, 100, 32, 2, "self", orientation="query"),
    Case(2, 100, 16, 1, "self", "softmax"),
    Case(3, 8, 512, 1, "self"),  # JMT's own width: projected and attended in two launches
    Case(2, 8, 512, 1, "pair", "softmax", "query"),
    Case(2, 8, 256, 1, "self", orientation="query", masked=False),
    Case(40, 8, 16, 1, "self"),  # more programs than multiprocessors: larger tiles
]
HALF = [replace(case, dtype=torch.float16) for case in SMALL]
LARGE = [
    Case(batch, length, 512, heads, pairs, activation, dtype=dtype)
    for batch, length in ((2, 8), (700, 8), (50, 63), (30, 100))
    for heads in (1, 2, 4, 8)
    for pairs, activation in (("self", "sigmoid"), ("pair", "sigmoid"), ("query", "softmax"))
    for dtype in (torch.bfloat16, torch.float16)
]
BFLOAT = [replace(case, dtype=torch.bfloat16) for case in SMALL]
CASES = SMALL + HALF + ([] if INTERPRETED else BFLOAT + LARGE)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values under other strides. Memory that belongs to no element is NaN, so a stray read shows."""
    match layout:
        case "sequence_first":
            return x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
        case "sliced":
            room = x.new_full((*x.shape[:2], x.shape[2] + 9, 2 * x.shape[3]), math.nan)
            room[:, :, 3 : 3 + x.shape[2], ::2] = x
            return room[:, :, 3 : 3 + x.shape[2], ::2]
        case "expanded":
            return x[:1].expand_as(x)
    return x


@cache
def measured(case: Case) -> dict[str, tuple[float, float]]:
    """(largest error against FP64, bound) of the output and each gradient; NaN if anything was left unwritten."""
    torch.manual_seed(0)
    query, key, choice = {"self": SELF, "pair": PAIR, "query": QUERY}[case.pairs]
    sets, dim = max(choice) + 1, case.dim

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE).to(case.dtype)

    x = laid_out(draw(3, case.batch, case.length, dim), case.layout)
    weight, bias = draw(sets, 3 * dim, dim) * dim**-0.5, draw(sets, 3 * dim) if case.bias else None
    grad = draw(case.batch, case.length, len(query) * dim)
    valid = None
    if case.masked:
        valid = torch.rand(case.batch, case.length, device=DEVICE) < 0.7
        valid[1:2] = False  # one sequence with nothing present
    present = torch.full((case.batch,), case.length, device=DEVICE) if valid is None else valid.sum(1)
    offset = -present.float().log() if case.shift == "-log_n" else None  # +inf where nothing is present
    shift = 0.0 if offset is not None else float(case.shift)
    scale = (dim // case.heads) ** -0.5
    options = (
        query, key, choice, case.heads, scale, shift if offset is None else offset, valid, case.activation,
        case.orientation,
    )  # fmt: skip

    truth = by_autograd(x, weight, bias, grad, options, torch.float64)
    plain = by_autograd(x, weight, bias, grad, options, case.dtype)
    if valid is not None and case.layout == "dense":  # what an absent position holds must not matter
        x = x.masked_fill(~valid[..., None], math.nan)
        grad = grad.masked_fill(~valid[..., None], math.nan)
    out = torch.full_like(grad, math.nan)
    qkv = x.new_full((len(query), case.batch * case.length, 3 * dim), math.nan)
    dqkv = torch.full_like(qkv, math.nan)
    flags = (case.activation == "softmax", case.orientation == "key")
    launch_forward(x, weight, bias, offset, valid, query, key, choice, case.heads, scale, shift, *flags, out, qkv)
    launch_attend_backward(grad, qkv, offset, valid, case.heads, scale, shift, *flags, dqkv)
    clean = without_absent(x, valid).flatten(1, 2)
    dx, dweight, dbias = project_backward(dqkv, clean, weight, query, key, choice)
    found = {"out": out, "qkv": qkv, "dx": dx.reshape(x.shape), "dweight": dweight, "dbias": dbias}

    # Twice the error of plain PyTorch in the same precision, and a rounding of the largest value (on a handful of
    # elements plain PyTorch can be exact by luck).
    epsilon = torch.finfo(case.dtype).eps

    def error(name: str, tensor: Tensor) -> float:
        return (tensor.double() - truth[name]).abs().max().item()

    return {
        name: (error(name, found[name]), 2 * error(name, plain[name]) + epsilon * truth[name].abs().max().item())
        for name in truth
    }


def by_autograd(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, options: tuple, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The definition, pair by pair, all in one precision, differentiated by autograd."""
    query, key, choice, heads, scale, shift, valid, activation, orientation = options
    x, weight = (tensor.detach().to(dtype).clone().requires_grad_() for tensor in (x, weight))
    bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias.detach().to(dtype).clone()
    bias.requires_grad_()
    shift = shift.to(dtype)[:, None, None, None] if isinstance(shift, Tensor) else shift
    together = None if valid is None else (valid[:, :, None] & valid[:, None, :])[:, None]
    rows = x if valid is None else x * valid[..., None]
    outputs, saved = [], []
    for asking, asked, chosen in zip(query, key, choice, strict=True):
        w, b = weight[chosen].chunk(3), bias[chosen].chunk(3)
        parts = [torch.nn.functional.linear(rows[s], w[n], b[n]) for n, s in enumerate((asking, asked, asked))]
        saved.append(torch.cat(parts, -1).flatten(0, 1))
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        scores = (k @ q.mT if orientation == "key" else q @ k.mT) * scale
        if activation == "sigmoid":
            p = torch.sigmoid(scores + shift)
        else:
            p = torch.softmax(scores if together is None else scores.masked_fill(~together, -1e4), -1)
        p = p if together is None else p.masked_fill(~together, 0)
        outputs.append((p @ v).transpose(1, 2).flatten(2))
    out = torch.cat(outputs, -1)
    gradients = torch.autograd.grad(out, (x, weight, bias), grad.to(dtype))
    return dict(zip(NAMES, (out.detach(), torch.stack(saved).detach(), *gradients), strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_against_fp64(case: Case, name: str) -> None:
    error, bound = measured(case)[name]
    assert error <= bound  # also false for NaN: an element that was never written


@pytest.mark.parametrize("dim", [32, 512], ids=["one launch", "two launches"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_what_is_not_finite_stays_in_its_sequence(dim: int, activation: str) -> None:
    x = torch.randn(2, 3, 5, dim, device=DEVICE)
    x[0, 1, 2, 3], x[1, 1, 0, 5] = math.nan, math.inf
    weight = torch.randn(2, 3 * dim, dim, device=DEVICE) * dim**-0.5
    options = ([0, 1], [1, 0], [0, 1], 1, dim**-0.5, 0.0, None, activation, "key")
    expected = fused_attention_reference(x, weight, None, *options)
    found = torch.empty_like(expected)
    launch_forward(x, weight, None, None, None, *options[:5], 0.0, activation == "softmax", True, found, None)
    assert not expected[1].isfinite().all() and expected[[0, 2]].isfinite().all()
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-4)
    assert not found[1][~expected[1].isfinite()].isfinite().any()


@needs_cuda
@pytest.mark.parametrize("heads", [1, 8])
def test_public_function_is_deterministic_and_saves_nothing_for_inference(heads: int) -> None:
    x = torch.randn(3, 60, 8, 512, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(6, 1536, 512, device=DEVICE) * 0.04).bfloat16().requires_grad_()
    bias = torch.randn(6, 1536, device=DEVICE).bfloat16().requires_grad_()
    grad = torch.randn(60, 8, 3072, device=DEVICE, dtype=torch.bfloat16)
    runs = []
    for _ in range(2):
        out = fused_attention(x, weight, bias, *PAIR, heads, 0.1, -2.0)
        runs.append((out, *torch.autograd.grad(out, (x, weight, bias), grad)))
    for name, first, second in zip(("out", *NAMES[2:]), *runs, strict=True):
        assert torch.equal(first, second), f"{name} differs from run to run"
    with torch.no_grad():
        assert torch.equal(fused_attention(x, weight, bias, *PAIR, heads, 0.1, -2.0), runs[0][0])


@needs_cuda
@pytest.mark.parametrize("heads", [1, 4])
def test_compiles_without_a_break_forward_and_backward(heads: int) -> None:
    x = torch.randn(3, 5, 8, 256, device=DEVICE, requires_grad=True)
    weight = (torch.randn(6, 768, 256, device=DEVICE) * 0.06).requires_grad_()
    bias = torch.randn(6, 768, device=DEVICE, requires_grad=True)
    valid = torch.rand(5, 8, device=DEVICE) < 0.7
    offset = -valid.sum(1).clamp(min=1).float().log()

    def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused_attention(x * 2, weight, bias, *PAIR, heads, 0.1, offset, valid).relu()

    expected = step(x, weight, bias)
    found = torch.compile(step, fullgraph=True)(x, weight, bias)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    pair = [torch.autograd.grad(out, (x, weight, bias), grad) for out in (found, expected)]
    for name, first, second in zip(NAMES[2:], *pair, strict=True):
        torch.testing.assert_close(first, second, msg=lambda text, name=name: f"{name}: {text}")
