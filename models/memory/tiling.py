"""A function of single tokens, run on a tile of tokens at a time: what it computes in between is never held for a row.

ALST (Bekman et al. 2025, arXiv 2506.13996, section 3.1.1) tiles SwiGLU, whose inner width is the widest of a layer.

Tensor names end in their axes: T tokens, C tokens of one tile, D model width.
"""
# ruff: noqa: N803, N806 (the axes are capital letters)

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqmill.models.memory.sums import GradientSums, autocast_as_now, leaf, pieces, trained


def tiled(function: Callable[[Tensor], Tensor], x_TD: Tensor, weights: Sequence[Tensor], tile_tokens: int) -> Tensor:
    """`function(x_TD)`, of which only `x_TD` is kept: each tile is computed once more on the way back.

    Args:
        function: gives every token a row of the same width and type, which depends on that token and `weights` alone.
        weights: all that `function` may need gradients of; it may leave some out.
    """
    found: Tensor = _Tiled.apply(function, tile_tokens, x_TD, *trained(weights))
    return found


class _Tiled(torch.autograd.Function):
    """Weights are arguments and their gradients are returned once, summed over the tiles, so that what waits for them
    (data parallel training) is told once a layer."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Tensor], Tensor], tile_tokens: int, x_TD: Tensor, *weights: Tensor
    ) -> Tensor:
        """Run the tiles one after the other and keep their input."""
        ctx.function, ctx.tile_tokens, ctx.weights = function, tile_tokens, weights
        ctx.autocast = autocast_as_now(x_TD.device)
        ctx.save_for_backward(x_TD)
        out_TD = torch.empty_like(x_TD)
        for tile in pieces(len(x_TD), tile_tokens):
            out_TD[tile] = function(x_TD[tile])
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        """Run each tile again, now with a graph, and take its gradients."""
        (x_TD,) = ctx.saved_tensors
        grad_x_TD, of_weights = torch.empty_like(x_TD), GradientSums(ctx.weights)
        with torch.enable_grad(), ctx.autocast():
            for tile in pieces(len(x_TD), ctx.tile_tokens):
                x_CD = leaf(x_TD[tile])
                out_CD = ctx.function(x_CD)
                grad_x_TD[tile], *found = torch.autograd.grad(
                    out_CD, (x_CD, *ctx.weights), grad_TD[tile], allow_unused=True
                )
                of_weights.add(found)
        return None, None, grad_x_TD, *of_weights.result()
