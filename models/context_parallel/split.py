"""Which tokens of a packed batch each rank holds."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from seqmill.errors import UserError

KINDS = ("ulysses", "ring")
_OF_TOKENS = ("input_ids", "position_ids", "targets")  # fields of a PackedDataset's batch with a value per token
_OF_SEGMENTS = ("is_repeat", "loss_weights")  # fields with a value per document


@dataclass(frozen=True)
class ContextSplit:
    """A batch's tokens cut into chunks of equal size, regardless of documents, and dealt out to ranks.

    ulysses: rank r holds chunk r of as many chunks as ranks.
    ring: rank r holds chunks r and 2 R - 1 - r of 2 R. A token at place t of a long document has t keys to look at, so
    the first and the last chunk together are as much work as any other such pair ("head-tail" or "zig-zag").

        4 ranks, ring:   0 1 2 3 3 2 1 0      the rank of each chunk

    Chunks differ by at most one token; with fewer tokens than chunks some are empty. Nothing is padded.

    Raises:
        UserError: the kind is unknown or there is no rank.
    """

    lengths: tuple[int, ...]  # tokens of each document, in the order in which they lie
    ranks: int
    kind: str  # a name in KINDS

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"context_parallel = {self.kind!r}: there is no such kind; choose {' or '.join(KINDS)}")
        if self.ranks < 1:
            raise UserError(f"context_parallel ranks = {self.ranks}: must be 1 or more")

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """Where documents begin, and the number of all tokens."""
        return (0, *accumulate(self.lengths))

    def document(self, token: int) -> range:
        """The tokens of the document that `token` is in."""
        place = bisect_right(self.bounds, token)
        return range(self.bounds[place - 1], self.bounds[place])

    def chunks(self, rank: int) -> tuple[range, ...]:
        """The tokens that a rank holds, in the order in which it holds them."""
        mine = (rank,) if self.kind == "ulysses" else (rank, 2 * self.ranks - 1 - rank)
        chunks, tokens = len(mine) * self.ranks, self.bounds[-1]
        return tuple(range(chunk * tokens // chunks, (chunk + 1) * tokens // chunks) for chunk in mine)

    def sizes(self) -> list[int]:
        """How many tokens each rank holds."""
        return [sum(map(len, self.chunks(rank))) for rank in range(self.ranks)]

    def take(self, x: Tensor, rank: int) -> Tensor:
        """The rows x[T, ...] that a rank holds."""
        return torch.cat([x[chunk.start : chunk.stop] for chunk in self.chunks(rank)])

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole x[T, ...] again from what `take` gave to each rank."""
        held = [chunk for rank in range(self.ranks) for chunk in self.chunks(rank)]
        in_chunks = torch.cat(tuple(parts)).split([len(chunk) for chunk in held])
        return torch.cat([in_chunks[place] for place in sorted(range(len(held)), key=lambda place: held[place].start)])


def shard_batch(batch: Mapping[str, Any], kind: str, rank: int, ranks: int) -> tuple[dict[str, Any], ContextSplit]:
    """This rank's tokens of a `PackedDataset`'s batch that all ranks read, and the split for `context_attention`.

    Returns:
        "input_ids", "position_ids" and "targets" of this rank's tokens; "is_repeat" and "loss_weights" too, where the
        batch has them, here one value per token; and as they are the counts of the whole update, by which a loss is
        divided: "global_loss_tokens", and "global_loss_weight" where it is there.
    """
    lengths = batch["cu_seqlens"].diff()
    split = ContextSplit(tuple(lengths.tolist()), ranks, kind)
    shard = {name: split.take(batch[name], rank) for name in _OF_TOKENS}
    shard |= {name: split.take(batch[name].repeat_interleave(lengths), rank) for name in _OF_SEGMENTS if name in batch}
    return shard | {name: value for name, value in batch.items() if name.startswith("global_loss_")}, split
