"""The layers of a model and its loss as compiled code: one graph for all layers, and for all batches of a size.

torch compiles for the shapes that it sees, and no two batches of documents have theirs alike. So whatever depends on
where documents lie stays outside: attention runs as it is, between the two halves of a layer, with bounds and masks
that are computed before. The halves, and a chunk of the loss, depend on the number of tokens alone, and micro-batches
are padded to one of `SIZES` numbers (`static_length`). The weights of a layer are arguments of its graph.

    seen by torch    the norms, projections and rotary turn before attention; all that follows it; a chunk's loss
    graphs           one of each for every number of tokens that occurs, and another where layers have no rotary turn
"""
# ruff: noqa: N803 (the axes are capital letters)

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seqmill.models.loss import ChunkLoss, chunk_loss
from seqmill.models.memory import LayerMemory
from seqmill.models.transformer import Block, LayerAttention

INDUCTOR = "inductor"  # torch's compiler
SIZES = 8  # numbers of tokens that micro-batches are padded to: pads are at most an eighth of the largest
_MOST_COMPILED = 64  # graphs of one function; with a whole graph wanted, torch raises beyond, and never goes on without


class Compiled(NamedTuple):
    """What runs in place of a model's own code."""

    layer: LayerMemory
    chunk_loss: ChunkLoss


@cache
def compiled_code(compiler: str = INDUCTOR) -> Compiled:
    """The compiled code, which serves all models; it is compiled when it runs.

    Args:
        compiler: a backend of `torch.compile`.
    """

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend=compiler, dynamic=False, fullgraph=True)

    project, finish = compiled(Block.project), compiled(_finish)

    def run(block: Block, x_TD: Tensor, rotary: tuple[Tensor, Tensor], attention: LayerAttention) -> Tensor:
        found: Tensor = finish(block, x_TD, attention(block.layer, *project(block, x_TD, rotary)))
        return found

    return Compiled(run, compiled(chunk_loss))


def _finish(block: Block, x_TD: Tensor, attended_THE: Tensor) -> Tensor:
    """The residual stream after all that follows attention."""
    return block.add_feed_forward(block.add_attended(x_TD, attended_THE))


def compiling() -> AbstractContextManager[None]:
    """How torch is to compile; for a whole forward pass, since setting it takes a tenth of a millisecond."""
    # optimize_ddp would cut graphs at the buckets of gradients: a layer at a time is small enough already.
    patched: AbstractContextManager[None] = torch._dynamo.config.patch(
        {"recompile_limit": _MOST_COMPILED, "optimize_ddp": False}
    )
    return patched


def static_length(tokens: int, most: int) -> int:
    """The least number that holds `tokens`, of those that code is compiled for: `SIZES` steps up to `most`, and on."""
    step = -(-most // SIZES)
    return -(-tokens // step) * step


def compiler_obstacle(device: torch.device, compiler: str | Callable[..., Any] = INDUCTOR) -> str | None:
    """Why nothing can be compiled here; None where it can. A small function is compiled to find out."""
    try:
        torch.compile(torch.sin, backend=compiler, fullgraph=True)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"torch cannot compile for {device.type} here ({reason}); install a C++ compiler, such as g++"
    return None
