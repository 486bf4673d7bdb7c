"""Sigmoid attention of long sequences in plain PyTorch: blocks give the formula's numbers and hold no score matrix."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import aot_function, make_boxed_func
from torch import Tensor

from jmt_fast.kernels import sigmoid_attention, sigmoid_attention_reference
from jmt_fast.kernels.sigmoid_attention.blocked import LONG, is_long

NAMES = ("out", "dq", "dk", "dv")
LEN_Q, LEN_K = 1501, 700  # the last block is a short one


def results(function: Callable[..., Tensor], tensors: list[Tensor], *options: Any) -> tuple[Tensor, ...]:
    q, k, v, grad = tensors
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = function(q, k, v, *options)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), grad)


def check_errors(name: str, found: Tensor, usual: Tensor, truth: Tensor) -> None:
    """At most twice the error of plain PyTorch, and one rounding unit of the largest value.

    That holds for the root mean square, which hardly varies from draw to draw. The largest of many errors does.
    """
    unit = torch.finfo(found.dtype).eps * truth.abs().max()
    if found.dtype == torch.float64:  # the truth's own precision: sums of this many terms differ by their order
        unit *= math.sqrt(LEN_Q)
    ours, plain = found - truth, usual - truth
    assert ours.square().mean().sqrt() <= 2 * plain.square().mean().sqrt() + unit, name
    assert ours.abs().max() <= 3 * plain.abs().max() + unit, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("full", [False, True], ids=["bare", "bias and mask"])
def test_error_against_fp64(dtype: torch.dtype, full: bool) -> None:
    shape = [(2, 2, n, 16) for n in (LEN_Q, LEN_K, LEN_K, LEN_Q)]
    tensors = [torch.randn(s, dtype=torch.float64).to(dtype) for s in shape]
    assert is_long(*tensors[:2])
    valid = torch.rand(2, LEN_K) < 0.7 if full else None
    bias: Any = torch.tensor([-6.2, 0.4]) if full else -6.5
    truth = results(sigmoid_attention_reference, [x.double() for x in tensors], 0.35, bias, valid)
    plain = results(sigmoid_attention_reference, tensors, 0.35, bias, valid)
    if valid is not None:
        tensors[1:3] = [x.masked_fill(~valid[:, None, :, None], math.nan) for x in tensors[1:3]]
    for name, found, expected, usual in zip(
        NAMES, results(sigmoid_attention, tensors, 0.35, bias, valid), truth, plain, strict=True
    ):
        assert found.dtype == dtype
        check_errors(name, found, usual, expected)


def test_infinite_and_nan_queries_spoil_their_own_rows_only() -> None:
    q, k, v = (torch.randn(1, 1, 1100, 4) for _ in range(3))
    valid = torch.ones(1, 1100, dtype=torch.bool)
    valid[:, 5] = False
    k[..., 0] = k[..., 0].abs() + 0.1
    q[0, 0, 3] = math.nan
    q[0, 0, 700] = torch.tensor([math.inf, 0, 0, 0])  # every weight is 1
    found = sigmoid_attention(q, k, v, valid=valid)
    assert found[0, 0, 3].isnan().all() and found.isnan().sum() == 4
    usual = sigmoid_attention_reference(q, k, v, valid=valid)
    truth = sigmoid_attention_reference(q.double(), k.double(), v.double(), valid=valid)
    check_errors("out", *(x[truth.isfinite()] for x in (found, usual, truth)))
    torch.testing.assert_close(found[0, 0, 700], v[0, 0, valid[0]].sum(0), rtol=1e-5, atol=1e-3)  # 1,099 terms


def test_peak_memory_is_a_tenth_of_the_formulas(tmp_path: Path) -> None:
    tensors = [torch.randn(1, 2, 2048, 16) for _ in range(4)]

    def peak(function: Callable[..., Tensor]) -> int:
        """Most bytes that were allocated at once while the function and its gradient ran."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            results(function, tensors, 0.25, -7.6)
        profile.export_chrome_trace(str(tmp_path / "trace.json"))
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        events = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
        total = highest = 0
        for event in events:
            total += event["args"]["Bytes"]
            highest = max(highest, total)
        return highest

    formula = peak(sigmoid_attention_reference)
    assert formula >= 2 * 2 * 2048**2 * 4  # the measurement sees its score matrices
    assert peak(sigmoid_attention) <= formula / 10


def test_under_the_compiler_no_tensor_has_the_size_of_the_score_matrix() -> None:
    sizes: list[int] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> Any:
        sizes.extend(n.meta["val"].numel() for n in graph.graph.nodes if isinstance(n.meta.get("val"), Tensor))
        return make_boxed_func(graph.forward)

    tensors = [torch.randn(1, 2, 1024, 8) for _ in range(4)]
    valid = torch.rand(1, 1024) < 0.7
    compiled = aot_function(lambda q, k, v, valid: sigmoid_attention(q, k, v, 0.3, -6.0, valid), keep)
    expected = results(sigmoid_attention_reference, tensors, 0.3, -6.0, valid)
    for name, x, y in zip(NAMES, results(compiled, tensors, valid), expected, strict=True):
        torch.testing.assert_close(x, y, msg=lambda text, name=name: f"{name}: {text}")
    assert 2 * 1024**2 // 32 <= max(sizes) <= 2 * 1024**2 // 16


def test_short_sequences_keep_the_formula() -> None:
    side = math.isqrt(LONG)
    q, k = torch.empty(4096, 8, side - 1, 1, device="meta"), torch.empty(4096, 8, side, 1, device="meta")
    assert not is_long(q, k)
    assert is_long(k, k)
