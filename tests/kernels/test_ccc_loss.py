"""The CCC loss on a CPU: gradients, errors, and what PyTorch's compiler makes of the op. Its values: tests/training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jmt_fast.kernels.ccc_loss import ccc_loss, ccc_statistics

ROOT = Path(__file__).parents[2]


def draw(rows: int, dtype: torch.dtype = torch.float64, grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    x, y = (torch.randn(rows, 2, dtype=dtype, requires_grad=grad) for _ in range(2))
    return x, y, torch.rand(rows) < 0.7


def test_gradients_match_finite_differences() -> None:
    x, y, valid = draw(9)
    assert torch.autograd.gradcheck(lambda x, y: ccc_loss(x, y, valid), (x, y))
    assert torch.autograd.gradcheck(lambda x, y: ccc_loss(x + 100, y + 99), (x, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_written_gradient_is_that_of_the_formula(dtype: torch.dtype) -> None:
    x, y, valid = draw(40, dtype)
    found = torch.autograd.grad(ccc_loss(x, y, valid), (x, y))
    expected = torch.autograd.grad((1 - ccc_statistics(x, y, valid)[3]).sum(), (x, y))
    for name, a, b in zip(("prediction", "target"), found, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_opcheck() -> None:
    x, y, valid = draw(7, torch.float32)
    for mask in (None, valid):
        torch.library.opcheck(torch.ops.jmt_fast.ccc_loss, (x, y, mask))
        statistics = ccc_statistics(x, y, mask).detach()
        fixed = (torch.tensor(0.5), x.detach(), y.detach(), mask, statistics)
        torch.library.opcheck(torch.ops.jmt_fast.ccc_loss_backward, fixed)


def test_compiles_without_a_break_forward_and_backward() -> None:
    torch._dynamo.reset()
    x, y, valid = draw(40, torch.float32)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return ccc_loss((x * 2).view(5, 8, 2), y.view(5, 8, 2), valid.view(5, 8))

    expected = loss(x, y)
    found = torch.compile(loss, fullgraph=True)(x, y)
    torch.testing.assert_close(found, expected)
    pair = [torch.autograd.grad(value, (x, y)) for value in (found, expected)]
    for name, a, b in zip(("prediction", "target"), *pair, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_exports_with_any_number_of_rows() -> None:
    class Loss(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return ccc_loss(x, y)

    rows = {0: torch.export.Dim("rows")}
    x, y, _ = draw(12, torch.float32, grad=False)
    program = torch.export.export(Loss(), (x, y), dynamic_shapes=(rows, rows))
    x, y, _ = draw(33, torch.float32, grad=False)
    torch.testing.assert_close(program.module()(x, y), ccc_loss(x, y))


X = torch.zeros(4, 2)
WRONG: list[tuple[type[Exception], str, Callable[[], Tensor]]] = [
    (TypeError, "prediction must be a tensor", lambda: ccc_loss([1.0], X)),  # type: ignore[arg-type]
    (TypeError, "prediction must be float16", lambda: ccc_loss(X.int(), X)),
    (TypeError, "target must be float16", lambda: ccc_loss(X, X.int())),
    (ValueError, "prediction .* must have one shape", lambda: ccc_loss(X, X[:3])),
    (ValueError, "target is on meta", lambda: ccc_loss(X, X.to("meta"))),
    (TypeError, "valid must be a bool", lambda: ccc_loss(X, X, torch.ones(4))),
    (ValueError, "valid .* must have the shape", lambda: ccc_loss(X, X, torch.ones(3) > 0)),
    (ValueError, "valid is on meta", lambda: ccc_loss(X, X, torch.ones(4, device="meta") > 0)),
]


@pytest.mark.parametrize(("error", "message", "call"), WRONG, ids=[message for _, message, _ in WRONG])
def test_errors_name_the_argument(error: type[Exception], message: str, call: Callable[[], Tensor]) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_works_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from jmt_fast.kernels.ccc_loss import ccc_loss\n"
        "x = torch.randn(8, 2, requires_grad=True)\n"
        "ccc_loss(x, torch.randn(8, 2)).backward()\n"
        "print(x.grad.isfinite().all().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr
