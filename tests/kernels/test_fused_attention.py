"""Fused projection and attention on a CPU: the definition, its edges and errors, PyTorch's compiler and exporter."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from functorch.compile import aot_function, make_boxed_func
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget

from jmt_fast.kernels.fused_attention import fused_attention, fused_attention_reference
from jmt_fast.kernels.fused_attention.kernel import launch_settings, programs

ROOT = Path(__file__).parents[2]
SELF = ([0, 1, 2], [0, 1, 2], [0, 1, 2])  # the encoders: query, key, choice
PAIR = ([1, 0, 2, 1, 2, 0], [0, 1, 1, 2, 0, 2], [0, 1, 2, 3, 4, 5])  # the six cross-attentions
QUERY = (PAIR[0], PAIR[1], PAIR[0])  # weights shared by query stream
ODD = ([0, 1, 1], [1, 1, 2], [0, 0, 2])  # one stream twice, one set of weights twice, one not at all
NAMES = ("dx", "dweight", "dbias")
both_activations = pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
both_orientations = pytest.mark.parametrize("orientation", ["key", "query"])
all_pairs = pytest.mark.parametrize("pairs", [SELF, PAIR, QUERY, ODD], ids=["self", "pair", "query", "odd"])


def draw(
    pairs: tuple[list[int], ...], batch: int = 2, length: int = 5, dim: int = 8, dtype: torch.dtype = torch.float32,
    grad: bool = False,
) -> list[Tensor]:  # fmt: skip
    sets = max(pairs[2]) + 1
    shapes = ((3, batch, length, dim), (sets, 3 * dim, dim), (sets, 3 * dim))
    return [torch.randn(shape, dtype=dtype).div(2).requires_grad_(grad) for shape in shapes]


def spelled_out(
    x: Tensor, weight: Tensor, bias: Tensor, pairs: tuple[list[int], ...], heads: int, scale: float, shift: Tensor,
    valid: Tensor, activation: str, orientation: str,
) -> Tensor:  # fmt: skip
    """The sums of the definition, one position at a time, in FP64."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    _, batch, length, dim = x.shape
    out, width = torch.zeros(batch, length, len(pairs[0]) * dim, dtype=torch.float64), dim // heads
    for p, (asking, asked, chosen) in enumerate(zip(*pairs, strict=True)):
        for b in range(batch):
            q, k, v = (
                x[stream, b] @ part.T + offset
                for stream, part, offset in zip(
                    (asking, asked, asked), weight[chosen].chunk(3), bias[chosen].chunk(3), strict=True
                )
            )
            for h in range(heads):
                columns = slice(h * width, (h + 1) * width)
                for i in (i for i in range(length) if valid[b, i]):
                    row, others = (k[i], q) if orientation == "key" else (q[i], k)
                    present = [j for j in range(length) if valid[b, j]]
                    scores = [float(row[columns] @ others[j, columns]) * scale for j in present]
                    if activation == "sigmoid":
                        weights = [1 / (1 + math.exp(-score - float(shift[b]))) for score in scores]
                    else:
                        total = sum(map(math.exp, scores))
                        weights = [math.exp(score) / total for score in scores]
                    mixed = sum(w * v[j, columns] for w, j in zip(weights, present, strict=True))
                    out[b, i, p * dim : (p + 1) * dim][columns] = mixed
    return out


@all_pairs
@both_activations
@both_orientations
def test_value_is_the_definition(pairs: tuple[list[int], ...], activation: str, orientation: str) -> None:
    x, weight, bias = draw(pairs)
    valid, shift = torch.rand(2, 5) < 0.7, torch.randn(2)
    options = (2, 0.7, shift, valid, activation, orientation)
    truth = spelled_out(x, weight, bias, pairs, *options)
    for function in (fused_attention, fused_attention_reference):
        torch.testing.assert_close(function(x, weight, bias, *pairs, *options).double(), truth, rtol=1e-5, atol=1e-5)


@all_pairs
@both_activations
@both_orientations
def test_gradients_match_finite_differences(pairs: tuple[list[int], ...], activation: str, orientation: str) -> None:
    inputs = draw(pairs, length=3, dim=4, dtype=torch.float64, grad=True)
    valid, shift = torch.tensor([[True, False, True], [True] * 3]), torch.randn(2)
    options = (2, 0.7, shift, valid, activation, orientation)
    assert torch.autograd.gradcheck(lambda *tensors: fused_attention(*tensors, *pairs, *options), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@both_activations
def test_gradients_match_the_references_autograd(dtype: torch.dtype, activation: str) -> None:
    inputs = draw(PAIR, length=13, dim=16, dtype=dtype, grad=True)
    valid = torch.rand(2, 13) < 0.6
    pair = []
    for function in (fused_attention, fused_attention_reference):
        out = function(*inputs, *PAIR, 2, 0.3, -2.0, valid, activation)
        assert out.dtype == dtype
        pair.append(torch.autograd.grad(out, inputs, torch.ones_like(out)))
    for name, found, expected in zip(NAMES, *pair, strict=True):
        bound = 8 * torch.finfo(dtype).eps * expected.abs().max().item()  # sums of rounded parts, in another order
        torch.testing.assert_close(found, expected, rtol=0, atol=bound, msg=lambda text, name=name: f"{name}: {text}")


def test_no_bias_no_mask_a_number_as_shift() -> None:
    x, weight, bias = draw(PAIR, grad=True)
    zero, full = torch.zeros_like(bias), torch.ones(2, 5, dtype=torch.bool)
    found = fused_attention(x, weight, None, *PAIR, 2, 0.3, -1.0)
    expected = fused_attention(x, weight, zero, *PAIR, 2, 0.3, torch.full((2,), -1.0), full)
    torch.testing.assert_close(found, expected)
    pair = [torch.autograd.grad(out.square().sum(), (x, weight)) for out in (found, expected)]
    for name, first, second in zip(NAMES, *pair, strict=False):
        torch.testing.assert_close(first, second, msg=lambda text, name=name: f"{name}: {text}")


@both_activations
@both_orientations
def test_absent_positions_may_hold_nan_and_get_zero(activation: str, orientation: str) -> None:
    x, weight, bias = draw(SELF)
    valid = torch.tensor([[True, False, True, True, False], [False] * 5])
    shift = -valid.sum(1).float().log()  # +inf for the sequence with nothing present
    inputs = [x.masked_fill(~valid[..., None], math.nan), weight, bias]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    out = fused_attention(*inputs, *SELF, 2, 0.5, shift, valid, activation, orientation)
    alone = fused_attention(x[:, :1, valid[0]], weight, bias, *SELF, 2, 0.5, shift[:1], None, activation, orientation)
    torch.testing.assert_close(out[:1, valid[0]], alone)
    assert not out[~valid].any()
    dx, dweight, dbias = torch.autograd.grad(out.square().sum(), inputs)
    assert dweight.isfinite().all() and dbias.isfinite().all() and dweight.any() and dbias.any()
    assert not dx[:, ~valid].any() and dx[:, valid].all()


@pytest.mark.parametrize(("batch", "length"), [(0, 8), (2, 0), (0, 0)])
def test_empty_batches_and_sequences(batch: int, length: int) -> None:
    inputs = draw(PAIR, batch, length, grad=True)
    for activation in ("sigmoid", "softmax"):
        out = fused_attention(*inputs, *PAIR, activation=activation)
        assert out.shape == (batch, length, 48)
        for name, x, gradient in zip(NAMES, inputs, torch.autograd.grad(out.sum(), inputs), strict=True):
            assert gradient.shape == x.shape and not gradient.any(), name


def test_any_strides() -> None:
    x, weight, bias = draw(PAIR)
    expected = fused_attention(x, weight, bias, *PAIR)
    strided = x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    turned = weight.mT.contiguous().mT
    torch.testing.assert_close(fused_attention(strided, turned, bias, *PAIR), expected)
    shared = x[:1].expand_as(x)
    torch.testing.assert_close(
        fused_attention(shared, weight, bias, *PAIR), fused_attention(shared.contiguous(), weight, bias, *PAIR)
    )


def test_autocast_changes_nothing() -> None:
    inputs = draw(PAIR, grad=True)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = fused_attention(*inputs, *PAIR)
            results.append((out, *torch.autograd.grad(out.sum(), inputs)))
    for name, first, second in zip(("out", *NAMES), *results, strict=True):
        assert torch.equal(first, second), name


X, W, B = torch.zeros(3, 2, 4, 8), torch.zeros(6, 24, 8), torch.zeros(6, 24)


def call(x: Any = X, weight: Any = W, bias: Any = B, pairs: Any = PAIR, **options: Any) -> Tensor:
    return fused_attention(x, weight, bias, *pairs, **options)


WRONG: list[tuple[type[Exception], str, Callable[[], Tensor]]] = [
    (TypeError, "x must be a tensor", lambda: call([1.0])),
    (TypeError, "x must be float16", lambda: call(X.int())),
    (TypeError, "weight is torch.float16", lambda: call(weight=W.half())),
    (TypeError, "bias is torch.float64", lambda: call(bias=B.double())),
    (ValueError, "weight is on meta", lambda: call(weight=W.to("meta"))),
    (ValueError, "x must have the shape", lambda: call(X[0])),
    (ValueError, "x must hold sequences of at most 128", lambda: call(torch.zeros(3, 1, 129, 8))),
    (ValueError, r"weight must have the shape \(W, 24, 8\)", lambda: call(weight=W[:, :23])),
    (ValueError, r"bias must have the shape \(6, 24\)", lambda: call(bias=B[:5])),
    (TypeError, "query must be a list", lambda: call(pairs=(torch.zeros(6), *PAIR[1:]))),
    (TypeError, "choice must be a list", lambda: call(pairs=(*PAIR[:2], [0.5] * 6))),
    (ValueError, "key must hold one number a pair", lambda: call(pairs=(PAIR[0], [0], PAIR[2]))),
    (ValueError, "query must hold one number a pair", lambda: call(pairs=([], [], []))),
    (ValueError, "key must hold numbers from 0 to 2", lambda: call(pairs=(PAIR[0], [3] * 6, PAIR[2]))),
    (ValueError, "choice must hold numbers from 0 to 5", lambda: call(pairs=(*PAIR[:2], [-1] * 6))),
    (TypeError, "heads must be an integer", lambda: call(heads=2.0)),
    (ValueError, "heads must divide D = 8", lambda: call(heads=3)),
    (TypeError, "scale must be a number", lambda: call(scale="rsqrt")),
    (TypeError, "shift must be a number or", lambda: call(shift="-log_n")),
    (TypeError, "shift must be a floating", lambda: call(shift=torch.zeros(2, dtype=torch.int64))),
    (ValueError, "shift must be a number or a tensor of shape", lambda: call(shift=torch.zeros(3))),
    (ValueError, "shift is on meta", lambda: call(shift=torch.zeros(2, device="meta"))),
    (ValueError, "shift requires a gradient", lambda: call(shift=torch.zeros(2, requires_grad=True))),
    (TypeError, "valid must be a bool", lambda: call(valid=torch.ones(2, 4))),
    (ValueError, "valid must have shape", lambda: call(valid=torch.ones(2, 3) > 0)),
    (ValueError, "valid is on meta", lambda: call(valid=torch.ones(2, 4, device="meta") > 0)),
    (ValueError, "activation must be 'sigmoid' or", lambda: call(activation="relu")),
    (ValueError, "orientation must be 'key' or", lambda: call(orientation="value")),
]


@pytest.mark.parametrize(("error", "message", "wrong"), WRONG, ids=[message for _, message, _ in WRONG])
def test_errors_name_the_argument(error: type[Exception], message: str, wrong: Callable[[], Tensor]) -> None:
    with pytest.raises(error, match=f"^{message}"):
        wrong()


@pytest.mark.parametrize("full", [False, True], ids=["bare", "all options"])
@pytest.mark.parametrize("save", [False, True])
def test_opcheck(full: bool, save: bool) -> None:
    x, weight, bias = draw(PAIR, grad=save)
    valid = torch.rand(2, 5) < 0.6
    extra = (torch.randn(2), valid) if full else (None, None)
    options = (*PAIR, 2, 0.3, -1.0, full, not full)
    op = torch.ops.jmt_fast.fused_attention
    torch.library.opcheck(op, (x, weight, bias if full else None, *extra, *options, save))
    if save:
        x, weight = x.detach(), weight.detach()
        out, qkv = op(x, weight, None, *extra, *options, True)
        backward = torch.ops.jmt_fast.fused_attention_backward
        torch.library.opcheck(backward, (torch.randn_like(out), qkv, x, weight, *extra, *options))


@pytest.mark.parametrize("pairs", [SELF, PAIR], ids=["self", "pair"])
@both_activations
def test_compiles_without_a_break_forward_and_backward(pairs: tuple[list[int], ...], activation: str) -> None:
    torch._dynamo.reset()
    inputs = draw(pairs, 3, 8, 32, grad=True)
    valid = torch.rand(3, 8) < 0.7
    shift = -valid.sum(1).clamp(min=1).float().log()

    def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused_attention(x * 2, weight, bias, *pairs, 2, 0.2, shift, valid, activation).relu()

    expected = step(*inputs)
    found = torch.compile(step, fullgraph=True)(*inputs)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    pair = [torch.autograd.grad(out, inputs, grad) for out in (found, expected)]
    for name, first, second in zip(NAMES, *pair, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_exports_with_any_batch_and_loads_in_a_fresh_process(tmp_path: Path) -> None:
    class Attention(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor, valid: Tensor) -> Tensor:
            return fused_attention(x, weight, bias, *PAIR, 2, 0.2, -1.0, valid)

    batch = torch.export.Dim("batch")
    inputs = (*draw(PAIR, 3, 8), torch.rand(3, 8) < 0.7)
    program = torch.export.export(
        Attention(), inputs, dynamic_shapes=({1: batch}, None, None, {0: batch})
    ).run_decompositions()
    others = (*draw(PAIR, 7, 8), torch.rand(7, 8) < 0.7)
    expected = Attention()(*others)
    torch.testing.assert_close(program.module()(*others), expected)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "attention.pt2"))
    torch.save((others, expected), tmp_path / "numbers.pt")
    code = (
        "import sys, torch\n"
        "inputs, expected = torch.load(sys.argv[2])\n"
        "found = torch._inductor.aoti_load_package(sys.argv[1])(*inputs)\n"
        "torch.testing.assert_close(found, expected)\n"
        "assert expected.any() and not any(name.startswith('jmt_fast') for name in sys.modules)\n"
        "print('same')"
    )
    command = [sys.executable, "-c", code, str(package), str(tmp_path / "numbers.pt")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "same", done.stderr


def test_works_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from jmt_fast.kernels.fused_attention import fused_attention\n"
        "x, w = torch.ones(1, 1, 2, 4, requires_grad=True), torch.ones(1, 12, 4)\n"
        "fused_attention(x, w, None, [0], [0], [0]).sum().backward()\n"
        "print(x.grad.isfinite().all().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize(("heads", "launches"), [(1, 2), (8, 1)])
def test_launches_and_what_they_write(heads: int, launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph that the compiler would see on a GPU: no score matrix, and no qkv of an inference in one launch."""

    class Hopper:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph.code)
        return make_boxed_func(graph.forward)

    with FakeTensorMode():
        x = torch.empty(3, 4, 8, 512, device="cuda", dtype=torch.bfloat16)
        weight, bias = x.new_empty(6, 1536, 512), x.new_empty(6, 1536)
        valid, shift = torch.empty(4, 8, device="cuda", dtype=torch.bool), torch.empty(4, device="cuda")
        aot_function(lambda *tensors: fused_attention(*tensors[:3], *PAIR, heads, 0.1, *tensors[3:]), keep)(
            x, weight, bias, shift, valid
        )
        backward = torch.ops.jmt_fast.fused_attention_backward
        grad, qkv = x.new_empty(4, 8, 3072), x.new_empty(6, 32, 1536)
        aot_function(lambda *tensors: backward(*tensors, *PAIR, heads, 0.1, 0.0, False, True), keep)(
            grad, qkv, x, weight, shift, valid
        )
    forward, backward_code = graphs
    written = re.findall(r"tensors_to_clone = \['(\w+)'\]", forward)
    assert written == {1: ["out"], 2: ["qkv", "out"]}[launches]
    assert re.findall(r"tensors_to_clone = \['(\w+)'\]", backward_code) == ["dqkv"]
    assert "bmm" not in forward and not re.search(r"\b(sigmoid|exp)\b", forward + backward_code)


@pytest.mark.parametrize("length", [1, 8, 60, 128])
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_a_tile_holds_its_sequence_and_small_batches_spread(length: int, heads: int) -> None:
    width = 512 // heads
    for batch in (1, 16, 4096):
        for kernel in ("project_attend", "attend", "attend_backward"):
            launch = launch_settings(kernel, 2, width, batch * length, length, 6 * heads)
            assert launch is None or length <= launch.rows <= 128
    few, many = (launch_settings("project", 2, width, tokens, 8, 6 * 24) for tokens in (16, 32768))
    assert few is not None and many is not None and few.rows == 16 and many.rows == 128


def test_programs_are_those_of_both_ways() -> None:
    assert {described.kernel for described in programs(90)} == {
        "project_attend", "project", "attend", "attend_backward"
    }  # fmt: skip
