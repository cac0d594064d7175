"""FlexAttention, with block masks computed from the bounds of documents.

`create_block_mask` evaluates the mask of every pair of tokens, and can take ten times as long as the attention that it
serves. Here the bounds tell which blocks of 128 keys a block of 128 queries sees, in a few operations on arrays of
blocks.
"""
# ruff: noqa: N803, N806, N812 (the axes are capital letters)

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqmill.errors import UserError
from seqmill.models.attention.dense import MOST_UNFUSED, Prepared
from seqmill.models.attention.pattern import Pattern
from seqmill.models.attention.segments import Segments

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # queries, and keys, of a block
_STEPS = 4  # lengths that a batch may be padded to between one power of two and the next: each is compiled once
_MOST_COMPILED = 64  # shapes of one process; beyond, torch would silently go on without compiling


def prepare_flex(segments: Segments, pattern: Pattern) -> Prepared:
    """Attention by one block mask, for all layers that have this pattern."""
    return _fused(segments, pattern) if segments.cu_seqlens.is_cuda else _unfused(segments, pattern)


def _fused(segments: Segments, pattern: Pattern) -> Prepared:
    tokens = sum(segments.lengths)
    mask, kernel = block_mask(segments, pattern, padded_length(tokens)), _compiled_kernel()
    padding = mask.shape[-1] - tokens

    def attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        parts = (F.pad(x, (0, 0, 0, 0, 0, padding)).transpose(0, 1)[None] for x in (q_THE, k_TKE, v_TKE))
        out_1HTE = kernel(*parts, block_mask=mask, enable_gqa=q_THE.shape[1] != k_TKE.shape[1])
        return out_1HTE[0, :, :tokens].transpose(0, 1)

    return attention


def _unfused(segments: Segments, pattern: Pattern) -> Prepared:
    """The same mask, of every pair of tokens: on a processor torch compiles no backward pass of FlexAttention.

    Raises:
        UserError: there are too many tokens to hold all pairs of them.
    """
    tokens, device = sum(segments.lengths), segments.cu_seqlens.device
    if tokens >= MOST_UNFUSED:
        raise UserError(
            f"attention = 'flex' on {device.type} holds the scores of all pairs of tokens and takes fewer than "
            f"{MOST_UNFUSED} of them, not {tokens}; use attention = 'sdpa', which is exact at any length"
        )
    place, zero = torch.arange(tokens, device=device), torch.zeros((), dtype=torch.int64, device=device)
    mask_mod = _mask_mod(torch.from_numpy(_starts(segments, tokens)).to(device), pattern)
    mask_TT = mask_mod(zero, zero, place[:, None], place)

    def attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        q_1HTE, k_1KTE, v_1KTE = (x.transpose(0, 1)[None] for x in (q_THE, k_TKE, v_TKE))
        out_1HTE = F.scaled_dot_product_attention(q_1HTE, k_1KTE, v_1KTE, attn_mask=mask_TT, enable_gqa=True)
        return out_1HTE[0].transpose(0, 1)

    return attention


def padded_length(tokens: int) -> int:
    """The least length that holds `tokens`, of those that kernels are compiled for: multiples of `BLOCK` with four
    steps from one power of two to the next, so 8,300 tokens get 10,240."""
    blocks = -(-tokens // BLOCK)
    step = 1 << max(0, (blocks - 1).bit_length() - _STEPS.bit_length())
    return -(-blocks // step) * step * BLOCK


def block_mask(segments: Segments, pattern: Pattern, length: int) -> "BlockMask":
    """The block mask of a ragged batch padded to `length` tokens, a multiple of `BLOCK`.

    Each token of padding is a document of its own. A block of keys is full where all queries of a block see all of it,
    partial where some see some.
    """
    from torch.nn.attention.flex_attention import BlockMask  # here: it takes a second to import

    device = segments.cu_seqlens.device
    start_T = _starts(segments, length)
    partial, full = _blocks(start_T, pattern)
    (count, order), (full_count, full_order) = (
        [torch.from_numpy(array).to(device) for array in _listed(kind)] for kind in (partial, full)
    )
    mask_mod = _mask_mod(torch.from_numpy(start_T).to(device), pattern)
    return BlockMask.from_kv_blocks(count, order, full_count, full_order, BLOCK_SIZE=BLOCK, mask_mod=mask_mod)


def _starts(segments: Segments, length: int) -> np.ndarray:
    """int32[length]: the first token of each token's document."""
    lengths = np.array(segments.lengths, dtype=np.int64)
    starts = np.arange(length, dtype=np.int32)
    starts[: lengths.sum()] = np.repeat(lengths.cumsum() - lengths, lengths)
    return starts


def _blocks(start_T: np.ndarray, pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """bool[blocks of queries, blocks of keys] each: whether the keys are seen in part, and in full.

    A query sees the keys from `low`, the beginning of its window or its document, to itself, and the sinks of its
    document. From one query to the next neither bound falls, so the first and the last query of a block tell all:
    together its queries see every key from the first's `low` on, and the sinks of the first's document (a later one
    begins inside the block). What the last one sees in a block before its own, all see.
    """
    position = np.arange(len(start_T))
    low_T = start_T if pattern.window is None else np.maximum(start_T, position - (pattern.window - 1))
    first_low, last_low = (low_T[place::BLOCK, None] for place in (0, BLOCK - 1))
    first_start, last_start = (start_T[place::BLOCK, None] for place in (0, BLOCK - 1))
    begin = position[None, ::BLOCK]  # of the keys of a block
    end = begin + BLOCK
    is_before = begin < begin.T
    seen = end > first_low
    if pattern.sinks:
        seen |= (end > first_start) & (begin < first_start + pattern.sinks)
    last_sinks = last_start + pattern.sinks
    full = is_before & (begin >= last_start) & ((begin >= last_low) | (end <= last_sinks) | (last_low <= last_sinks))
    return (is_before | (begin == begin.T)) & seen & ~full, full


def _listed(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32[1, 1, rows] and int32[1, 1, rows, columns]: how many blocks each row has, and which, these first."""
    order = np.argsort(~blocks, axis=1, kind="stable")
    return blocks.sum(axis=1, dtype=np.int32)[None, None], order.astype(np.int32)[None, None]


def _mask_mod(start_T: Tensor, pattern: Pattern) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Which pairs are seen inside a partial block: positions are counted from the start of the query's document."""

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        start = start_T[query]
        return (key >= start) & pattern.visible(query - start, key - start)

    return visible


@cache
def _compiled_kernel() -> Callable[..., Any]:
    return compile_kernel()


def compile_kernel(compiler: str | Callable[..., Any] = "inductor") -> Callable[..., Any]:
    """The fused kernel, compiled once per padded length and pattern; it raises rather than run unfused.

    Args:
        compiler: a backend of `torch.compile`.
    """
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, backend=compiler, dynamic=False, fullgraph=True)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # inside a compiled model it is part of that
            return flex_attention(*args, **kwargs)
        with torch._dynamo.config.patch(recompile_limit=_MOST_COMPILED):
            return compiled(*args, **kwargs)

    return kernel
