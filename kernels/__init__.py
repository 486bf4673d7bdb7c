"""Triton kernels of the project, each with a reference in plain PyTorch. Imports nothing of `jmt_fast`."""

from __future__ import annotations

from .sigmoid_attention import sigmoid_attention
from .sigmoid_attention.reference import sigmoid_attention_reference

__all__ = ["sigmoid_attention", "sigmoid_attention_reference"]
