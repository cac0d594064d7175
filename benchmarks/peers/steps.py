"""What every driver of a decoder does: one forward and backward pass over one long document, its time and its memory.

    python step_PEER.py describe OUT                                  version, names of its variants
    python step_PEER.py step OUT VARIANT TOKENS DEVICE SHAPE          seconds and the most bytes at once

SHAPE is a JSON object with vocab_size, dim, layers, heads, kv_heads, head_dim, ffn_dim. Weights and gradients are in
float32; on a GPU products are in bfloat16. Seconds are those of the processor (CPU) or of the clock (CUDA). Bytes are
the most that the process had resident (CPU) or that torch's allocator had handed out (CUDA), weights and the
interpreter included: the difference between two lengths is that of the tokens. Drivers run in the peer's own
environment, so this file uses torch and the standard library only.
"""

import contextlib
import ctypes
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from protocol import answer

Shape = Mapping[str, int]
Loss = Callable[[torch.Tensor], torch.Tensor]  # int64[tokens] of one document -> its mean loss, ready for backward
Variant = Callable[[Shape, torch.device], Loss]  # builds the model

WARM_UP_TOKENS = 256
M_MMAP_THRESHOLD, MIB = -3, 1 << 20  # of mallopt(3)


def main(package: str, variants: Mapping[str, Variant]) -> None:
    """Do the task that the command line names; a variant makes of shape and device what runs a forward pass."""

    def step(_out: Path, name: str, tokens: str, device: str, shape: str) -> dict[str, Any]:
        return measured(variants[name], int(tokens), torch.device(device), json.loads(shape))

    _give_memory_back()
    answer(package, {"step": step}, variants=list(variants))


def measured(variant: Variant, tokens: int, device: torch.device, shape: Shape) -> dict[str, Any]:
    """Seconds and most bytes of one pass over so many tokens, after a short one that loads code."""
    loss_of = variant(shape, device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape["vocab_size"], (tokens,), generator=generator).to(device)
    _step(loss_of, ids[:WARM_UP_TOKENS])
    now = time.perf_counter if device.type == "cuda" else time.process_time
    began = now()
    loss = _step(loss_of, ids)
    return {"seconds": now() - began, "peak_bytes": peak_bytes(device), "loss": loss}


def seconds_now(device: torch.device) -> float:
    """Of the processor where a single thread works, so that it does not matter who else is busy, else of the clock."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has needed so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (status := Path("/proc/self/status")).exists():
        # Not ru_maxrss: on Linux a process begins with the one of the process that started it.
        kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(kib)
    kib_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib_or_bytes if sys.platform == "darwin" else kib_or_bytes * 1024


def _give_memory_back() -> None:
    """Have glibc give what is freed back at once, as long as it is 1 MiB or more. By default it keeps the more of it
    the more has been freed, and the peak would tell of its habits instead of the tensors."""
    if sys.platform == "linux":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MIB)


def _step(loss_of: Loss, ids: torch.Tensor) -> float:
    half = ids.is_cuda
    with torch.autocast("cuda", torch.bfloat16) if half else contextlib.nullcontext():
        loss = loss_of(ids)
    loss.backward()
    return loss.item()  # waits for the GPU
