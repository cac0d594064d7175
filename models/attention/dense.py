"""The reference, on any device: scaled-dot-product attention over pieces of documents that share a call.

Shapes alone decide how documents are laid out, and nothing grows with the square of a document that is longer than the
window.
"""
# ruff: noqa: N803, N806, N812, N815 (the axes are capital letters)

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from seqmill.errors import UserError
from seqmill.models.attention.pattern import FULL, Pattern
from seqmill.models.attention.segments import Segments

HALF_TYPES = (torch.bfloat16, torch.float16)  # what fast kernels on CUDA take, and what autocast computes in
MOST_UNFUSED = 1024  # tokens of a document up to which a kernel may hold all of its scores
# Documents share one padded call when they are at least this part of its longest, less the slack: on two cores, a call
# of its own costs a document about as much as eight padded positions.
_SHARED_RATIO = 0.9
_SHARED_SLACK = 8
_CHUNKS = (64, 2048)  # least and most queries of a chunk behind the window: its mask has so many rows

Prepared = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q_THE, k_TKE, v_TKE) -> out_THE, for the documents and the pattern it was prepared for."""


def prepare_dense(segments: Segments, pattern: Pattern) -> Prepared:
    """Attention over groups of documents of similar length, or over one batch where all have the same."""
    if pattern.window is not None and segments.max_seqlen > pattern.window:
        return _windowed(segments, pattern, pattern.window)
    return _even(len(segments.lengths)) if segments.are_even else _grouped(segments)


def _even(documents: int) -> Prepared:
    """Documents of one length: they are a batch already, and nothing is copied."""

    def attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        return _scaled_dot_product(*(x.unflatten(0, (documents, -1)) for x in (q_THE, k_TKE, v_TKE))).flatten(0, 1)

    return attention


@dataclass(frozen=True)
class _Group:
    """Documents of similar length, side by side in one call."""

    documents: int
    padded: int  # positions that each gets, at its right end filled up with zeros


@dataclass(frozen=True)
class _Plan:
    """All groups, their padded positions laid end to end."""

    groups: tuple[_Group, ...]
    sizes: tuple[int, ...]  # positions of each group
    slot_T: Tensor  # int64: the position of each token


def _grouped(segments: Segments) -> Prepared:
    """Documents of any lengths, padded to the longest of their group.

    Padding stands behind a document, so under the causal mask no real token sees it.
    """
    plan = _plan(segments.lengths, segments.cu_seqlens.device)

    def attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        padded = (
            x.new_zeros(sum(plan.sizes), *x.shape[1:]).index_copy(0, plan.slot_T, x).split(list(plan.sizes))
            for x in (q_THE, k_TKE, v_TKE)
        )
        outputs = [
            _scaled_dot_product(*(x.unflatten(0, (group.documents, group.padded)) for x in parts)).flatten(0, 1)
            for group, *parts in zip(plan.groups, *padded, strict=True)
        ]
        return torch.cat(outputs).index_select(0, plan.slot_T)

    return attention


def _plan(lengths: tuple[int, ...], device: torch.device) -> _Plan:
    members: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lambda document: -lengths[document]):
        longest = lengths[members[-1][0]] if members else 0
        if members and lengths[document] >= longest * _SHARED_RATIO - _SHARED_SLACK:
            members[-1].append(document)
        else:
            members.append([document])
    groups = tuple(_Group(len(group), lengths[group[0]]) for group in members)
    starts, base = [0] * len(lengths), 0
    for group, shape in zip(members, groups, strict=True):
        for document in group:
            starts[document] = base
            base += shape.padded
    slot_T = torch.repeat_interleave(torch.tensor(starts), torch.tensor(lengths)) + Segments.of(lengths).positions()
    return _Plan(groups, tuple(group.documents * group.padded for group in groups), slot_T.to(device))


@dataclass(frozen=True)
class _Chunks:
    """Pieces of documents behind their first window, which one mask fits.

    With a window of 4, 1 sink and chunks of 4, positions 8 to 11 of a document are a chunk. It has 1 + 7 keys: the
    sink, and positions 5 to 11. Where a document ends inside a chunk its last token stands in for those that are not
    there: no query of the document sees it.
    """

    query_BL: Tensor  # int64: the token of each query
    key_BL: Tensor  # int64: the token of each key, sinks first
    mask_LL: Tensor  # bool: which keys a query sees


def _windowed(segments: Segments, pattern: Pattern, window: int) -> Prepared:
    """Documents of which some are longer than the window.

    The first `window` tokens of a document see all that stands before them, as if they were the whole of it. The others
    are attended to in chunks, so that time and memory grow with tokens times the window.
    """
    device = segments.cu_seqlens.device
    lengths = np.array(segments.lengths)
    head_N = (segments.positions() < window).nonzero()[:, 0].to(device)
    heads = prepare_dense(Segments.of(np.minimum(lengths, window).tolist(), device), FULL)
    tails = _cut(lengths, pattern, window, device)
    tokens = torch.cat([head_N, *(chunks.query_BL.flatten() for chunks in tails)]).cpu().numpy()
    place_T = torch.from_numpy(np.unique(tokens, return_index=True)[1]).to(device)  # where each token is first

    def attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        outputs = [heads(*(x.index_select(0, head_N) for x in (q_THE, k_TKE, v_TKE)))]
        for chunks in tails:
            q_BLHE = q_THE[chunks.query_BL]
            k_BLKE, v_BLKE = k_TKE[chunks.key_BL], v_TKE[chunks.key_BL]
            outputs.append(_scaled_dot_product(q_BLHE, k_BLKE, v_BLKE, chunks.mask_LL).flatten(0, 1))
        return torch.cat(outputs).index_select(0, place_T)

    return attention


def _cut(lengths: np.ndarray, pattern: Pattern, window: int, device: torch.device) -> list[_Chunks]:
    """The chunks of all documents, those that one mask fits together."""
    least, most = _CHUNKS
    size = max(pattern.sinks, min(max(window // 2, least), most))  # from the second chunk on all see all sinks
    counts = -(-np.maximum(lengths - window, 0) // size)
    document = np.repeat(np.arange(len(lengths)), counts)
    nth = np.arange(len(document)) - np.repeat(counts.cumsum() - counts, counts)
    begin, last = ((x[document])[:, None] for x in (lengths.cumsum() - lengths, lengths - 1))
    first = window + nth[:, None] * size
    query_BL = begin + np.minimum(first + np.arange(size), last)
    near_BL = first - window + 1 + np.arange(window - 1 + size)
    sinks_BL = np.broadcast_to(np.arange(pattern.sinks), (len(nth), pattern.sinks))
    key_BL = begin + np.minimum(np.concatenate((sinks_BL, near_BL), axis=1), last)
    kinds = [(nth == 0, window), (nth > 0, window + size)] if pattern.sinks else [(nth >= 0, window)]
    return [
        _Chunks(
            torch.from_numpy(query_BL[chosen]).to(device),
            torch.from_numpy(key_BL[chosen]).to(device),
            _chunk_mask(first, size, window, pattern.sinks).to(device),
        )
        for chosen, first in kinds
        if chosen.any()
    ]


def _chunk_mask(first: int, size: int, window: int, sinks: int) -> Tensor:
    """bool[size, sinks + window - 1 + size]: what the `size` queries from position `first` on see; a sink that lies in
    the window is seen there, not twice."""
    query = torch.arange(first, first + size)[:, None]
    far = query - torch.arange(sinks) >= window
    near = Pattern(window).visible(query, torch.arange(first - window + 1, first + size))
    return torch.cat((far, near), dim=1)


def _scaled_dot_product(q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, mask_LL: Tensor | None = None) -> Tensor:
    """out_BLHE of B pieces, causal where there is no mask.

    Raises:
        UserError: on CUDA no kernel takes these heads without holding all scores of a long document.
    """
    q_BHLE, k_BKLE, v_BKLE = (x.transpose(1, 2) for x in (q_BLHE, k_BLKE, v_BLKE))
    attention = F.scaled_dot_product_attention
    if not q_BHLE.is_cuda:
        out_BHLE = attention(q_BHLE, k_BKLE, v_BKLE, mask_LL, is_causal=mask_LL is None, enable_gqa=True)
        return out_BHLE.transpose(1, 2)
    if mask_LL is not None or q_BHLE.dtype not in HALF_TYPES:  # the kernel for these knows no grouped heads
        k_BKLE, v_BKLE = (x.repeat_interleave(q_BHLE.shape[1] // x.shape[1], dim=1) for x in (k_BKLE, v_BKLE))
    try:
        with sdpa_kernel(_kernels(q_BHLE.device, q_BHLE.shape[2]), set_priority=True):
            out_BHLE = attention(q_BHLE, k_BKLE, v_BKLE, mask_LL, is_causal=mask_LL is None, enable_gqa=True)
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        raise UserError(
            f"attention = 'sdpa': no fused kernel takes heads of {q_BHLE.shape[-1]} numbers in {q_BHLE.dtype} on this "
            f"device, and one that holds all scores is refused above {MOST_UNFUSED} tokens, here {q_BHLE.shape[2]}; "
            "use attention = 'flex', or heads of at most 256 numbers, a multiple of 8"
        ) from error
    return out_BHLE.transpose(1, 2)


def _kernels(device: torch.device, longest: int) -> list[SDPBackend]:
    """The kernels that may run, best first; one that holds all scores only where they are few."""
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    best = [SDPBackend.CUDNN_ATTENTION] if _has_fast_cudnn(device) else []
    return best + fused + ([SDPBackend.MATH] if longest <= MOST_UNFUSED else [])


@cache
def _has_fast_cudnn(device: torch.device) -> bool:
    """cuDNN is 1.7 to 2.3 times as fast as flash attention on Hopper, and slower on older cards."""
    return torch.cuda.get_device_capability(device)[0] == 9
