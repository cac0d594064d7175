"""Attention of a chunk of a row: its queries, and the keys of its documents from their first token on.

Tensor names end in their axes: C queries of the chunk, P keys from the start of the chunk's first document to the
chunk's end, H query heads, K key-value heads, E numbers per head.
"""
# ruff: noqa: N803, N806, N812 (the axes are capital letters)

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from seqmill.models.attention import Segments

if TYPE_CHECKING:
    from seqmill.models.transformer import LayerAttention

_TILE_QUERIES = 128  # queries of one call on the host: its mask has so many rows, a row for every key


@dataclass(frozen=True)
class Chunk:
    """Neighbouring tokens of a packed row, and what they attend to."""

    tokens: slice  # of the row
    keys: slice  # of the row: from the start of the chunk's first document to the chunk's end
    attention: "LayerAttention"  # (layer, q_CHE, k_PKE, v_PKE) -> out_CHE


def chunks_of(
    segments: Segments, chunk_tokens: int, attention_within: Callable[[Segments], "LayerAttention"]
) -> Iterator[Chunk]:
    """The chunks of a row in order, each at most `chunk_tokens` long.

    A chunk ends with a document where it can, so that documents are cut only where they are longer than a chunk. With
    documents of 5, 3 and 20 tokens and chunks of at most 10: tokens 0-8, 8-18 and 18-28, the last with keys 8-28.

    Args:
        attention_within: attention inside whole documents, which serves all but a document that began earlier.
    """
    bounds = list(accumulate(segments.lengths, initial=0))
    device = segments.cu_seqlens.device
    start = 0
    while start < bounds[-1]:
        first = bisect_right(bounds, start) - 1  # the document that `start` lies in
        last = bisect_right(bounds, start + chunk_tokens) - 1  # the documents before this one end within reach
        ends = bounds[first + 1 : last + 1] or [start + chunk_tokens]
        lengths = [end - begin for begin, end in pairwise([start, *ends])]
        prefix, stop = start - bounds[first], ends[-1]
        if prefix == 0:
            attention = attention_within(Segments.of(lengths, device))
        else:
            others = attention_within(Segments.of(lengths[1:], device)) if lengths[1:] else None
            attention = _behind_prefix(prefix, lengths[0], others)
        yield Chunk(slice(start, stop), slice(bounds[first], stop), attention)
        start = stop


def _behind_prefix(prefix: int, queries: int, others: "LayerAttention | None") -> "LayerAttention":
    """The first document of the chunk began `prefix` tokens earlier and has `queries` tokens in it; `others` is the
    attention of the documents after it."""

    def attention(layer: int, q_CHE: Tensor, k_PKE: Tensor, v_PKE: Tensor) -> Tensor:
        end = prefix + queries
        out_CHE = attend_to_prefix(q_CHE[:queries], k_PKE[:end], v_PKE[:end])
        if others is None:
            return out_CHE
        return torch.cat((out_CHE, others(layer, q_CHE[queries:], k_PKE[end:], v_PKE[end:])))

    return attention


def attend_to_prefix(q_CHE: Tensor, k_PKE: Tensor, v_PKE: Tensor) -> Tensor:
    """Causal attention of the last C tokens of a document to all P of it, C <= P.

    `is_causal` would not do: with fewer queries than keys, torch aligns it to the first keys instead of the last. Its
    bias for that is a mask [C, P] on the host, so there the queries go in tiles that share one mask [tile, P]: all
    keys but the last `tile` are seen by all of its queries.
    """
    (queries, _, _), keys = q_CHE.shape, len(k_PKE)
    if q_CHE.is_cuda:
        from torch.nn.attention.bias import causal_lower_right  # here: it brings the compiler along

        k_PKE, v_PKE = (x.repeat_interleave(q_CHE.shape[1] // x.shape[1], dim=1) for x in (k_PKE, v_PKE))
        return _sdpa(q_CHE, k_PKE, v_PKE, causal_lower_right(queries, keys))
    tile = min(_TILE_QUERIES, queries)
    mask = q_CHE.new_full((tile, tile), -torch.inf).triu_(1)
    mask = torch.cat((mask.new_zeros(tile, keys - tile), mask), dim=1)
    parts = []
    for start in range(0, queries, tile):
        stop = min(start + tile, queries)
        seen = keys - queries + stop
        of_tile = mask[tile - (stop - start) :, keys - seen :]
        parts.append(_sdpa(q_CHE[start:stop], k_PKE[:seen], v_PKE[:seen], of_tile))
    return torch.cat(parts)


def _sdpa(q_CHE: Tensor, k_PKE: Tensor, v_PKE: Tensor, mask_CP: Tensor) -> Tensor:
    q_HCE, k_KPE, v_KPE = (x.transpose(0, 1)[None] for x in (q_CHE, k_PKE, v_PKE))
    grouped = q_CHE.shape[1] != k_PKE.shape[1]
    out_HCE = F.scaled_dot_product_attention(q_HCE, k_KPE, v_KPE, attn_mask=mask_CP, enable_gqa=grouped)
    return out_HCE[0].transpose(0, 1)
