"""CCC against exact rational arithmetic, in the corners that a metric must survive."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jmt_fast.training import StreamingCCC, ccc, ccc_loss


def exact(x: torch.Tensor, y: torch.Tensor) -> float:
    """CCC of two 1-D series in rational arithmetic: no rounding at all until the last division."""
    a, b = ([Fraction(v) for v in series.double().tolist()] for series in (x, y))
    n = len(a)
    mean_a, mean_b = sum(a) / n, sum(b) / n
    cov = sum((u - mean_a) * (v - mean_b) for u, v in zip(a, b, strict=True)) / n
    spread = sum((u - mean_a) ** 2 for u in a) / n + sum((v - mean_b) ** 2 for v in b) / n + (mean_a - mean_b) ** 2
    return float(2 * cov / spread)


@pytest.mark.parametrize("shape", [(2,), (7,), (2, 8), (3, 13), (500,)])
@pytest.mark.parametrize("offset", [0.0, 100.0, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_against_exact_arithmetic(shape: tuple[int, ...], offset: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(shape) * 1000 + shape[0])
    target = torch.randn(*shape, 2, generator=generator, dtype=torch.float64)
    prediction = 0.7 * target + 0.3 * torch.randn(*shape, 2, generator=generator, dtype=torch.float64) + 0.1
    target, prediction = (target + offset).to(dtype), (prediction + offset).to(dtype)
    value = ccc(prediction, target)
    assert value.shape == (2,)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    for d in range(2):
        x, y = prediction[..., d].flatten(), target[..., d].flatten()
        if x.unique().numel() == 1 and y.unique().numel() == 1:  # bfloat16 at an offset may leave no variation
            assert value[d] == 0
            continue
        truth = exact(x, y)
        # The output's own rounding, and float64 rounding of centred values magnified by the offset over the spread.
        assert abs(float(value[d]) - truth) <= torch.finfo(value.dtype).eps * 4 + 1e-15 * max(1, abs(offset))
        streamed = StreamingCCC()
        streamed.update(prediction.double().numpy(), target.double().numpy())
        assert abs(streamed.value()[d] - truth) <= 1e-14 * max(1, abs(offset))


def test_known_values() -> None:
    target = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 2.0]])
    assert ccc(target, target).tolist() == [1, 1]
    assert ccc(-target, target)[0] == -1
    assert ccc(target + torch.tensor([1.0, 0.0]), target)[0] == pytest.approx(2 * (2 / 3) / (4 / 3 + 1), rel=1e-6)
    assert ccc_loss(target, target) == 0


@pytest.mark.parametrize("constant", [0.0, 0.1, -5.0, 1e4, 1 / 3])
@pytest.mark.parametrize("rows", [1, 3, 16, 1001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_give_zero_and_finite_gradients(constant: float, rows: int, dtype: torch.dtype) -> None:
    varying = torch.randn(rows, 2, generator=torch.Generator().manual_seed(rows), dtype=dtype)
    flat = torch.full((rows, 2), constant, dtype=dtype)
    for x, y in [(flat, varying), (varying, flat), (flat, flat), (flat, flat + 1)]:
        prediction = x.clone().requires_grad_()
        value = ccc(prediction, y)
        assert value.tolist() == [0, 0]
        value.sum().backward()
        assert prediction.grad is not None and prediction.grad.isfinite().all()
        streamed = StreamingCCC()
        for part in np.array_split(np.arange(rows), min(rows, 3)):
            streamed.update(x.numpy()[part], y.numpy()[part])
        assert streamed.value().tolist() == [0, 0]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -5.0])
@pytest.mark.parametrize("kept", [0, 1, 2, 9])
def test_masked_elements_do_not_leak(poison: float, kept: int) -> None:
    generator = torch.Generator().manual_seed(kept)
    prediction, target = torch.randn(3, 7, 2, generator=generator), torch.randn(3, 7, 2, generator=generator)
    valid = torch.zeros(21, dtype=torch.bool)
    valid[torch.randperm(21, generator=generator)[:kept]] = True
    valid = valid.view(3, 7)
    prediction[~valid], target[~valid] = poison, poison
    prediction.requires_grad_()
    value = ccc(prediction, target, valid)
    alone = prediction.detach()[valid].requires_grad_()
    expected = ccc(alone, target[valid])
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    if kept < 2:
        assert value.tolist() == [0, 0]
    value.sum().backward()
    expected.sum().backward()
    assert prediction.grad is not None and alone.grad is not None
    assert (prediction.grad[~valid] == 0).all()
    torch.testing.assert_close(prediction.grad[valid], alone.grad, rtol=1e-5, atol=1e-7)
    streamed = StreamingCCC()
    streamed.update(prediction.detach().numpy(), target.numpy(), valid.numpy())
    assert streamed.count == kept
    np.testing.assert_allclose(streamed.value(), expected.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_valid_nan_shows() -> None:
    prediction = torch.randn(8, 2)
    prediction[3, 1] = float("nan")
    value = ccc(prediction, torch.randn(8, 2))
    assert value[0].isfinite() and value[1].isnan()


def test_gradient() -> None:
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(2, 5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    valid = torch.rand(2, 5, generator=generator) < 0.7
    assert torch.autograd.gradcheck(lambda p: ccc_loss(p, y, valid), x.requires_grad_())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 100.0]))
def test_any_split_and_order_of_merging_agree(pieces: list[int], seed: int, offset: float) -> None:
    generator = np.random.default_rng(seed)
    rows = [generator.normal(offset, 1, (2, n, 2)) for n in pieces]
    whole = StreamingCCC()
    joined = np.concatenate(rows, 1)
    whole.update(joined[0], joined[1])
    merged = StreamingCCC()
    for x, y in reversed(rows):
        part = StreamingCCC()
        part.update(x, y)
        merged.merge(part)
    assert merged.count == whole.count == sum(pieces)
    np.testing.assert_allclose(merged.value(), whole.value(), atol=1e-11)
    np.testing.assert_allclose(whole.value(), ccc(*map(torch.from_numpy, joined)).numpy(), atol=1e-12)


def test_three_million_rows_at_an_offset_with_an_outlier() -> None:
    generator = np.random.default_rng(3)
    target = generator.normal(100, 0.3, (3_000_000, 2)).astype(np.float32)
    prediction = (target + generator.normal(0, 0.2, target.shape)).astype(np.float32)
    prediction[1234] = -1e4
    streamed = StreamingCCC()
    for part in np.array_split(np.arange(len(target)), 50):
        streamed.update(prediction[part], target[part])
    x, y = prediction.astype(np.longdouble), target.astype(np.longdouble)
    dx, dy = x - x.mean(0), y - y.mean(0)
    truth = 2 * (dx * dy).mean(0) / ((dx**2).mean(0) + (dy**2).mean(0) + (x.mean(0) - y.mean(0)) ** 2)
    np.testing.assert_allclose(streamed.value(), truth.astype(float), rtol=1e-10)
    batch = ccc(torch.from_numpy(prediction), torch.from_numpy(target))
    np.testing.assert_allclose(batch.numpy(), truth.astype(float), rtol=1e-6)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="prediction"):
        ccc(torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="valid"):
        ccc(torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="prediction"):
        StreamingCCC().update(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="valid"):
        StreamingCCC().update(np.zeros((3, 2)), np.zeros((3, 2)), np.ones(2, bool))


def test_compiled_equals_eager() -> None:
    """Without a mask; with one it is part of the compiled training step."""
    compiled = torch.compile(ccc_loss, fullgraph=True, dynamic=False)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        target = torch.randn(32, 2, generator=generator)
        prediction = (target + torch.randn(32, 2, generator=generator)).requires_grad_()
        value, expected = compiled(prediction, target), ccc_loss(prediction, target)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        grads = [torch.autograd.grad(loss, prediction)[0] for loss in (value, expected)]
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)
