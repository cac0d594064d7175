"""Causal attention inside documents that lie end to end, with no padding between them.

Tensor names end in their axes: T tokens of all documents, B documents of one group, L positions of a padded document,
H query heads, K key-value heads, E numbers per head.
"""
# ruff: noqa: N803, N806, N812, N815 (the axes are capital letters)

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seqmill.errors import UserError

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10: the dense kernel serves
    varlen_attn = None  # type: ignore[assignment]

HALF_TYPES = (torch.bfloat16, torch.float16)  # what the ragged kernel takes, and what autocast computes in
# Documents share one padded call when they are at least this part of its longest, less the slack: on two cores, a call
# of its own costs a document about as much as eight padded positions.
_SHARED_RATIO = 0.9
_SHARED_SLACK = 8


@dataclass(frozen=True)
class Segments:
    """Where each document lies in a ragged batch."""

    cu_seqlens: Tensor  # int32[documents + 1] on the model's device: 0, end of the first document, ..., T
    lengths: tuple[int, ...]  # tokens of each document, the same facts on the host
    max_seqlen: int  # tokens of the longest document

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Segments":
        """Segments of documents with these lengths, in this order."""
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
        return cls(bounds, tuple(lengths), max(lengths, default=0))

    def positions(self) -> Tensor:
        """int64[T] on the host: the place of every token in its document, counted from 0."""
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        return torch.arange(len(starts)) - starts


AttentionBackend = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]


def attend(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, segments: Segments, backend: str) -> Tensor:
    """Let every token attend to itself and the tokens before it in its own document.

    Args:
        backend: a name in `BACKENDS`, as `choose_backend` returns it.

    Returns:
        out_THE. A document's rows depend on no other document's contents, to the last bit.
    """
    return BACKENDS[backend](q_THE, k_TKE, v_TKE, segments)


def choose_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend to run: `backend` itself, or for "auto" the fastest that this device and type allow.

    Raises:
        UserError: there is no such backend, or it cannot run here.
    """
    ragged = device.type == "cuda" and dtype in HALF_TYPES and varlen_attn is not None
    if backend == "auto":
        return "varlen" if ragged else "sdpa"
    if backend not in BACKENDS:
        raise UserError(f"attention = {backend!r}: there is no such backend; choose auto, {', '.join(BACKENDS)}")
    if backend == "varlen" and not ragged:
        raise UserError(
            f"attention = 'varlen' needs CUDA, bfloat16 or float16 and torch 2.10 or later; this is {device.type}, "
            f"{dtype}, torch {torch.__version__}; use attention = 'auto'"
        )
    return backend


@dataclass(frozen=True)
class _Group:
    """Documents of similar length, side by side in one call of the dense kernel."""

    documents: int
    padded: int  # positions that each gets, at its right end filled up with zeros


@dataclass(frozen=True)
class _Plan:
    """All groups, their padded positions laid end to end."""

    groups: tuple[_Group, ...]
    sizes: tuple[int, ...]  # positions of each group
    slot_T: Tensor  # int64: the position of each token


@lru_cache(maxsize=8)  # the layers of a model share one plan
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


def _dense(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, segments: Segments) -> Tensor:
    """The reference, on any device: scaled-dot-product attention over groups of documents of similar length.

    Padding stands behind a document, so under the causal mask no real token sees it: the result is exact, and shapes
    alone decide how the documents are laid out.
    """
    plan = _plan(segments.lengths, q_THE.device)
    padded = (
        x.new_zeros(sum(plan.sizes), *x.shape[1:]).index_copy(0, plan.slot_T, x).split(list(plan.sizes))
        for x in (q_THE, k_TKE, v_TKE)
    )
    outputs = []
    for group, *parts in zip(plan.groups, *padded, strict=True):
        q_BHLE, k_BKLE, v_BKLE = (x.unflatten(0, (group.documents, group.padded)).transpose(1, 2) for x in parts)
        out_BHLE = F.scaled_dot_product_attention(q_BHLE, k_BKLE, v_BKLE, is_causal=True, enable_gqa=True)
        outputs.append(out_BHLE.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, plan.slot_T)


@cache
def _varlen_causal_arguments(attention: Callable[..., Any]) -> tuple[Mapping[str, Any], bool]:
    """How this torch says "causal", and whether its kernel takes fewer key heads than query heads.

    2.10 has `is_causal`; from 2.11 it is a window that reaches back without end and forward not at all, and 2.12 added
    `enable_gqa`.
    """
    known = inspect.signature(attention).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    grouped = "enable_gqa" in known
    return MappingProxyType(causal | ({"enable_gqa": True} if grouped else {})), grouped


def _varlen(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, segments: Segments) -> Tensor:
    """torch's own ragged kernel, on CUDA in half precision."""
    arguments, grouped = _varlen_causal_arguments(varlen_attn)
    if not grouped:
        k_TKE, v_TKE = (x.repeat_interleave(q_THE.shape[1] // x.shape[1], dim=1) for x in (k_TKE, v_TKE))
    bounds, longest = segments.cu_seqlens, segments.max_seqlen
    out = varlen_attn(q_THE, k_TKE, v_TKE, bounds, bounds, longest, longest, **arguments)
    assert isinstance(out, Tensor)  # a pair only where the log-sum-exp is asked for
    return out


BACKENDS: Mapping[str, AttentionBackend] = MappingProxyType({"sdpa": _dense, "varlen": _varlen})
