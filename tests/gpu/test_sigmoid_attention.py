"""The Triton kernels of sigmoid attention against FP64: on a CUDA device, or under Triton's interpreter.

With TRITON_INTERPRET=1 (set by tests/kernels/test_interpreter.py) the same cases run on a CPU, as far as it can: no
bf16 (the interpreter's products are silently wrong in it) and no long sequences.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from jmt_fast.kernels import sigmoid_attention, sigmoid_attention_reference
from jmt_fast.kernels.sigmoid_attention import specialised
from jmt_fast.kernels.sigmoid_attention.kernel import arch_of, launch_backward, launch_forward

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: runs the compiled kernels")
pytestmark = [] if INTERPRETED else [needs_cuda]
NAMES = ("out", "dq", "dk", "dv")


@dataclass(frozen=True)
class Case:
    """`layout`: how q, k, v and the gradient lie in memory. `bias`: a number, or "-log_n" for a (B,) tensor."""

    batch: int
    heads: int
    len_q: int
    len_k: int
    dim: int
    dtype: torch.dtype = torch.float32
    bias: float | str = 0.0
    masked: bool = False
    layout: str = "dense"

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.heads}x{self.len_q}x{self.len_k}x{self.dim}"
        return f"{shape}-{str(self.dtype)[6:]}-{self.bias}{'-masked' if self.masked else ''}-{self.layout}"


SMALL = [
    Case(2, 1, 1, 1, 16),
    Case(2, 1, 8, 8, 512, bias="-log_n", masked=True),  # JMT's own shape: one tile, one backward pass
    Case(2, 1, 16, 16, 48, bias=-2.7),
    Case(1, 2, 7, 13, 20, bias=-0.7, masked=True, layout="sequence_first"),
    Case(2, 2, 13, 7, 33, bias=0.5, layout="expanded"),
    Case(2, 1, 60, 63, 64, bias="-log_n", masked=True, layout="sliced"),
    Case(1, 1, 100, 64, 32, masked=True, layout="dim_first"),
    Case(1, 1, 16, 100, 128, bias="-log_n", masked=True),
    Case(1, 1, 64, 64, 16, bias=-4.2),  # tiles without a rest
    Case(1, 1, 63, 60, 256, bias="-log_n"),
    Case(1, 1, 17, 40, 512, bias=-3.0, masked=True),  # dK and dV in passes of their own
]
HALF = [replace(case, dtype=torch.float16) for case in SMALL] + [
    Case(1, 1, 100, 100, 128, torch.float16, bias="-log_n", masked=True),
    Case(1, 1, 200, 300, 64, torch.float16, bias=-5.7),
]
LARGE = [
    Case(2, 2, n, n, dim, dtype, bias="-log_n", masked=masked)
    for n in (1000, 4096)
    for dim in (64, 128)
    for masked in (False, True)
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
]
WIDE = [
    Case(1, 1, 1000, 1000, dim, dtype, bias=bias, masked=masked)
    for dim in (16, 32, 256, 512)
    for bias, masked in ((0.0, False), (-math.log(1000), True))
    for dtype in (torch.bfloat16, torch.float16)
]
BFLOAT = [replace(case, dtype=torch.bfloat16) for case in HALF]
CASES = SMALL + HALF + ([] if INTERPRETED else BFLOAT + LARGE + WIDE)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values under other strides. Memory that belongs to no element is NaN, so a stray read shows."""
    batch, heads, length, dim = x.shape
    match layout:
        case "sequence_first":
            return x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
        case "dim_first":
            return x.mT.contiguous().mT
        case "sliced":
            room = x.new_full((batch, heads, length + 70, 2 * dim), math.nan)
            room[:, :, 3 : 3 + length, ::2] = x
            return room[:, :, 3 : 3 + length, ::2]
        case "expanded":
            return x[:1, :1].expand_as(x)
    return x


@cache
def measured(case: Case) -> dict[str, tuple[float, float]]:
    """(largest error against FP64, bound) of the output and each gradient; NaN if anything was left unwritten."""
    torch.manual_seed(0)

    def draw(length: int) -> Tensor:
        x = torch.randn(case.batch, case.heads, length, case.dim, device=DEVICE).to(case.dtype)
        return laid_out(x, case.layout)

    q, k, v, grad = draw(case.len_q), draw(case.len_k), draw(case.len_k), draw(case.len_q)
    valid = None
    if case.masked:
        valid = (torch.rand(case.len_k, case.batch, device=DEVICE) < 0.7).t()
        valid[1:2] = False  # one batch element with no key at all
    present = valid.sum(1) if valid is not None else torch.full((case.batch,), case.len_k, device=DEVICE)
    bias = -present.float().log() if case.bias == "-log_n" else None  # +inf where no key is present
    shift = 0.0 if bias is not None else float(case.bias)
    scale = case.dim**-0.5

    truth = by_autograd(q, k, v, grad, valid, scale, shift if bias is None else bias, torch.float64)
    plain = by_autograd(q, k, v, grad, valid, scale, shift if bias is None else bias, case.dtype)
    if valid is not None and case.layout == "dense":  # what a masked key holds must not matter
        k, v = k.masked_fill(~valid[:, None, :, None], math.nan), v.masked_fill(~valid[:, None, :, None], math.nan)
    out, dq, dk, dv = (torch.full(x.shape, math.nan, dtype=x.dtype, device=DEVICE) for x in (q, q, k, v))
    launch_forward(q, k, v, bias, valid, scale, shift, out)
    launch_backward(grad, q, k, v, bias, valid, scale, shift, dq, dk, dv)

    # Twice the error of plain PyTorch in the same precision, but never less than two roundings of the largest value
    # (a weight's and a sum's): on a handful of elements plain PyTorch can be exact by luck.
    epsilon = torch.finfo(case.dtype).eps
    found = dict(zip(NAMES, (out, dq, dk, dv), strict=True))

    def error(name: str, x: Tensor) -> float:
        return (x.double() - truth[name]).abs().max().item()

    return {
        name: (error(name, found[name]), 2 * max(error(name, plain[name]), epsilon * truth[name].abs().max().item()))
        for name in NAMES
    }


def by_autograd(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, valid: Tensor | None, scale: float, bias: float | Tensor,
    dtype: torch.dtype,
) -> dict[str, Tensor]:  # fmt: skip
    """The formula written out in one precision, differentiated by autograd."""
    q, k, v = (x.detach().to(dtype).clone().requires_grad_() for x in (q, k, v))
    shift = bias.to(dtype)[:, None, None, None] if isinstance(bias, Tensor) else bias
    p = torch.sigmoid(q @ k.mT * scale + shift)
    if valid is not None:
        p = p * valid[:, None, None, :]
    out = p @ v
    return dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(dtype))), strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_against_fp64(case: Case, name: str) -> None:
    error, bound = measured(case)[name]
    assert error <= bound  # also false for NaN: an element that was never written


@needs_cuda
def test_public_function_gives_the_launchers_numbers_and_the_same_ones_again() -> None:
    q, k, v = (torch.randn(2, 4, 300, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    valid = torch.rand(2, 300, device=DEVICE) < 0.8
    grad = torch.randn_like(q)
    runs = []
    for _ in range(2):
        out = sigmoid_attention(q, k, v, 0.125, -math.log(300), valid)
        runs.append((out, *torch.autograd.grad(out, (q, k, v), grad)))
    for name, first, second in zip(NAMES, *runs, strict=True):
        assert torch.equal(first, second), f"{name} differs from run to run"
    direct = torch.full_like(q, math.nan)
    launch_forward(q, k, v, None, valid, 0.125, -math.log(300), direct)
    assert torch.equal(direct, runs[0][0])


def test_infinite_and_nan_inputs_spoil_what_they_spoil_in_the_formula() -> None:
    q, k, v = (torch.randn(1, 2, 21, 16, device=DEVICE) for _ in range(3))
    k[..., 0] = k[..., 0].abs() + 0.1
    q[0, 0, 3, 2] = math.nan
    q[0, 0, 7] = torch.tensor([math.inf] + 15 * [0.0])  # every weight is 1, past the end of the keys too if it counted
    v[0, 1, 2, 5] = math.inf
    valid = torch.ones(1, 21, device=DEVICE, dtype=torch.bool)
    valid[0, 4] = False
    for mask in (None, valid):
        expected = sigmoid_attention_reference(q, k, v, valid=mask)
        assert expected[0, 0, 7].isfinite().all() and expected[0, 0, 3].isnan().all()
        found = torch.empty_like(q)
        launch_forward(q, k, v, None, mask, 1.0, 0.0, found)
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_a_key_row_is_not_spoiled_by_queries_past_the_end() -> None:
    q, k, v, grad = (torch.randn(1, 1, 21, 16, device=DEVICE) for _ in range(4))
    q[..., 0] = q[..., 0].abs() + 0.1
    k[0, 0, 7] = torch.tensor([math.inf] + 15 * [0.0])
    dq, dk, dv = (torch.empty_like(q) for _ in range(3))
    launch_backward(grad, q, k, v, None, None, 1.0, 0.0, dq, dk, dv)
    torch.testing.assert_close(dv[0, 0, 7], grad[0, 0].sum(0))  # its weights are all 1
    assert dk.isfinite().all() and dv.isfinite().all()


def by_specialised_warps(
    q: Tensor, k: Tensor, v: Tensor, bias: float | Tensor, out: Tensor, grad: Tensor, *gradients: Tensor
) -> None:
    """Fill `out` and the gradients of q, k and v, where warps can be specialised so."""
    if not INTERPRETED and (arch := arch_of(q.device)) not in specialised.WARPS["backward_keys"]:
        pytest.skip(f"warps are specialised forward and backward on sm_90, this is sm_{arch}")
    offset, shift = (bias, 0.0) if isinstance(bias, Tensor) else (None, bias)
    about = (q, k, v, offset, q.shape[3] ** -0.5, shift)
    specialised.launch_forward(*about, out)
    specialised.launch_backward(grad, *about, *gradients)


@pytest.mark.parametrize("layout", ["dense", "sequence_first", "expanded"])
@pytest.mark.parametrize("bias", [0.5, -5.7, "-log_n"])
@pytest.mark.parametrize(
    ("len_q", "len_k", "dim"), [(8, 13, 64), (192, 256, 64), (130, 300, 128), (1, 128, 128), (1000, 4096, 64)]
)
def test_specialised_warps_against_fp64(len_q: int, len_k: int, dim: int, bias: float | str, layout: str) -> None:
    if INTERPRETED and len_k > 1000:
        pytest.skip("takes the interpreter too long")
    torch.manual_seed(len_q)
    for dtype in (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16):
        q, k, v, grad = (
            laid_out(torch.randn(2, 2, n, dim, device=DEVICE).to(dtype), layout) for n in (len_q, len_k, len_k, len_q)
        )
        offset = torch.full((2,), -math.log(len_k), device=DEVICE) if isinstance(bias, str) else bias
        found = [torch.full(x.shape, math.nan, dtype=dtype, device=DEVICE) for x in (q, q, k, v)]
        by_specialised_warps(q, k, v, offset, found[0], grad, *found[1:])
        truth, plain = (
            by_autograd(q, k, v, grad, None, dim**-0.5, offset, each) for each in (torch.float64, dtype)
        )  # fmt: skip
        for name, ours in zip(NAMES, found, strict=True):
            largest = truth[name].abs().max()
            allowed = 2 * max((plain[name] - truth[name]).abs().max(), torch.finfo(dtype).eps * largest)
            assert (ours - truth[name]).abs().max() <= allowed, name


def test_specialised_warps_meet_no_infinity_past_the_end() -> None:
    q, k, v, grad = (torch.randn(1, 1, 21, 64, device=DEVICE).half() for _ in range(4))
    found = [torch.empty_like(q) for _ in range(4)]
    k[..., 0] = k[..., 0].abs() + 0.1
    q[0, 0, 7] = torch.tensor([math.inf] + 63 * [0.0])  # every weight is 1
    by_specialised_warps(q, k, v, 0.0, found[0], grad, *found[1:])
    torch.testing.assert_close(found[0][0, 0, 7].float(), v[0, 0].float().sum(0), rtol=2e-3, atol=2e-3)
    assert found[1].isfinite().all()
    q, k = k, q
    by_specialised_warps(q, k, v, 0.0, found[0], grad, *found[1:])
    torch.testing.assert_close(found[3][0, 0, 7].float(), grad[0, 0].float().sum(0), rtol=2e-3, atol=2e-3)
    assert found[2].isfinite().all()


def test_specialised_warps_say_what_they_do_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 1, 32, 64, device=DEVICE).half()
    odd = torch.randn(2048 + 1, device=DEVICE).half()[1:].view_as(q)
    for x in (q.float(), q[..., :48], q.mT.contiguous().mT, odd):
        about = (x, x, x, None, 1.0, 0.0)
        with pytest.raises(ValueError, match="16-bit tensors of width 64 or 128"):
            specialised.launch_forward(*about, torch.empty_like(x))
        with pytest.raises(ValueError, match="16-bit tensors of width 64 or 128"):
            specialised.launch_backward(x, *about, x, x, x)
    if not INTERPRETED:
        monkeypatch.setattr(specialised, "arch_of", lambda device: 80)
        with pytest.raises(ValueError, match=r"sm_90 or sm_100, .* sm_80"):
            specialised.launch_forward(q, q, q, None, 1.0, 0.0, torch.empty_like(q))


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", ["tensor", "number"])
def test_small_weights_keep_their_digits(dtype: torch.dtype, bias: str) -> None:
    """At L = 4096 under the default bias P is about 2.4e-4: an absolute error of that size (`tanh.approx`) would show
    in a sum over one sign. The error of each element is held against that element."""
    length = 4096
    q, k = (torch.randn(1, 2, length, 64, device=DEVICE).to(dtype) for _ in range(2))
    v = (torch.rand(1, 2, length, 64, device=DEVICE) + 0.5).to(dtype)
    shift = -math.log(length)
    offset = torch.full((1,), shift, device=DEVICE) if bias == "tensor" else shift
    found = sigmoid_attention(q, k, v, 0.125, offset)
    truth = torch.sigmoid(q.double() @ k.double().mT * 0.125 + shift) @ v.double()
    assert ((found - truth).abs() / truth).max() <= 3 * torch.finfo(dtype).eps


@needs_cuda
def test_key_orientation_is_the_call_with_q_and_k_exchanged() -> None:
    q, k, v = (torch.randn(2, 1, 60, 512, device=DEVICE) for _ in range(3))
    truth = torch.einsum("bhij,bhjd->bhid", torch.sigmoid(k.double() @ q.double().mT / 23), v.double())
    torch.testing.assert_close(sigmoid_attention(k, q, v, 1 / 23).double(), truth, rtol=1e-5, atol=1e-5)


@needs_cuda
@pytest.mark.parametrize("length", [8, 130])
def test_compiles_without_a_break_forward_and_backward(length: int) -> None:
    q, k, v = (torch.randn(3, 1, length, 128, device=DEVICE, requires_grad=True) for _ in range(3))
    bias = torch.full((3,), -math.log(length), device=DEVICE)

    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sigmoid_attention(q * 2, k, v, 0.1, bias).relu()

    expected = step(q, k, v)
    found = torch.compile(step, fullgraph=True)(q, k, v)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    pair = [torch.autograd.grad(out, (q, k, v), grad) for out in (found, expected)]
    for name, x, y in zip(NAMES[1:], *pair, strict=True):
        torch.testing.assert_close(x, y, msg=lambda text, name=name: f"{name}: {text}")


@needs_cuda
def test_memory_holds_no_score_matrix() -> None:
    length, dim = 4096, 64
    q, k, v = (torch.randn(1, 8, length, dim, device=DEVICE, dtype=torch.bfloat16, requires_grad=True) for _ in "qkv")
    scores = 8 * length * length * 2  # bytes of one (L, L) tensor in bf16
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = sigmoid_attention(q, k, v, dim**-0.5, -math.log(length))
    out.sum().backward()
    tensors = 6 * q.numel() * q.element_size()  # output, its gradient, three gradients, and one to spare
    assert torch.cuda.max_memory_allocated() - before <= tensors < scores / 8


@needs_cuda
def test_more_programs_than_a_second_grid_axis_holds() -> None:
    q = torch.randn(70_000, 1, 1, 16, device=DEVICE)
    torch.testing.assert_close(sigmoid_attention(q, q, q), torch.sigmoid((q * q).sum(-1, keepdim=True)) * q)
