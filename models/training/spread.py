"""A model over the ranks of a run: copies of it (ddp), or a part of every weight on each rank (fsdp).

Gradients are summed over the ranks and never averaged: the loss is divided by the targets of the whole update already
(seqmill.packing counts them), so ranks with fewer rows, or none, need no correction.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seqmill.models.training.ranks import ALONE, Ranks

PARALLEL = ("ddp", "fsdp")
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Spread:
    """A module on every rank of a run; one rank alone has it as it is."""

    module: nn.Module  # to be called; its backward pass sums the gradients over the ranks
    ranks: Ranks = ALONE
    parallel: str | None = None  # one of PARALLEL, or None for one rank alone

    def passes(self, parts: Sequence[_Part]) -> Iterator[_Part]:
        """Give the parts of an update one by one; gradients leave the rank in the backward pass of the last.

        Under fsdp every pass gathers weights from all ranks, so all must make as many: `parts` must have the same
        length everywhere.
        """
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            if self.parallel == "fsdp":
                self.module.set_requires_gradient_sync(is_last)  # type: ignore[operator]  # of FSDPModule
            quiet = self.parallel == "ddp" and not is_last
            with self.module.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
                yield part

    def count_passes(self, parts: int, device: torch.device) -> int:
        """How many passes this rank makes for `parts` micro-batches: at least one, and under fsdp as many as others."""
        return self.ranks.largest(max(1, parts), device) if self.parallel == "fsdp" else max(1, parts)


def spread(module: nn.Module, layers: Iterable[nn.Module], parallel: str, ranks: Ranks) -> Spread:
    """Put a module on all ranks; its weights are the same on each.

    Args:
        layers: parts of `module` that run one after another.
        parallel: "ddp" keeps all weights on every rank; "fsdp" keeps 1 / ranks of each weight, gradient and moment, and
            gathers a layer's weights while it runs (`fully_shard`; ZeRO-3, arXiv 1910.02054, section 5).
    """
    if ranks.size == 1:
        return Spread(module)
    if parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard  # here, as in `part_of`: it takes a second to import

        for part in (*layers, module):
            sharded = fully_shard(part)
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # torch else divides in a reduction of its own
        return Spread(module, ranks, parallel)
    copies = DistributedDataParallel(module, gradient_as_bucket_view=True)
    copies.register_comm_hook(None, _summed)
    return Spread(copies, ranks, parallel)


def _summed(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """In place of the mean that ddp takes."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda found: found.value()[0])


def whole(tensor: Tensor) -> Tensor:
    """`tensor` with the parts that other ranks hold; all ranks call this together."""
    gathered: Tensor = tensor.full_tensor() if _is_shared(tensor) else tensor  # type: ignore[attr-defined]
    return gathered


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """What `like` holds here of a whole value that every rank has: all of it, or this rank's part."""
    if not _is_shared(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(like.device), mesh, placements, src_data_rank=None)


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """Fill `parameter`, or this rank's part of it, from the whole value that every rank has."""
    parameter.copy_(part_of(value, parameter))


def _is_shared(tensor: Tensor) -> bool:
    """Whether ranks hold parts of it: a DTensor, told by a method that only these have."""
    return hasattr(tensor, "full_tensor")
