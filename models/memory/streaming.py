"""StreamBP's layer (Luo et al. 2025, arXiv 2506.03077): its forward and its backward, a chunk of tokens at a time.

A layer keeps its input alone, and what it computes in between is never held for more than a chunk, but for keys and
values, which later tokens attend to. Gradients are sums over the layer's outputs, so those of the chunks add up to the
exact ones. On the way back the last chunk comes first: when a chunk's turn comes, all that attends to its keys and
values has had its turn, so their gradients are complete and go back through the projections together with the queries'.

Tensor names end in their axes: T tokens, C tokens of one chunk, P tokens from the start of the chunk's first document
to its end, D model width, H query heads, K key-value heads, E numbers per head.
"""
# ruff: noqa: N803, N806 (the axes are capital letters)

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqmill.models.memory.prefix_attention import Chunk
from seqmill.models.memory.sums import GradientSums, autocast_as_now, leaf, sum_type, trained

if TYPE_CHECKING:
    from seqmill.models.transformer import Block

Rotary = tuple[Tensor, Tensor]  # cosines and sines of tokens


def streamed(block: "Block", x_TD: Tensor, rotary: Rotary, chunks: Sequence[Chunk]) -> Tensor:
    """The residual stream after `block`, of which only `x_TD` is kept.

    Args:
        chunks: of the row, in order (prefix_attention.chunks_of).
    """
    found: Tensor = _Streamed.apply(block, rotary, chunks, x_TD, *trained(block.parameters()))
    return found


class _Streamed(torch.autograd.Function):
    """Weights are arguments and their gradients are returned once, summed over the chunks."""

    @staticmethod
    def forward(
        ctx: Any, block: "Block", rotary: Rotary, chunks: Sequence[Chunk], x_TD: Tensor, *weights: Tensor
    ) -> Tensor:
        """Chunk after chunk, each over the keys and values of all up to it."""
        ctx.block, ctx.rotary, ctx.chunks, ctx.weights = block, rotary, chunks, weights
        ctx.autocast = autocast_as_now(x_TD.device)
        ctx.save_for_backward(x_TD)
        out_TD, keys, values = torch.empty_like(x_TD), _Row(len(x_TD)), _Row(len(x_TD))
        for chunk in chunks:
            x_CD = x_TD[chunk.tokens]
            q_CHE, k_CKE, v_CKE = block.project(x_CD, _of(chunk, rotary))
            keys.put(chunk, k_CKE)
            values.put(chunk, v_CKE)
            out_TD[chunk.tokens] = _finish(block, chunk, x_CD, q_CHE, keys.seen_by(chunk), values.seen_by(chunk))
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        """All keys and values first, then the chunks from the last to the first."""
        (x_TD,) = ctx.saved_tensors
        block, weights, of_weights = ctx.block, ctx.weights, GradientSums(ctx.weights)
        grad_x_TD, keys, values = torch.empty_like(x_TD), _Row(len(x_TD)), _Row(len(x_TD))
        with ctx.autocast():
            for chunk in ctx.chunks:
                _, k_CKE, v_CKE = block.project(x_TD[chunk.tokens], _of(chunk, ctx.rotary))
                keys.put(chunk, k_CKE)
                values.put(chunk, v_CKE)
            for chunk in reversed(ctx.chunks):
                with torch.enable_grad():
                    x_CD = leaf(x_TD[chunk.tokens])
                    projected = block.project(x_CD, _of(chunk, ctx.rotary))
                    inputs = (x_CD, leaf(projected[0]), leaf(keys.seen_by(chunk)), leaf(values.seen_by(chunk)))
                    out_CD = _finish(block, chunk, *inputs)
                grad_x_CD, grad_q_CHE, grad_k_PKE, grad_v_PKE, *found = torch.autograd.grad(
                    out_CD, (*inputs, *weights), grad_TD[chunk.tokens], allow_unused=True
                )
                of_weights.add(found)
                complete = (grad_q_CHE, keys.add_gradient(chunk, grad_k_PKE), values.add_gradient(chunk, grad_v_PKE))
                through_CD, *found = torch.autograd.grad(projected, (x_CD, *weights), complete, allow_unused=True)
                of_weights.add(found)
                grad_x_TD[chunk.tokens] = grad_x_CD.add_(through_CD)
        return None, None, None, grad_x_TD, *of_weights.result()


class _Row:
    """Keys or values of a whole row, and their gradients."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.x_TKE: Tensor | None = None
        self.grad_TKE: Tensor | None = None

    def put(self, chunk: Chunk, x_CKE: Tensor) -> None:
        """Those of a chunk's own tokens."""
        if self.x_TKE is None:
            self.x_TKE = x_CKE.new_empty(self.tokens, *x_CKE.shape[1:])
        self.x_TKE[chunk.tokens] = x_CKE

    def seen_by(self, chunk: Chunk) -> Tensor:
        """x_PKE that the chunk attends to."""
        assert self.x_TKE is not None
        return self.x_TKE[chunk.keys]

    def add_gradient(self, chunk: Chunk, grad_PKE: Tensor) -> Tensor:
        """Add what came from the chunk's queries; the gradient of the chunk's own tokens, whom no more will follow."""
        assert self.x_TKE is not None
        if self.grad_TKE is None:
            self.grad_TKE = torch.zeros_like(self.x_TKE, dtype=sum_type(self.x_TKE.dtype))
        self.grad_TKE[chunk.keys] += grad_PKE
        return self.grad_TKE[chunk.tokens].to(self.x_TKE.dtype)


def _finish(block: "Block", chunk: Chunk, x_CD: Tensor, q_CHE: Tensor, k_PKE: Tensor, v_PKE: Tensor) -> Tensor:
    """The residual stream of a chunk after all that follows the projections."""
    attended_CHE = chunk.attention(block.layer, q_CHE, k_PKE, v_PKE)
    return block.add_feed_forward(block.add_attended(x_CD, attended_CHE))


def _of(chunk: Chunk, rotary: Rotary) -> Rotary:
    cosines, sines = rotary
    return cosines[chunk.tokens], sines[chunk.tokens]
