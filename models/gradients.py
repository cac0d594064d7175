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
from torch import Tensor

from seqmill.models.attention import HALF_TYPES, Segments
from seqmill.models.loss import IGNORED, cross_entropy_parts
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


@dataclass(frozen=True)
class RepeatLoss:
    """The loss of an update's repeated documents, and of the others."""

    sums: Tensor  # float32[2] on the device, nats summed over the targets: others, repeats
    targets: tuple[int, int]  # of the others, of the repeats


def split_batch(batch: Mapping[str, Any], most_tokens: int, device: torch.device) -> Iterator[MicroBatch]:
    """Cut a batch between documents into parts of at most `most_tokens` tokens (or one longer document)."""
    bounds: list[int] = batch["cu_seqlens"].tolist()
    first = 0
    while first < len(bounds) - 1:
        last = first + 1
        while last < len(bounds) - 1 and bounds[last + 1] - bounds[first] <= most_tokens:
            last += 1
        tokens = slice(bounds[first], bounds[last])
        lengths = [stop - start for start, stop in pairwise(bounds[first : last + 1])]
        input_ids_T, position_ids_T, targets_T = (
            batch[key][tokens].to(device, non_blocking=True) for key in ("input_ids", "position_ids", "targets")
        )
        is_repeat_T, weights_T = (
            _of_tokens(batch[key][first:last], lengths, device) if key in batch else None
            for key in ("is_repeat", "loss_weights")
        )
        yield MicroBatch(input_ids_T, position_ids_T, targets_T, Segments.of(lengths, device), is_repeat_T, weights_T)
        first = last


def _of_tokens(of_segments: Tensor, lengths: list[int], device: torch.device) -> Tensor:
    return of_segments.repeat_interleave(torch.tensor(lengths)).to(device, non_blocking=True)


def accumulate_gradients(
    model: Model,
    batch: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
    micro_batch_tokens: int,
) -> tuple[Tensor, RepeatLoss | None]:
    """Add the gradient of a batch's loss to the parameters' `grad`.

    Returns:
        The loss, a scalar on `device`: summed over this batch's targets, divided by the whole update's count of them.
        A batch with "loss_weights" (float32[n], per segment) is summed with these and divided by its
        "global_loss_weight" (seqmill.packing.loss_weights).
        Where the rows tell repeats apart, the sums without weights that they and the others have.
    """
    count = max(1, int(batch["global_loss_tokens"]))  # rows without any target give loss 0
    whole = float(batch["global_loss_weight"]) if "loss_weights" in batch else count
    total = torch.zeros((), device=device)
    sums = torch.zeros(2, device=device)
    for part in split_batch(batch, micro_batch_tokens, device):
        with torch.autocast(device.type, dtype) if dtype in HALF_TYPES else contextlib.nullcontext():
            hidden_TD = model(part.input_ids_T, part.position_ids_T, part.segments, backend).to(dtype)
            summed, parts = cross_entropy_parts(
                hidden_TD,
                model.head_weight,
                part.targets_T,
                model.config.vocab_size,
                part.is_repeat_T,
                weights_T=part.weights_T,
            )
            loss = summed / whole
        loss.backward()
        total += loss.detach()
        sums += parts
    return total, RepeatLoss(sums, _count_targets(batch)) if "is_repeat" in batch else None


def _count_targets(batch: Mapping[str, Any]) -> tuple[int, int]:
    """(targets outside repeats, targets in repeats) of a batch."""
    of_repeat = batch["is_repeat"].repeat_interleave(batch["cu_seqlens"].diff())
    counted = batch["targets"] != IGNORED
    return int((counted & ~of_repeat).sum()), int((counted & of_repeat).sum())
