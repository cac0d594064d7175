"""The exact gradient of one update, a micro-batch of whole documents at a time.

Tensor names end in their axes: L layers, N experts.
"""
# ruff: noqa: N806, N812 (the axes are capital letters)

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist

from seqmill.models.attention import Segments
from seqmill.models.loss import IGNORED, PARTS
from seqmill.models.moe import expert_counts, load_imbalance
from seqmill.models.training.compiled import static_length
from seqmill.models.training.packed_loss import MicroBatch
from seqmill.models.training.spread import Spread


@dataclass(frozen=True)
class UpdateLoss:
    """The loss of an update's rows on all ranks, and how much work they were."""

    objective: float  # what is minimised: weighted and divided as the normalisation says, and what is added to it
    mean: float  # nats per target, without weights; 0 where there is no target
    nats: tuple[float, ...]  # without weights, summed over the targets of each of loss.PARTS
    targets: tuple[int, ...]  # of each of loss.PARTS
    tokens: int  # that went through the model
    places: int  # the same with those that stand in for none
    squares: int  # sum of the documents' squared lengths, tokens squared
    imbalance: tuple[float, ...]  # per layer, the busiest expert's tokens over the mean; empty without experts


def accumulate_gradients(
    loss: Spread, batch: Mapping[str, Any], device: torch.device, micro_batch_tokens: int
) -> UpdateLoss:
    """Add the gradient of a batch's loss to the parameters' `grad`, summed over the ranks.

    The loss is summed over this batch's targets and divided by the whole update's count of them. A batch with
    "loss_weights" (float32[n], per segment) is summed with these and divided by its "global_loss_weight"
    (seqmill.packing.loss_weights). A batch with "parts" (int64[T], numbers into loss.PARTS) has its loss told apart.

    Args:
        micro_batch_tokens: most tokens of one forward pass, but for a longer document.
    """
    count = max(1, int(batch["global_loss_tokens"]))  # rows without any target give loss 0
    divisor = float(batch["global_loss_weight"]) if "loss_weights" in batch else count
    sums = torch.zeros(2 + len(PARTS), device=device, dtype=torch.float64)
    is_padded = loss.loss.settings.compiler is not None
    parts = list(split_batch(batch, micro_batch_tokens, device, is_padded))
    parts += [_nothing(batch, device)] * (loss.count_passes(len(parts), device) - len(parts))
    counts_LN = _expert_counts(loss, parts)
    for part in loss.passes(parts):
        found = loss.module(part, counts_LN)
        objective = found.total / divisor + found.auxiliary
        objective.backward()
        sums += torch.cat([objective.detach()[None], found.plain])
        counts_LN = found.counts_LN
    told = _told([part for part in parts if loss.is_told_here(part)], device)
    everything = loss.ranks.add_up(torch.cat([sums, told])).tolist()
    total, nats, *apart = everything[: len(sums)]
    tokens, places, squares, *targets = map(int, everything[len(sums) :])
    imbalance = () if counts_LN is None else tuple(load_imbalance(counts_LN))
    return UpdateLoss(total, nats / count, tuple(apart), tuple(targets), tokens, places, squares, imbalance)


def split_batch(
    batch: Mapping[str, Any], most_tokens: int, device: torch.device, is_padded: bool = False
) -> Iterator[MicroBatch]:
    """Cut a batch between documents into parts of at most `most_tokens` tokens (or one longer document).

    A batch of a step plan is cut at its slots instead, which begin at the same time on all ranks; a slot for which this
    rank has no row gives a part that is not real, and one that other ranks have too a part with its `sharers`.

    Args:
        is_padded: each part gets pads up to a number of tokens that code is compiled for (compiled.static_length).
    """
    bounds: list[int] = batch["cu_seqlens"].tolist()
    if "slots" in batch:
        places = torch.searchsorted(batch["cu_seqlens"], batch["slots"]).tolist()
        for (first, last), (rank, ranks) in zip(pairwise(places), batch["slot_ranks"].tolist(), strict=True):
            part = _part(batch, bounds, first, last, device) if last > first else _nothing(batch, device)
            part = _padded(part, most_tokens) if is_padded else part
            yield replace(part, sharers=(rank, ranks)) if ranks > 1 else part
        return
    first = 0
    while first < len(bounds) - 1:
        last = first + 1
        while last < len(bounds) - 1 and bounds[last + 1] - bounds[first] <= most_tokens:
            last += 1
        part = _part(batch, bounds, first, last, device)
        yield _padded(part, most_tokens) if is_padded else part
        first = last


def _part(batch: Mapping[str, Any], bounds: list[int], first: int, last: int, device: torch.device) -> MicroBatch:
    """The documents `first` to `last` - 1."""
    tokens = slice(bounds[first], bounds[last])
    lengths = [stop - start for start, stop in pairwise(bounds[first : last + 1])]
    input_ids, position_ids, targets = (
        batch[key][tokens].to(device, non_blocking=True) for key in ("input_ids", "position_ids", "targets")
    )
    part = batch["parts"][tokens].to(device, non_blocking=True) if "parts" in batch else None
    weights = None
    if "loss_weights" in batch:
        of_tokens = batch["loss_weights"][first:last].repeat_interleave(torch.tensor(lengths))
        weights = of_tokens.to(device, non_blocking=True)
        part = torch.zeros_like(targets) if part is None else part  # for the sum without weights
    return MicroBatch(input_ids, position_ids, targets, Segments.of(lengths, device), part, weights)


def _padded(part: MicroBatch, most_tokens: int) -> MicroBatch:
    """The part with as many tokens as code is compiled for; one without documents stays as it is."""
    tokens = len(part.input_ids_T)
    pads = static_length(tokens, most_tokens) - tokens
    if not (pads and part.is_real):
        return part
    fill = partial(F.pad, pad=(0, pads))
    return MicroBatch(
        fill(part.input_ids_T),
        fill(part.position_ids_T),
        fill(part.targets_T, value=IGNORED),
        Segments.of([*part.lengths, pads], part.input_ids_T.device),
        None if part.part_T is None else fill(part.part_T),
        None if part.weights_T is None else fill(part.weights_T),
        pads,
    )


def _nothing(batch: Mapping[str, Any], device: torch.device) -> MicroBatch:
    """One token without a target: a rank without rows still takes part in what all ranks do together."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    weights = torch.zeros(1, device=device) if "loss_weights" in batch else None
    part = zero if "parts" in batch or weights is not None else None
    return MicroBatch(zero, zero, zero + IGNORED, Segments.of([1], device), part, weights, pads=1)


def _expert_counts(loss: Spread, parts: list[MicroBatch]) -> Tensor | None:
    """How often each expert is chosen in the whole update, by a pass ahead without gradients; None where nobody looks
    at it, or a single micro-batch is all of it."""
    if not loss.loss.is_balanced or (len(parts) == 1 and loss.ranks.size == 1):
        return None
    group = dist.group.WORLD if loss.ranks.size > 1 else None
    return expert_counts(loss.loss.model, parts, loss.loss.count_experts, group, lambda part: part.is_real)


def _told(parts: list[MicroBatch], device: torch.device) -> Tensor:
    """float64[3 + parts of a loss]: tokens, places, squares, and the targets of each part of the loss."""
    lengths = [length for part in parts for length in part.lengths]
    places = sum(lengths) + sum(part.pads for part in parts)
    sizes = torch.tensor([sum(lengths), places, sum(length * length for length in lengths)], dtype=torch.float64)
    targets = torch.zeros(len(PARTS), dtype=torch.int64, device=device)
    for part in parts:
        counted_T = part.targets_T != IGNORED
        of_parts_T = torch.zeros_like(part.targets_T) if part.part_T is None else part.part_T
        targets += torch.stack([(counted_T & (of_parts_T == number)).sum() for number in range(len(PARTS))])
    return torch.cat([sizes.to(device, non_blocking=True), targets.double()])
