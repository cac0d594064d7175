"""What a layer keeps waits in the host's memory for its gradients' turn."""

from contextlib import AbstractContextManager
from functools import cache

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

_OnHost = tuple[Tensor, torch.device]


def offloaded() -> AbstractContextManager[None]:
    """While this is open, what autograd keeps of CUDA tensors is copied to pinned memory of the host, beside the
    computation; a checkpointed region counts as one operation that keeps its inputs."""
    return saved_tensors_hooks(_to_host, _to_device)


def _to_host(kept: Tensor) -> _OnHost:
    """Copy on a stream of its own, after what is queued now; the device's memory is reused only after that."""
    beside = _copy_stream(kept.device)
    host = torch.empty(kept.shape, dtype=kept.dtype, pin_memory=True)
    beside.wait_stream(torch.cuda.current_stream(kept.device))
    with torch.cuda.stream(beside):
        host.copy_(kept, non_blocking=True)
    kept.record_stream(beside)
    return host, kept.device


def _to_device(packed: _OnHost) -> Tensor:
    host, device = packed
    torch.cuda.current_stream(device).wait_stream(_copy_stream(device))  # the last layer's may be on its way still
    return host.to(device, non_blocking=True)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
