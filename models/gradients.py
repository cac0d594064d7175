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
from seqmill.models.loss import cross_entropy_sum
from seqmill.models.transformer import Model


@dataclass(frozen=True)
class MicroBatch:
    """Whole documents of a batch, on the model's device."""

    input_ids_T: Tensor  # int64
    position_ids_T: Tensor  # int64, the place of each token in its document
    targets_T: Tensor  # int64, loss.IGNORED where there is none
    segments: Segments


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
        yield MicroBatch(input_ids_T, position_ids_T, targets_T, Segments.of(lengths, device))
        first = last


def accumulate_gradients(
    model: Model,
    batch: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    backend: str,
    micro_batch_tokens: int,
) -> Tensor:
    """Add the gradient of a batch's loss to the parameters' `grad`.

    Returns:
        The loss, a scalar on `device`: summed over this batch's targets, divided by the whole update's count of them.
    """
    count = max(1, int(batch["global_loss_tokens"]))  # rows without any target give loss 0
    total = torch.zeros((), device=device)
    for part in split_batch(batch, micro_batch_tokens, device):
        with torch.autocast(device.type, dtype) if dtype in HALF_TYPES else contextlib.nullcontext():
            hidden_TD = model(part.input_ids_T, part.position_ids_T, part.segments, backend).to(dtype)
            loss = cross_entropy_sum(hidden_TD, model.head_weight, part.targets_T, model.config.vocab_size) / count
        loss.backward()
        total += loss.detach()
    return total
