"""Compiled regions: as many shapes and objects as there are, in one process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jmt_fast.cuda_graph import region


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_the_compilers_limit_of_eight_is_no_limit() -> None:
    """It counts the shapes of all objects of a class together, and would raise at the ninth."""
    for factor in (2.0, 3.0):
        compiled = region(Scaled(factor), torch.device("cpu"))
        for rows in range(2, 8):
            assert torch.equal(compiled(torch.ones(rows)), torch.full((rows,), factor))
