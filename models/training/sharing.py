"""Tensors of which every rank holds a part (DTensor), and tensors that are whole."""

import torch
from torch import Tensor


def gathered(tensor: Tensor) -> Tensor:
    """`tensor` with the parts that other ranks hold; all ranks call this together."""
    found: Tensor = tensor.full_tensor() if _is_shared(tensor) else tensor  # type: ignore[attr-defined]
    return found


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
