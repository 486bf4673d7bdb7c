"""Loss, metric and training of the backbones and the fusion."""

from __future__ import annotations

from jmt_fast.training.loss import StreamingCCC, ccc, ccc_loss

__all__ = ["StreamingCCC", "ccc", "ccc_loss"]
