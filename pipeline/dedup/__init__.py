"""Deduplication: exact by text, near by verified MinHash, unit by unit."""

from seqmill.pipeline.dedup.config import PRESETS, DedupConfig
from seqmill.pipeline.dedup.stage import dedup

__all__ = ["PRESETS", "DedupConfig", "dedup"]
