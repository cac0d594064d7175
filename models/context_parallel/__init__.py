"""Context parallelism: rows that are too long for one device are split over the ranks of a process group.

    split = ContextSplit(segments.lengths, ranks, "ring")          # the same on every rank
    ids, positions, targets = (split.take(x, rank) for x in (ids, positions, targets))
    attention = context_attention(split, group, attention_within, device, windowed=False)
    hidden = model.hidden(ids, positions, attention)               # of this rank's tokens
    (summed_loss(hidden, targets) / count).backward()              # count: targets of the whole update

Every rank reads the same rows and keeps its own tokens of them. All but attention works on single tokens, so a rank's
loss and gradient are those of its tokens: add both up over the ranks (all-reduce with SUM, no mean) and they are those
of one rank.

    kind     exchange, and what bounds it                              attention within
    ulysses  all-to-all, tokens for heads; ranks must divide heads     as on one device: whole rows, some heads
    ring     keys and values of cut documents go round; any ranks      causal within documents, without a window

Attention communicates, forward and backward, and whoever recomputes it does so again: all ranks must do the same steps
in the same order. Both kinds work with gloo and nccl; nccl wants a group to have communicated once before its first
ring, which the all-reduce of the count does.
"""

from collections.abc import Callable

import torch
from torch import distributed as dist

from seqmill.errors import UserError
from seqmill.models.attention import Segments
from seqmill.models.context_parallel.ring import ring_attention
from seqmill.models.context_parallel.split import KINDS, ContextSplit, shard_batch
from seqmill.models.context_parallel.ulysses import ulysses_attention
from seqmill.models.transformer import LayerAttention

__all__ = ["KINDS", "ContextSplit", "context_attention", "shard_batch"]

_FACTORIES = {"ulysses": ulysses_attention, "ring": ring_attention}


def context_attention(
    split: ContextSplit,
    group: dist.ProcessGroup,
    attention_within: Callable[[Segments], LayerAttention],
    device: torch.device | str,
    *,
    windowed: bool,
) -> LayerAttention:
    """What this rank's tokens attend to, wherever the keys lie: for `Model.hidden`.

    Args:
        split: of the batch; the layers get q, k and v of `split.take(..., rank)`.
        attention_within: the attention of one device inside documents, made once for a batch and used by all layers.
        windowed: whether any layer sees less of a document than all that stands before a token.

    Raises:
        UserError: the ring was asked for a window, the group has another number of ranks than `split`, or (ulysses, at
            the first layer) the heads cannot be divided by the ranks.
    """
    if windowed and split.kind == "ring":
        raise UserError(
            "context_parallel = 'ring' with a window: the ring shows tokens all of their document; use "
            "context_parallel = 'ulysses', or a model without a window"
        )
    if split.ranks != group.size():
        raise UserError(
            f"context_parallel: a batch split for {split.ranks} ranks met a process group of {group.size()}, so tokens "
            "would be missing or counted twice; split it for the size of its group"
        )
    return _FACTORIES[split.kind](split, group, attention_within, torch.device(device))
