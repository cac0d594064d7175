"""What a model needs to tell the documents of each source: sums that can be added, over ranks and over sets."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import reduce
from typing import Any

import torch


@dataclass(frozen=True)
class SourceLoss:
    """What a model needs for the documents of one source. Sums, so those of several ranks or sets can be added."""

    documents: int = 0
    tokens: int = 0  # all, ends of documents included
    targets: int = 0  # tokens that the model predicted: all but the first ones
    bytes: int = 0  # of the text
    nats: float = 0.0  # of all targets
    first_nats: float = 0.0  # of the first tokens

    def __add__(self, other: "SourceLoss") -> "SourceLoss":
        return SourceLoss(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.targets + other.targets,
            self.bytes + other.bytes,
            self.nats + other.nats,
            self.first_nats + other.first_nats,
        )

    @property
    def loss(self) -> float | None:
        """Nats per target, which compares with the loss of training; None without targets."""
        return self.nats / self.targets if self.targets else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits for each byte of text, all tokens charged; None without bytes."""
        from seqmill.compress import bits_per_byte  # here, for it brings numba along

        if not self.bytes:
            return None
        tokens = max(1, self.tokens)
        return bits_per_byte((self.nats + self.first_nats) / tokens, tokens, self.bytes)


Losses = Mapping[str, SourceLoss]
"""By source, in the order of names."""


def merge(*shares: Losses) -> dict[str, SourceLoss]:
    """The sums over several shares, source by source."""
    names = sorted({name for share in shares for name in share})
    return {name: total({n: share[name] for n, share in enumerate(shares) if name in share}) for name in names}


def total(losses: Mapping[Any, SourceLoss]) -> SourceLoss:
    """The sums over all sources."""
    return reduce(SourceLoss.__add__, losses.values(), SourceLoss())


def gather_losses(share: Losses, device: torch.device) -> dict[str, SourceLoss]:
    """The sums over all ranks of torch.distributed's default group; each rank gives the share of `evaluate`.

    Args:
        device: where the group's collectives work: "cpu" for gloo, this rank's GPU for nccl.
    """
    mine = torch.tensor([astuple(share[name]) for name in share], dtype=torch.float64, device=device)
    shares = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(shares, mine)
    return merge(*(dict(zip(share, map(_of, rank.tolist()), strict=True)) for rank in shares))


def _of(row: Sequence[float]) -> SourceLoss:
    """Counts come back exact: float64 holds whole numbers up to 2^53."""
    documents, tokens, targets, num_bytes = map(int, row[:4])
    return SourceLoss(documents, tokens, targets, num_bytes, row[4], row[5])
