"""Whole rows for some of the heads: DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv 2309.14509).

Tensor names end in their axes: T tokens of the batch, S tokens of this rank, R ranks, H query heads, K key-value
heads, E numbers per head; h heads of one rank.
"""
# ruff: noqa: N803, N806 (the axes are capital letters)

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from seqmill.errors import UserError
from seqmill.models.attention import Segments
from seqmill.models.context_parallel.split import ContextSplit
from seqmill.models.transformer import LayerAttention


def ulysses_attention(
    split: ContextSplit,
    group: dist.ProcessGroup,
    attention_within: Callable[[Segments], LayerAttention],
    device: torch.device,
) -> LayerAttention:
    """Swap: each rank gets all tokens for its share of the heads, attends as on one device, and swaps back."""
    local = attention_within(Segments.of(split.lengths, device))
    of_all = split.sizes()
    of_mine = [of_all[group.rank()]] * split.ranks

    def attention(layer: int, q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor) -> Tensor:
        parts = [_by_rank(x, split.ranks) for x in (q_SHE, *_repeated(q_SHE, k_SKE, v_SKE, split.ranks))]
        widths = [part.shape[2] for part in parts]
        swapped = _AllToAll.apply(torch.cat(parts, dim=2).flatten(0, 1), of_mine, of_all, group)
        q_ThE, k_ThE, v_ThE = (part.contiguous() for part in swapped.split(widths, dim=1))
        out_ThE = local(layer, q_ThE, k_ThE, v_ThE)
        out_RShE = _AllToAll.apply(out_ThE.contiguous(), of_all, of_mine, group).unflatten(0, (split.ranks, -1))
        out_SHE: Tensor = out_RShE.transpose(0, 1).flatten(1, 2)
        return out_SHE

    return attention


def _repeated(q_SHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """Keys and values with as few heads more as let every rank have those that its query heads read.

    Head i of c times as many is head i // c of K. With 12 query heads, 6 key heads and 4 ranks that makes 12: the 3
    query heads of rank 0 read key heads 0, 0 and 1. Autograd adds up the gradients of the copies.

    Raises:
        UserError: ranks do not divide the query heads.
    """
    heads, kv_heads = q_SHE.shape[1], k_SKE.shape[1]
    if heads % ranks:
        raise UserError(
            f"context_parallel = 'ulysses' with {ranks} ranks: a model with {heads} query heads cannot give every rank "
            f"the same number of them; use context_parallel = 'ring', or a number of ranks that divides {heads}"
        )
    copies = math.lcm(kv_heads, ranks) // kv_heads
    return k_SKE.repeat_interleave(copies, dim=1), v_SKE.repeat_interleave(copies, dim=1)


def _by_rank(x_SHE: Tensor, ranks: int) -> Tensor:
    return x_SHE.unflatten(1, (ranks, -1)).transpose(0, 1)  # RShE


class _AllToAll(torch.autograd.Function):
    """Send so many rows to each rank and get so many from each; the gradient goes the same way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.way_back = (received, sent, group)
        return _all_to_all(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _all_to_all(grad_outputs[0], *ctx.way_back), None, None, None


def _all_to_all(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    out = x.new_empty((sum(received), *x.shape[1:]))
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out
