"""The exact gradient of one update, a micro-batch of whole documents at a time.

Tensor names end in their axes: T tokens, D model width.
"""
# ruff: noqa: N806, N815 (the axes are capital letters)

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from seqmill.models.attention import HALF_TYPES, Segments
from seqmill.models.loss import IGNORED, cross_entropy_parts
from seqmill.models.training.spread import Spread
from seqmill.models.transformer import Model


@dataclass(frozen=True)
class MicroBatch:
    """Whole documents of a batch, on the model's device."""

    input_ids_T: Tensor  # int64
    position_ids_T: Tensor  # int64, the place of each token in its document
    targets_T: Tensor  # int64, loss.IGNORED where there is none
    segments: Segments
    is_repeat_T: Tensor | None  # bool, where the rows tell which documents are repeats
    weights_T: Tensor | None  # float32, where tokens do not count alike


class PackedLoss(nn.Module):
    """A decoder and its loss as one module, for what wraps or compiles a forward pass."""

    def __init__(self, model: Model, dtype: torch.dtype, backend: str) -> None:
        """`dtype` of matrix products; `backend` is a name in attention.BACKENDS."""
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.backend = backend

    def forward(self, part: MicroBatch) -> tuple[Tensor, Tensor]:
        """The weighted sum of the losses in nats, and for reading alone float32[3]: the sums without weights over all
        targets, those outside repeats and those in them."""
        told_apart_T = part.is_repeat_T
        if told_apart_T is None and part.weights_T is not None:
            told_apart_T = torch.zeros_like(part.targets_T, dtype=torch.bool)
        with self._computing(part):
            hidden_TD = self.model(part.input_ids_T, part.position_ids_T, part.segments, self.backend).to(self.dtype)
            summed, parts = cross_entropy_parts(
                hidden_TD,
                self.model.head_weight,
                part.targets_T,
                self.model.config.vocab_size,
                told_apart_T,
                weights_T=part.weights_T,
            )
        parts = parts if told_apart_T is not None else torch.stack([summed.detach(), parts[1]])
        plain = summed.detach() if part.weights_T is None else parts.sum()
        return summed, torch.cat([plain[None], parts])

    def _computing(self, part: MicroBatch) -> contextlib.AbstractContextManager[object]:
        halves = self.dtype in HALF_TYPES
        return torch.autocast(part.input_ids_T.device.type, self.dtype) if halves else contextlib.nullcontext()


@dataclass(frozen=True)
class UpdateLoss:
    """The loss of an update's rows on all ranks."""

    objective: float  # what is minimised: nats, weighted and divided as the normalisation says
    mean: float  # nats per target, without weights; 0 where there is no target
    nats: tuple[float, float]  # without weights, summed over the targets outside repeats and in them
    targets: tuple[int, int]  # outside repeats, in repeats


def accumulate_gradients(
    loss: Spread, batch: Mapping[str, Any], device: torch.device, micro_batch_tokens: int
) -> UpdateLoss:
    """Add the gradient of a batch's loss to the parameters' `grad`, summed over the ranks.

    The loss is summed over this batch's targets and divided by the whole update's count of them. A batch with
    "loss_weights" (float32[n], per segment) is summed with these and divided by its "global_loss_weight"
    (seqmill.packing.loss_weights).

    Args:
        loss: a `PackedLoss`.
        micro_batch_tokens: most tokens of one forward pass, but for a longer document.
    """
    count = max(1, int(batch["global_loss_tokens"]))  # rows without any target give loss 0
    whole = float(batch["global_loss_weight"]) if "loss_weights" in batch else count
    sums = torch.zeros(6, device=device, dtype=torch.float64)
    sums[4:] = torch.tensor(_count_targets(batch))
    parts = list(split_batch(batch, micro_batch_tokens, device))
    parts += [_nothing(batch, device)] * (loss.count_passes(len(parts), device) - len(parts))
    for part in loss.passes(parts):
        summed, plain = loss.module(part)
        objective = summed / whole
        objective.backward()
        sums[:4] += torch.cat([objective.detach()[None], plain])
    total, nats, *apart, outside, inside = loss.ranks.add_up(sums).tolist()
    return UpdateLoss(total, nats / count, (apart[0], apart[1]), (int(outside), int(inside)))


def split_batch(batch: Mapping[str, Any], most_tokens: int, device: torch.device) -> Iterator[MicroBatch]:
    """Cut a batch between documents into parts of at most `most_tokens` tokens (or one longer document).

    A batch of a step plan is cut at its slots instead, which begin at the same time on all ranks; a slot for which this
    rank has no row gives a part without targets.
    """
    bounds: list[int] = batch["cu_seqlens"].tolist()
    if "slots" in batch:
        places = torch.searchsorted(batch["cu_seqlens"], batch["slots"]).tolist()
        for first, last in pairwise(places):
            yield _part(batch, bounds, first, last, device) if last > first else _nothing(batch, device)
        return
    first = 0
    while first < len(bounds) - 1:
        last = first + 1
        while last < len(bounds) - 1 and bounds[last + 1] - bounds[first] <= most_tokens:
            last += 1
        yield _part(batch, bounds, first, last, device)
        first = last


def _part(batch: Mapping[str, Any], bounds: list[int], first: int, last: int, device: torch.device) -> MicroBatch:
    """The documents `first` to `last` - 1."""
    tokens = slice(bounds[first], bounds[last])
    lengths = [stop - start for start, stop in pairwise(bounds[first : last + 1])]
    input_ids_T, position_ids_T, targets_T = (
        batch[key][tokens].to(device, non_blocking=True) for key in ("input_ids", "position_ids", "targets")
    )
    is_repeat_T, weights_T = (
        _of_tokens(batch[key][first:last], lengths, device) if key in batch else None
        for key in ("is_repeat", "loss_weights")
    )
    return MicroBatch(input_ids_T, position_ids_T, targets_T, Segments.of(lengths, device), is_repeat_T, weights_T)


def _nothing(batch: Mapping[str, Any], device: torch.device) -> MicroBatch:
    """One token without a target: a rank without rows still takes part in what all ranks do together."""
    zero_T = torch.zeros(1, dtype=torch.int64, device=device)
    is_repeat_T = torch.zeros(1, dtype=torch.bool, device=device) if "is_repeat" in batch else None
    weights_T = torch.zeros(1, device=device) if "loss_weights" in batch else None
    return MicroBatch(zero_T, zero_T, zero_T + IGNORED, Segments.of([1], device), is_repeat_T, weights_T)


def _of_tokens(of_segments: Tensor, lengths: list[int], device: torch.device) -> Tensor:
    return of_segments.repeat_interleave(torch.tensor(lengths)).to(device, non_blocking=True)


def _count_targets(batch: Mapping[str, Any]) -> tuple[int, int]:
    """(targets outside repeats, targets in repeats) of a batch."""
    if "is_repeat" not in batch:
        return int(batch["n_loss_tokens"]), 0
    of_repeat = batch["is_repeat"].repeat_interleave(batch["cu_seqlens"].diff())
    counted = batch["targets"] != IGNORED
    return int((counted & ~of_repeat).sum()), int((counted & of_repeat).sum())
