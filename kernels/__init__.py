"""Triton kernels of the project, each with a reference in plain PyTorch. Imports nothing of `jmt_fast`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch.compiler.config

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

# The compiler finds on disk what it compiled before by the graph that it saw then. In it an op is a name, so code made
# from other formulas or launchers, those of an earlier version, would be found again.
_sources = sorted(Path(__file__).parent.glob("**/*.py"))
torch.compiler.config.cache_key_tag += hashlib.sha256(b"".join(map(Path.read_bytes, _sources))).hexdigest()[:16]
