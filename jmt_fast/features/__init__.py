"""Clips -> features through the frozen backbones, the store that keeps them, the sequences cut from them."""

from jmt_fast.features.check import check_store
from jmt_fast.features.collection import extract_all
from jmt_fast.features.extract import Block, ClipStream, Extractor
from jmt_fast.features.sequence import run_sequences
from jmt_fast.features.store import FeatureStore, StoreKey, VideoFeatures

__all__ = [
    "Block",
    "ClipStream",
    "Extractor",
    "FeatureStore",
    "StoreKey",
    "VideoFeatures",
    "check_store",
    "extract_all",
    "run_sequences",
]
