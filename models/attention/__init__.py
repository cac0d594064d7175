"""Causal attention inside documents that lie end to end, with no padding between them.

    segments    where each document lies
    pattern     what a token sees of its document: all that stands before it, or a window with sinks
    dense       "sdpa": scaled-dot-product attention over groups of documents, on any device, the reference
    flex        "flex": FlexAttention with masks built from the bounds of documents, on CUDA
    varlen      "varlen": torch's ragged kernel, on CUDA in half precision
    backends    one function of (q, k, v, segments) before them all
    choice      which of them to run: asked for, or timed on the first batch

Tensor names end in their axes: T tokens of all documents, B pieces in one call, L positions of a piece, H query heads,
K key-value heads, E numbers per head.
"""

from seqmill.models.attention.backends import BACKENDS, attend, choose_backend, prepare
from seqmill.models.attention.choice import Choice, choose_by_time, choose_for_batch
from seqmill.models.attention.dense import HALF_TYPES
from seqmill.models.attention.pattern import FULL, Pattern, layer_patterns
from seqmill.models.attention.segments import Segments

__all__ = [
    "BACKENDS",
    "FULL",
    "HALF_TYPES",
    "Choice",
    "Pattern",
    "Segments",
    "attend",
    "choose_backend",
    "choose_by_time",
    "choose_for_batch",
    "layer_patterns",
    "prepare",
]
