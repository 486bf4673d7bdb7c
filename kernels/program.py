"""One compiled form of a kernel, described without a GPU: what an op tells `aot` about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Program:
    """A specialisation of a Triton kernel, as a launch on contiguous tensors would compile it.

    Each op's `kernel.py` has `programs(arch)`, which yields those that its launchers use on that GPU generation.
    """

    op: str
    kernel: str
    dtype: str  # of the operands: "bf16", "fp16" or "fp32"
    shape: str  # for people: "L 4096, D 64"
    function: Any  # the `triton.jit` function
    types: dict[str, str]  # of each argument that is not a constant: "*bf16", "i32", "fp32", "*i1"
    constants: dict[str, Any]  # the `constexpr` arguments, and arguments that Triton makes constant (strides of 1)
    aligned: frozenset[str]  # pointers aligned to 16 bytes, and integers that are multiples of 16
    warps: int
    stages: int
    matrix: bool = True  # whether its products belong on the matrix unit
