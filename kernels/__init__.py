"""Triton kernels of the project, each with a reference in plain PyTorch. Imports nothing of `jmt_fast`."""

from __future__ import annotations

from .ccc_loss import ccc_loss
from .fused_attention import fused_attention, fused_attention_reference
from .sigmoid_attention import sigmoid_attention
from .sigmoid_attention.reference import sigmoid_attention_reference

__all__ = [
    "ccc_loss",
    "fused_attention",
    "fused_attention_reference",
    "sigmoid_attention",
    "sigmoid_attention_reference",
]
