"""A model over the ranks of a run: copies of it (ddp), or a part of every weight on each rank (fsdp).

Gradients are summed over the ranks and never averaged: the loss is divided by the targets of the whole update already
(seqmill.packing counts them), so ranks with fewer rows, or none, need no correction.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seqmill.models.training.packed_loss import MicroBatch, PackedLoss
from seqmill.models.training.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Spread:
    """A model's loss on every rank of a run; one rank alone has it as it is."""

    module: nn.Module  # to be called; its backward pass sums the gradients over the ranks
    loss: PackedLoss  # what that is made of
    ranks: Ranks = ALONE
    parallel: str | None = None  # one of PARALLEL, or None for one rank alone

    @classmethod
    def alone(cls, loss: PackedLoss) -> "Spread":
        """On the only rank there is."""
        return cls(loss, loss)

    def is_told_here(self, part: MicroBatch) -> bool:
        """Whether this rank counts the tokens of a micro-batch: of those who share it, the first one does."""
        group = self.loss.group_of(part)
        return group is None or dist.get_rank(group) == 0

    def passes(self, parts: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
        """Give the parts of an update one by one; gradients leave the rank in the backward pass of the last.

        Under fsdp every pass gathers weights from all ranks, so all must make as many: `parts` must have the same
        length everywhere.
        """
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            if self.parallel == "fsdp":
                self.loss.model.set_requires_gradient_sync(is_last)  # type: ignore[operator]  # of FSDPModule
            quiet = self.parallel == "ddp" and not is_last
            with self.module.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
                yield part

    def count_passes(self, parts: int, device: torch.device) -> int:
        """How many passes this rank makes for `parts` micro-batches: at least one, and under fsdp as many as others."""
        return self.ranks.largest(max(1, parts), device) if self.parallel == "fsdp" else max(1, parts)


def spread(loss: PackedLoss, parallel: str, ranks: Ranks) -> Spread:
    """Put a model and its loss on all ranks; the weights are the same on each.

    Args:
        parallel: "ddp" keeps all weights on every rank; "fsdp" keeps 1 / ranks of each weight, gradient and moment, and
            gathers a layer's weights while it runs (`fully_shard`; ZeRO-3, arXiv 1910.02054, section 5).
    """
    if ranks.size == 1:
        return Spread.alone(loss)
    if parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard  # here, as in sharing: it takes a second to import

        for part in (*loss.model.blocks, loss.model):
            sharded = fully_shard(part)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # torch else divides in a reduction of its own
        return Spread(loss, loss, ranks, parallel)
    copies = DistributedDataParallel(loss, gradient_as_bucket_view=True)
    copies.register_comm_hook(None, _summed)
    return Spread(copies, loss, ranks, parallel)


def _summed(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """In place of the mean that ddp takes."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda found: found.value()[0])
