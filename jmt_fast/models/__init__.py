"""The networks: fusion (fast and reference), backbones, and their weights in and out."""

from __future__ import annotations

from jmt_fast.models.abaw6 import import_abaw6
from jmt_fast.models.backbones import AudioBackbone, Backbones, VisualBackbone
from jmt_fast.models.clips import Clips
from jmt_fast.models.fusion import JMT
from jmt_fast.models.inference_copy import fast_inference
from jmt_fast.models.prepared import PreparedFusion, prepare_fusion
from jmt_fast.models.reference import ReferenceJMT
from jmt_fast.models.weights import load_backbones, save_backbones

from jmt_fast.models.checkpoint import Checkpoint  # isort: skip  (reads the names above)

__all__ = [
    "JMT",
    "AudioBackbone",
    "Backbones",
    "Checkpoint",
    "Clips",
    "PreparedFusion",
    "ReferenceJMT",
    "VisualBackbone",
    "fast_inference",
    "import_abaw6",
    "load_backbones",
    "prepare_fusion",
    "save_backbones",
]
