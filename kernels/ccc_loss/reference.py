"""Concordance correlation in plain PyTorch: the definition, and what runs wherever the Triton kernels do not."""

from __future__ import annotations

import torch
from torch import Tensor

# Below this the series neither differ nor vary: concordance is 0 by definition, and the gradient stays finite.
TINY = float(torch.finfo(torch.float32).tiny)


def ccc_statistics(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """What the loss and its gradient need of two series (N, D), over rows where bool `valid` (N,) holds: FP64 (5, D).

    Rows: mean of the prediction, mean of the target, mean of their difference, CCC, and 2 / (n spread), where spread is
    the denominator of CCC. Differentiable by autograd. Nothing is validated here.
    """
    x, y = prediction.double(), target.double()
    mask = torch.ones_like(x[:, :1], dtype=torch.bool) if valid is None else valid[:, None]
    x, y = x.masked_fill(~mask, 0), y.masked_fill(~mask, 0)
    count = mask.sum().clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return values.masked_fill(~mask, 0).sum(0) / count

    pivot_x, pivot_y = _largest(x.detach(), mask), _largest(y.detach(), mask)  # makes a constant series exactly zero
    dx, dy = x - pivot_x, y - pivot_y
    mean_x, mean_y, difference = mean(dx), mean(dy), mean(x - y)
    dx, dy = dx - mean_x, dy - mean_y
    spread = mean(dx * dx) + mean(dy * dy) + difference.square()
    still = spread <= TINY  # false for NaN, which must show
    spread = spread.masked_fill(still, 1)
    value = 2 * mean(dx * dy) / spread
    return torch.stack((mean_x + pivot_x, mean_y + pivot_y, difference, value, 2 / (count * spread)))


def ccc_gradient(prediction: Tensor, target: Tensor, valid: Tensor | None, statistics: Tensor) -> Tensor:
    """d(sum over D of 1 - CCC) / d prediction (N, D), in the dtype of `statistics`; 0 in rows that are not valid.

    dCCC / dx_i = 2 / (n spread) ((y_i - mean y) - CCC ((x_i - mean x) + mean(x - y))).
    """
    mean_x, mean_y, difference, value, factor = statistics
    x, y = prediction.to(statistics.dtype), target.to(statistics.dtype)
    gradient = factor * (value * (x - mean_x + difference) - (y - mean_y))
    return gradient if valid is None else gradient.masked_fill(~valid[:, None], 0)


def _largest(values: Tensor, mask: Tensor) -> Tensor:
    """The largest value of each column of (N, D) where mask (N, 1) holds; 0 where it nowhere does."""
    if not values.shape[0]:  # len() would fix the number of rows in an exported program
        return values.new_zeros(values.shape[1])
    largest = values.masked_fill(~mask, -torch.inf).amax(0)
    return largest.masked_fill(largest == -torch.inf, 0)
