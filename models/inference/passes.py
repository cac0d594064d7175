"""Packed forward passes: many sequences end to end in one, which see only themselves.

A sequence longer than a pass goes alone and streamed: each layer reads it a chunk at a time over the keys and values
of all before it (memory.streaming), so it sees all of itself, and memory holds for each of its tokens

    4 (3 D + 2 K E + 2 E) bytes    D model width, K key-value heads, E numbers per head; in float32

and what a pass takes otherwise. Layers with a window are not streamed; only their feed-forward goes in chunks.
"""
# ruff: noqa: N806, N815 (the axes of tensors are capital letters)

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.attention import FULL, Segments, choose_backend, layer_patterns
from seqmill.models.inference.ragged import Ragged
from seqmill.models.memory import PLAIN, MemorySettings
from seqmill.models.transformer import Model

PASS_TOKENS = 16_384  # most tokens of one forward pass


@dataclass(frozen=True, eq=False)
class Pass:
    """Sequences that a model has read."""

    ids_T: Tensor  # int64, on the model's device
    hidden_TD: Tensor  # normalised, of the model's type
    segments: Segments  # which tokens are of which sequence


def packed_passes(model: Model, sequences: Ragged, most_tokens: int = PASS_TOKENS) -> Iterator[Pass]:
    """Read all sequences, in order.

    Args:
        sequences: none of them empty.
        most_tokens: of one forward pass; a longer sequence goes alone, in chunks of so many.

    Raises:
        UserError: `most_tokens` is below 1.
    """
    if most_tokens < 1:
        raise UserError(f"a forward pass of {most_tokens} tokens at most: it must be 1 or more")
    patterns = layer_patterns(model.config)
    backend = choose_backend("auto", model.device, model.head_weight.dtype, patterns)
    in_chunks = MemorySettings(stream_chunk=most_tokens)
    if any(pattern != FULL for pattern in patterns):
        in_chunks = MemorySettings(mlp_tile=most_tokens)
    for chosen in sequences.batches(most_tokens):
        packed = sequences.part(chosen)
        ids_T = torch.tensor(packed.ids, device=model.device)
        segments = Segments.of(packed.lengths.tolist(), model.device)
        memory = PLAIN if len(ids_T) <= most_tokens else in_chunks
        yield Pass(ids_T, model(ids_T, segments.positions().to(model.device), segments, backend, memory), segments)
