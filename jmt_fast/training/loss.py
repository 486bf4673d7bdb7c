"""Concordance correlation (Lin, 1989): the metric, the loss, and a streaming form of the metric."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from jmt_fast.kernels.ccc_loss import ccc_loss, ccc_statistics
from jmt_fast.kernels.ccc_loss.reference import TINY

__all__ = ["StreamingCCC", "ccc", "ccc_loss"]


def ccc(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Concordance correlation of each dimension, over all but the last axis.

        CCC = 2 cov(x, y) / (var x + var y + (mean x - mean y)^2)

    with population (1/n) statistics. Accumulated in float64 around a pivot, so an offset common to all values costs
    nothing. A constant series, or fewer than two valid elements, gives 0; its gradient is finite.

    Args:
        prediction: (..., D), any floating dtype.
        target: the same shape.
        valid: bool (...), true where an element counts. The others may be NaN or infinite, and get gradient 0.

    Returns:
        (D,) in the prediction's dtype, at least float32. A valid element that is not finite makes it NaN.

    Raises:
        ValueError: shapes that do not match.
    """
    if prediction.shape != target.shape or prediction.ndim < 1:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have one shape")
    if valid is not None and valid.shape != prediction.shape[:-1]:
        raise ValueError(f"valid {tuple(valid.shape)} must have the shape {tuple(prediction.shape[:-1])}")
    dimensions = prediction.shape[-1]
    mask = None if valid is None else valid.reshape(-1).bool()
    value = ccc_statistics(prediction.reshape(-1, dimensions), target.reshape(-1, dimensions), mask)[3]
    return value.to(torch.promote_types(prediction.dtype, torch.float32))


@dataclass
class StreamingCCC:
    """CCC of two series that arrive in pieces, in float64: update with rows, merge with another one, read the value.

    Keeps count, means and centred second moments of each dimension, combined by the pairwise update of Chan, Golub and
    LeVeque (1979), so the result depends neither on an offset nor (beyond rounding) on how the rows were split.
    """

    dimensions: int = 2
    count: int = 0
    mean: np.ndarray = field(init=False)  # (2, D): prediction, target
    square: np.ndarray = field(init=False)  # (2, D): sums of squared deviations
    cross: np.ndarray = field(init=False)  # (D,): sum of products of deviations

    def __post_init__(self) -> None:
        self.mean = np.zeros((2, self.dimensions))
        self.square = np.zeros((2, self.dimensions))
        self.cross = np.zeros(self.dimensions)

    def update(self, prediction: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Take in rows (..., D), of which those where bool `valid` (...) holds count."""
        x, y = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
        if x.shape != y.shape or x.shape[-1:] != (self.dimensions,):
            raise ValueError(f"prediction {x.shape} and target {y.shape} must have one shape (..., {self.dimensions})")
        if valid is None:
            x, y = x.reshape(-1, self.dimensions), y.reshape(-1, self.dimensions)
        else:
            if np.shape(valid) != x.shape[:-1]:
                raise ValueError(f"valid {np.shape(valid)} must have the shape {x.shape[:-1]}")
            x, y = x[np.asarray(valid, bool)], y[np.asarray(valid, bool)]
        if not len(x):
            return
        rows = np.stack([x, y])  # (2, n, D)
        pivot = rows[:, :1]
        piece = StreamingCCC(self.dimensions, count=len(x))
        piece.mean = (pivot + (rows - pivot).mean(1, keepdims=True))[:, 0]  # exact for a constant series
        deviation = rows - piece.mean[:, None]
        piece.square = (deviation**2).sum(1)
        piece.cross = (deviation[0] * deviation[1]).sum(0)
        self.merge(piece)

    def merge(self, other: StreamingCCC) -> None:
        """Take in all rows that `other` has seen."""
        if other.dimensions != self.dimensions:
            raise ValueError(f"other has {other.dimensions} dimensions, this one {self.dimensions}")
        if not other.count:
            return
        count = self.count + other.count
        shift = other.mean - self.mean
        weight = self.count * other.count / count
        self.square = self.square + other.square + weight * shift**2
        self.cross = self.cross + other.cross + weight * shift[0] * shift[1]
        self.mean = self.mean + shift * (other.count / count)
        self.count = count

    def value(self) -> np.ndarray:
        """CCC so far: float64 (D,); 0 for a constant series and for fewer than two rows."""
        if not self.count:
            return np.zeros(self.dimensions)
        spread = self.square.sum(0) / self.count + (self.mean[0] - self.mean[1]) ** 2
        still = spread <= TINY
        return 2 * self.cross / self.count / np.where(still, 1, spread)
