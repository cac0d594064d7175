"""Where the documents of a ragged batch lie."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)  # compared by identity: two batches are two batches
class Segments:
    """Where each document lies in a ragged batch."""

    cu_seqlens: Tensor  # int32[documents + 1] on the model's device: 0, end of the first document, ..., T
    lengths: tuple[int, ...]  # tokens of each document, the same facts on the host
    max_seqlen: int  # tokens of the longest document
    prepared: dict[Any, Any] = field(default_factory=dict, repr=False)  # by backends.prepare, which must not hold this

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Segments":
        """Segments of documents with these lengths, in this order."""
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
        return cls(bounds, tuple(lengths), max(lengths, default=0))

    @property
    def are_even(self) -> bool:
        """Whether all documents have one length."""
        return len(set(self.lengths)) == 1

    def positions(self) -> Tensor:
        """int64[T] on the host: the place of every token in its document, counted from 0."""
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        starts = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        return torch.arange(len(starts)) - starts
