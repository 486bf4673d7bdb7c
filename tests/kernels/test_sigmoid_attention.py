"""Sigmoid attention on a CPU: the formula, its edges and errors, and what PyTorch's compiler makes of the op."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jmt_fast.kernels import sigmoid_attention, sigmoid_attention_reference

ROOT = Path(__file__).parents[2]
NAMES = ("dq", "dk", "dv")


def draw(len_q: int, len_k: int, dim: int = 16, dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
    return [torch.randn(2, 3, n, dim, dtype=dtype, requires_grad=grad) for n in (len_q, len_k, len_k)]


def spelled_out(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Any, valid: Tensor | None) -> Tensor:
    """The sum of the definition, one query and one key at a time, in FP64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    for b in range(q.shape[0]):
        shift = float(bias[b]) if isinstance(bias, Tensor) else bias
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                for j in range(k.shape[2]):
                    if valid is None or valid[b, j]:
                        score = float(q[b, h, i].double() @ k[b, h, j].double()) * scale + shift
                        out[b, h, i] += v[b, h, j].double() / (1 + math.exp(-score))
    return out


@pytest.mark.parametrize("bias", [-0.4, torch.tensor([0.3, -2.0])], ids=["number", "tensor"])
@pytest.mark.parametrize("masked", [False, True])
def test_value_is_the_definition(bias: float | Tensor, masked: bool) -> None:
    q, k, v = draw(5, 7)
    valid = torch.rand(2, 7) < 0.6 if masked else None
    truth = spelled_out(q, k, v, 0.3, bias, valid)
    for function in (sigmoid_attention, sigmoid_attention_reference):
        torch.testing.assert_close(function(q, k, v, 0.3, bias, valid).double(), truth, rtol=1e-5, atol=1e-5)


def test_gradients_match_finite_differences() -> None:
    q, k, v = draw(5, 7, 4, torch.float64, grad=True)
    valid, bias = torch.rand(2, 7) < 0.6, torch.randn(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: sigmoid_attention(*x, 0.3, bias, valid), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_match_the_references_autograd(dtype: torch.dtype) -> None:
    q, k, v = draw(13, 8, 20, dtype, grad=True)
    valid = torch.rand(2, 8) < 0.6
    grad = torch.randn_like(q)
    pair = [
        torch.autograd.grad(function(q, k, v, 0.2, -2.0, valid), (q, k, v), grad)
        for function in (sigmoid_attention, sigmoid_attention_reference)
    ]
    for name, found, expected in zip(NAMES, *pair, strict=True):
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_key_orientation_is_the_call_with_q_and_k_exchanged() -> None:
    q, k, v = draw(6, 6)
    truth = torch.einsum("bhij,bhjd->bhid", torch.sigmoid(0.2 * torch.einsum("bhid,bhjd->bhij", k, q) - 1), v)
    torch.testing.assert_close(sigmoid_attention(k, q, v, 0.2, -1.0), truth)


def test_masked_keys_may_hold_nan_and_get_zero_gradients() -> None:
    q, k, v = draw(4, 6)
    valid = torch.tensor([[True, False, True, True, False, True], [False] * 6])
    hidden = ~valid[:, None, :, None]
    bias = -valid.sum(1).float().log()  # +inf for the element without a key
    inputs = [x.requires_grad_() for x in (q, k.masked_fill(hidden, math.nan), v.masked_fill(hidden, math.nan))]
    out = sigmoid_attention(*inputs, 0.5, bias, valid)
    expected = sigmoid_attention(q[:1], k[:1, :, valid[0]], v[:1, :, valid[0]], 0.5, bias[:1])
    torch.testing.assert_close(out[:1], expected)
    assert not out[1].any()
    for name, gradient in zip(NAMES, torch.autograd.grad(out.sum(), inputs), strict=True):
        assert gradient.isfinite().all(), name
        assert not gradient[1].any(), name
        if name != "dq":
            assert not gradient.masked_select(hidden).any() and gradient[0].any(), name


@pytest.mark.parametrize(("len_q", "len_k"), [(0, 0), (3, 0), (0, 3)])
def test_empty_sequences_give_zeros(len_q: int, len_k: int) -> None:
    q, k, v = draw(len_q, len_k, grad=True)
    out = sigmoid_attention(q, k, v)
    assert out.shape == q.shape and not out.any()
    for name, x, gradient in zip(NAMES, (q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
        assert gradient.shape == x.shape and not gradient.any(), name


def test_any_strides() -> None:
    q, k, v = draw(8, 8)
    expected = sigmoid_attention(q, k, v)
    strided = [x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1) for x in (q, k, v)]
    torch.testing.assert_close(sigmoid_attention(*strided), expected)
    shared = q[:1, :1].expand(2, 3, 8, 16)
    torch.testing.assert_close(sigmoid_attention(shared, k, v), sigmoid_attention(shared.contiguous(), k, v))


def test_autocast_does_not_lower_the_precision() -> None:
    q, k, v = draw(8, 8, grad=True)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = sigmoid_attention(q, k, v)
        results.append((out, *torch.autograd.grad(out.sum(), (q, k, v))))
    for name, first, second in zip(("out", *NAMES), *results, strict=True):
        assert torch.equal(first, second), name


X = torch.zeros(2, 1, 4, 8)
WRONG: list[tuple[type[Exception], str, Callable[[], Tensor]]] = [
    (TypeError, "q must be a tensor", lambda: sigmoid_attention([1.0], X, X)),  # type: ignore[arg-type]
    (TypeError, "q must be float16", lambda: sigmoid_attention(X.int(), X.int(), X.int())),
    (TypeError, "v is torch.float16", lambda: sigmoid_attention(X, X, X.half())),
    (ValueError, "k is on meta", lambda: sigmoid_attention(X, X.to("meta"), X)),
    (ValueError, "q must have four", lambda: sigmoid_attention(X[0], X, X)),
    (ValueError, "k must agree", lambda: sigmoid_attention(X, X[..., :4], X[..., :4])),
    (ValueError, "k must agree", lambda: sigmoid_attention(X, X[:1], X[:1])),
    (ValueError, "v must have", lambda: sigmoid_attention(X, X, X[:, :, :3])),
    (TypeError, "scale must", lambda: sigmoid_attention(X, X, X, torch.ones(()))),  # type: ignore[arg-type]
    (TypeError, "bias must be a number", lambda: sigmoid_attention(X, X, X, 1.0, "-log_n")),  # type: ignore[arg-type]
    (TypeError, "bias must be a floating", lambda: sigmoid_attention(X, X, X, 1.0, torch.zeros(2, dtype=torch.int64))),
    (ValueError, "bias must be a number or", lambda: sigmoid_attention(X, X, X, 1.0, torch.zeros(3))),
    (ValueError, "bias is on meta", lambda: sigmoid_attention(X, X, X, 1.0, torch.zeros(2, device="meta"))),
    (ValueError, "bias requires a grad", lambda: sigmoid_attention(X, X, X, 1.0, torch.zeros(2, requires_grad=True))),
    (TypeError, "valid must be a bool", lambda: sigmoid_attention(X, X, X, valid=torch.ones(2, 4))),
    (ValueError, "valid must have shape", lambda: sigmoid_attention(X, X, X, valid=torch.ones(2, 3) > 0)),
    (ValueError, "valid is on meta", lambda: sigmoid_attention(X, X, X, valid=torch.ones(2, 4, device="meta") > 0)),
]


@pytest.mark.parametrize(("error", "message", "call"), WRONG, ids=[message for _, message, _ in WRONG])
def test_errors_name_the_argument(error: type[Exception], message: str, call: Callable[[], Tensor]) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()


@pytest.mark.parametrize("full", [False, True], ids=["bare", "bias and mask"])
def test_opcheck(full: bool) -> None:
    q, k, v = draw(5, 7, grad=True)
    options = (torch.randn(2), torch.rand(2, 7) < 0.6, 0.3, 0.0) if full else (None, None, 0.3, 0.1)
    torch.library.opcheck(torch.ops.jmt_fast.sigmoid_attention, (q, k, v, *options))
    fixed = [x.detach() for x in (torch.randn_like(q), q, k, v)]
    torch.library.opcheck(torch.ops.jmt_fast.sigmoid_attention_backward, (*fixed, *options))


def test_compiles_without_a_break_forward_and_backward() -> None:
    torch._dynamo.reset()
    q, k, v = draw(8, 8, 32, grad=True)
    valid = torch.rand(2, 8) < 0.7
    bias = -valid.sum(1).clamp(min=1).float().log()

    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sigmoid_attention(q * 2, k, v, 0.2, bias, valid).relu()

    expected = step(q, k, v)
    found = torch.compile(step, fullgraph=True)(q, k, v)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    pair = [torch.autograd.grad(out, (q, k, v), grad) for out in (found, expected)]
    for name, x, y in zip(NAMES, *pair, strict=True):
        torch.testing.assert_close(x, y, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("length", [8, 1100], ids=["short", "long"])
def test_exports_with_any_batch_and_length(length: int) -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
            return sigmoid_attention(q, k, v, 0.2, -1.0, valid)

    batch, any_length = torch.export.Dim("batch"), torch.export.Dim("length")
    q, k, v = draw(length, length)
    sizes = {0: batch, 2: any_length}
    program = torch.export.export(
        Attention(),
        (q, k, v, torch.ones(2, length) > 0),
        dynamic_shapes=(sizes, sizes, sizes, {0: batch, 1: any_length}),
    ).run_decompositions()
    longer = [torch.randn(5, 3, 21, 16) for _ in range(3)]
    valid = torch.rand(5, 21) < 0.7
    torch.testing.assert_close(program.module()(*longer, valid), sigmoid_attention(*longer, 0.2, -1.0, valid))


def test_a_package_of_inductor_loads_in_a_fresh_process(tmp_path: Path) -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
            return sigmoid_attention(q * 2, k, v, 0.2, -1.0, valid).relu()

    inputs = (*draw(8, 8), torch.rand(2, 8) < 0.7)
    program = torch.export.export(Attention(), inputs)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "attention.pt2"))
    torch.save((inputs, Attention()(*inputs)), tmp_path / "numbers.pt")
    code = (
        "import sys, torch\n"
        "inputs, expected = torch.load(sys.argv[2])\n"
        "found = torch._inductor.aoti_load_package(sys.argv[1])(*inputs)\n"
        "torch.testing.assert_close(found, expected)\n"
        "assert expected.any() and not any(name.startswith('jmt_fast') for name in sys.modules)\n"
        "print('same')"
    )
    command = [sys.executable, "-c", code, package, str(tmp_path / "numbers.pt")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "same", done.stderr


def test_works_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from jmt_fast.kernels import sigmoid_attention\n"
        "x = torch.ones(1, 1, 2, 4, requires_grad=True)\n"
        "sigmoid_attention(x, x, x).sum().backward()\n"
        "print(x.grad.isfinite().all().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stderr
