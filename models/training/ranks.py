"""The processes that train together: who this one is among them, and what they add up.

torchrun tells rank and size in environment variables, Ray Train has made the process group before the trainer begins,
and a process of its own has no group at all. From here on the three look alike.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

PARALLEL = ("ddp", "fsdp")  # how a model lies on the ranks: see spread
_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine; the number of its CUDA device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    @property
    def among(self) -> str:
        """Whose something is, for messages: nothing where there is one rank alone."""
        return f" on rank {self.rank} of {self.size}" if self.size > 1 else ""

    def add_up(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, value: int, device: torch.device) -> int:
        """The largest of what the ranks say."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def neighbours(self, size: int, device_type: str) -> dist.ProcessGroup:
        """The group of so many ranks in a row that this one is in; all ranks call this together."""
        mesh = init_device_mesh(device_type, (self.size // size, size), mesh_dim_names=("data", "context"))
        return mesh["context"].get_group()

    def groups(
        self, spans: Iterable[tuple[int, int]], device: torch.device
    ) -> dict[tuple[int, int], dist.ProcessGroup]:
        """The groups that this rank is in, of each (first rank, number of ranks); all ranks call this together."""
        found = {}
        for first, size in spans:
            group = dist.new_group(list(range(first, first + size)))
            if first <= self.rank < first + size:
                assert group is not None
                dist.all_reduce(torch.zeros(1, device=device), group=group)  # which nccl wants before other messages
                found[first, size] = group
        return found

    def agree(self, value: str) -> str:
        """What the first rank says, on all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


ALONE = Ranks()


def launched_rank() -> int:
    """The rank that torchrun has given to this process; 0 in one that it has not started."""
    return int(os.environ.get("RANK", "0")) if dist.is_torchelastic_launched() else 0


@contextmanager
def joined_ranks(device_type: str) -> Iterator[Ranks]:
    """Join the other processes of torchrun or Ray Train, or be alone; a group that was made here ends here.

    Args:
        device_type: "cpu" or "cuda", for how the processes talk.
    """
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), _local_rank())
    elif dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        if device_type == "cuda":
            torch.cuda.set_device(_local_rank())
        dist.init_process_group(_BACKENDS[device_type])
        try:
            yield Ranks(dist.get_rank(), dist.get_world_size(), _local_rank())
        finally:
            dist.destroy_process_group()
    else:
        yield ALONE


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
