"""Summed cross-entropy straight from hidden vectors, a chunk of tokens at a time.

Tensor names end in their axes: T tokens, C tokens of one chunk, D model width, V padded vocabulary.
"""
# ruff: noqa: N803, N806, N815 (the axes are capital letters)

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORED = -100  # target of a token that is not trained on
PARTS = ("unique", "repeat", "trap")  # of a loss that is told apart, by what the tokens belong to

# Logits held at once: on a processor they should stay in its cache, on a GPU 1 GiB of float32 keeps it busy.
CHUNK_LOGITS: Mapping[str, int] = MappingProxyType({"cpu": 1 << 21, "cuda": 1 << 28})


def cross_entropy_sum(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, vocab_size: int, chunk_tokens: int | None = None
) -> Tensor:
    """Sum over all tokens of -log p(target), in nats, as a float32 scalar; tokens with target `IGNORED` count nothing.

    All logits [T, V] are never held, and the gradients are taken in the same pass, so nothing is computed twice.

    Args:
        vocab_size: rows of `weight_VD` from here on are padding and get probability zero.
        chunk_tokens: tokens per chunk; by default as many as `CHUNK_LOGITS` allows.
    """
    return cross_entropy_parts(hidden_TD, weight_VD, targets_T, vocab_size, None, chunk_tokens)[0]


def cross_entropy_parts(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    vocab_size: int,
    part_T: Tensor | None,
    chunk_tokens: int | None = None,
    weights_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`cross_entropy_sum`, bit for bit, and what it is the sum of, for reading alone: no gradient flows through it.

    Args:
        part_T: int64, the part of each token, a number into `PARTS`; None where nothing tells any apart.
        weights_T: float32, what each token's loss is multiplied with; None for 1.

    Returns:
        The weighted sum, and the sums without weights over the tokens of each part: float32[parts].
    """
    found = summed_loss(hidden_TD, weight_VD, targets_T, vocab_size, part_T, chunk_tokens, weights_T)
    return found.total, found.parts


class SummedLoss(NamedTuple):
    """Sums over the targets of some tokens, float32 on their device. Gradients flow through `total` alone."""

    total: Tensor  # what is trained on: cross_entropy + z_loss
    cross_entropy: Tensor  # nats, with the tokens' weights
    z_loss: Tensor  # with the tokens' weights
    parts: Tensor  # float32[parts], nats without weights; zeros where nothing tells tokens apart


def summed_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    vocab_size: int,
    part_T: Tensor | None = None,
    chunk_tokens: int | None = None,
    weights_T: Tensor | None = None,
    z_coefficient: float = 0.0,
    of_full_chunk: "ChunkLoss | None" = None,
) -> SummedLoss:
    """`cross_entropy_parts` with a z-loss, which keeps the logits' normaliser Z near 1: z_coefficient * log(Z)^2 of
    every counted token (PaLM, Chowdhery et al. 2022, arXiv 2204.02311, section 5, with 1e-4).

    Args:
        z_coefficient: 0 leaves every bit of the sums and gradients as it is without.
        of_full_chunk: runs in place of `chunk_loss` on chunks that are full: all of one size, as compiled code wants.
    """
    chunk_tokens = chunk_tokens or max(1, CHUNK_LOGITS[hidden_TD.device.type] // weight_VD.shape[0])
    settings = (min(chunk_tokens, len(targets_T)), weights_T, z_coefficient, of_full_chunk or chunk_loss)
    return SummedLoss(*_CrossEntropySum.apply(hidden_TD, weight_VD, targets_T, vocab_size, part_T, *settings))


class LossOfChunk(NamedTuple):
    """Sums over the targets of a chunk, as of SummedLoss, and the way back."""

    cross_entropy: Tensor
    z_loss: Tensor
    parts: Tensor
    grad_CV: Tensor | None  # of the logits, in the type of the hidden vectors


ChunkLoss = Callable[..., LossOfChunk]
"""`chunk_loss`, or the same compiled."""


def chunk_loss(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    targets_C: Tensor,
    vocab_size: int,
    part_C: Tensor | None,
    weights_C: Tensor | None,
    z_coefficient: float,
    wants_gradient: bool,
) -> LossOfChunk:
    """The loss of one chunk, of which all logits are held.

    With p = softmax(logits), the gradient of a token's logits is p - onehot(target), and that of log(Z)^2 is
    2 log(Z) p: the exponentials that the loss takes anyway serve for both, and stand where the logits stood.
    """
    targets_C, weights_C = targets_C[:, None], None if weights_C is None else weights_C[:, None]
    counted_C = targets_C != IGNORED
    targets_C = targets_C.where(counted_C, 0)
    logits_CV = (hidden_CD @ weight_VD.T).float()
    logits_CV[:, vocab_size:] = -torch.inf
    largest_C = logits_CV.amax(dim=1, keepdim=True)
    below_C = logits_CV.sub_(largest_C).gather(1, targets_C)  # of the target, below the largest
    sum_C = logits_CV.exp_().sum(dim=1, keepdim=True)
    losses_C = (sum_C.log() - below_C) * counted_C
    normaliser_C = sum_C.log() + largest_C
    scale_C = counted_C if weights_C is None else counted_C * weights_C
    loss = (losses_C if weights_C is None else losses_C * scale_C).sum()
    z_loss = torch.zeros_like(loss)
    if z_coefficient:
        z_loss = z_coefficient * (normaliser_C.square() * scale_C).sum()
    parts = loss.new_zeros(len(PARTS))
    if part_C is not None:
        parts = torch.stack([(losses_C * (part_C[:, None] == part)).sum() for part in range(len(PARTS))])
    if not wants_gradient:
        return LossOfChunk(loss, z_loss, parts, None)
    of_softmax_C = scale_C * (1 + 2 * z_coefficient * normaliser_C) if z_coefficient else scale_C
    grad_CV = logits_CV.mul_(of_softmax_C / sum_C).scatter_add_(1, targets_C, -scale_C.float())
    return LossOfChunk(loss, z_loss, parts, grad_CV.to(hidden_CD.dtype))


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,
        vocab_size: int,
        part_T: Tensor | None,
        chunk_tokens: int,
        weights_T: Tensor | None,
        z_coefficient: float,
        of_full_chunk: ChunkLoss,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields of `SummedLoss`, and for the way back the gradients of the total."""
        wants_gradient = any(ctx.needs_input_grad)
        compute_VD = weight_VD.to(hidden_TD.dtype)
        grad_hidden_TD = torch.empty_like(hidden_TD) if wants_gradient else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_gradient else None
        loss = hidden_TD.new_zeros((), dtype=torch.float32)
        z_loss = torch.zeros_like(loss)
        parts = hidden_TD.new_zeros(len(PARTS), dtype=torch.float32)
        for start in range(0, len(targets_T), max(1, chunk_tokens)):
            chunk = slice(start, start + chunk_tokens)
            hidden_CD, targets_C = hidden_TD[chunk], targets_T[chunk]
            part_C, weights_C = (None if of_T is None else of_T[chunk] for of_T in (part_T, weights_T))
            run = of_full_chunk if len(targets_C) == chunk_tokens else chunk_loss
            found = run(hidden_CD, compute_VD, targets_C, vocab_size, part_C, weights_C, z_coefficient, wants_gradient)
            loss += found.cross_entropy
            z_loss += found.z_loss
            parts += found.parts
            if found.grad_CV is not None and grad_hidden_TD is not None and grad_weight_VD is not None:
                torch.mm(found.grad_CV, compute_VD, out=grad_hidden_TD[chunk])
                grad_weight_VD += found.grad_CV.T @ hidden_CD
        ctx.save_for_backward(grad_hidden_TD, grad_weight_VD)
        ctx.mark_non_differentiable(loss, z_loss, parts)
        return loss + z_loss, loss, z_loss, parts

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients taken in `forward`, times that of the total."""
        grad_total, *_ = grad_outputs
        grad_hidden_TD, grad_weight_VD = ctx.saved_tensors
        return grad_hidden_TD * grad_total, grad_weight_VD * grad_total, *[None] * 7
