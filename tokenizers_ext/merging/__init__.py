"""Byte-pair merging as a kernel of its own: it trains vocabularies and shortens batches of ids."""

from seqmill.tokenizers_ext.merging.batch import (
    MergeConfig,
    MergedBatch,
    MergeTable,
    apply_table,
    expand,
    learn_table,
    merge_batch,
)
from seqmill.tokenizers_ext.merging.encoder import MergedEncoder

__all__ = [
    "MergeConfig",
    "MergeTable",
    "MergedBatch",
    "MergedEncoder",
    "apply_table",
    "expand",
    "learn_table",
    "merge_batch",
]
