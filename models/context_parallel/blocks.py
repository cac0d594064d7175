"""Attention of some queries to some keys, with the logarithm of each softmax's normaliser, by which blocks are merged.

`merge` of a query's outputs over blocks of keys is its output over all of them. The backward pass of a block takes the
merged output and normaliser: the gradient of a score is P (dP - D) with P = exp(score - normaliser) and D = sum of
dOut * out over a head's numbers (FlashAttention-2, arXiv 2307.08691, section 3.1), so it needs no other block.

Tensor names end in their axes: Q queries, S keys, H query heads, K key-value heads, E numbers per head, B one (the
kernels want a batch).
"""
# ruff: noqa: N803, N806, N815 (the axes are capital letters)

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_HALF_TYPES = (torch.bfloat16, torch.float16)
_SCORES = 1 << 26  # of all heads that the plain kernel holds at once


class Attended(NamedTuple):
    """What queries got from the keys they saw."""

    out_QHE: Tensor
    normaliser_HQ: Tensor  # ln of the sum of exp(score), float32 or float64


class _Kernel(NamedTuple):
    """All tensors BHQE or BHSE, the normaliser BHQ; no grouped heads."""

    forward: Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]  # q, k, v, causal -> out, normaliser
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]  # dout, q, k, v, out, normaliser, causal -> dq, dk, dv


def attend_block(q_QHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, causal: bool) -> Attended:
    """Attention to all keys; or, `causal` with as many keys as queries, to those up to a query's own place."""
    heads = q_QHE.shape[1]
    out_BHQE, normaliser_BHQ = _kernel(q_QHE).forward(
        _batched(q_QHE, heads), _batched(k_SKE, heads), _batched(v_SKE, heads), causal
    )
    return Attended(out_BHQE[0].transpose(0, 1), normaliser_BHQ[0])


def attend_block_backward(
    grad_QHE: Tensor, q_QHE: Tensor, k_SKE: Tensor, v_SKE: Tensor, merged: Attended, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v of this block, where `merged` is what the queries got from all blocks."""
    heads, kv_heads = q_QHE.shape[1], k_SKE.shape[1]
    grad, q, k, v, out = (_batched(x, heads) for x in (grad_QHE, q_QHE, k_SKE, v_SKE, merged.out_QHE))
    grads = _kernel(q_QHE).backward(grad, q, k, v, out, merged.normaliser_HQ[None].contiguous(), causal)
    grad_q, grad_k, grad_v = (x[0].transpose(0, 1) for x in grads)
    return grad_q, *(x.unflatten(1, (kv_heads, -1)).sum(2, dtype=_exact(x)) for x in (grad_k, grad_v))


def merge(one: Attended, other: Attended) -> Attended:
    """What the same queries get from the keys of both."""
    normaliser_HQ = torch.logaddexp(one.normaliser_HQ, other.normaliser_HQ)
    first, second = (x.out_QHE * (x.normaliser_HQ - normaliser_HQ).exp().T[..., None] for x in (one, other))
    return Attended(first + second, normaliser_HQ)


def _exact(x: Tensor) -> torch.dtype:
    """What sums over blocks are kept in."""
    return torch.promote_types(x.dtype, torch.float32)


def _batched(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], dim=1).transpose(0, 1)[None]


def _kernel(q_QHE: Tensor) -> _Kernel:
    if q_QHE.device.type == "cpu":
        return FLASH_CPU
    flash = q_QHE.device.type == "cuda" and q_QHE.dtype in _HALF_TYPES and q_QHE.shape[-1] % 8 == 0
    return FLASH_CUDA if flash else PLAIN


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    return out, normaliser


def _cpu_backward(*tensors_and_causal: Any) -> tuple[Tensor, Tensor, Tensor]:
    *tensors, causal = tensors_and_causal
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grad_q, grad_k, grad_v = operator(*tensors, 0.0, causal)
    return grad_q, grad_k, grad_v


def _cuda_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    out, normaliser, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    return out, normaliser


def _cuda_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, normaliser: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    no_dropout = torch.empty(0, dtype=torch.int64, device=q.device)
    bounds = (None, None, q.shape[2], k.shape[2])  # of no ragged batch
    operator = torch.ops.aten._scaled_dot_product_flash_attention_backward
    found = operator(grad, q, k, v, out, normaliser, *bounds, 0.0, causal, no_dropout, no_dropout)
    grad_q, grad_k, grad_v = found
    return grad_q, grad_k, grad_v


def _plain_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    outs, normalisers = [], []
    for rows in _tiles(q, k):
        scores = _scores(q, k, rows, causal)
        normalisers.append(scores.logsumexp(-1))
        outs.append((scores - normalisers[-1][..., None]).exp() @ v.to(scores.dtype))
    return torch.cat(outs, dim=2).to(q.dtype), torch.cat(normalisers, dim=2)


def _plain_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, normaliser: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    exact = _exact(q)
    grad, v, out = (x.to(exact) for x in (grad, v, out))
    grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=exact) for x in (q, k, v))
    d = (grad * out).sum(-1, keepdim=True)
    for rows in _tiles(q, k):
        p = (_scores(q, k, rows, causal) - normaliser[:, :, rows, None]).exp()
        grad_scores = p * (grad[:, :, rows] @ v.mT - d[:, :, rows]) * q.shape[-1] ** -0.5
        grad_q[:, :, rows] = grad_scores @ k.to(exact)
        grad_k += grad_scores.mT @ q[:, :, rows].to(exact)
        grad_v += p.mT @ grad[:, :, rows]
    return grad_q, grad_k, grad_v


def _tiles(q: Tensor, k: Tensor) -> list[slice]:
    step = max(1, _SCORES // (q.shape[1] * max(1, k.shape[2])))
    return [slice(start, min(start + step, q.shape[2])) for start in range(0, max(1, q.shape[2]), step)]


def _scores(q: Tensor, k: Tensor, rows: slice, causal: bool) -> Tensor:
    scores = q[:, :, rows].to(_exact(q)) @ k.to(_exact(q)).mT * q.shape[-1] ** -0.5
    if causal:
        scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu_(rows.start + 1), -torch.inf)
    return scores


FLASH_CPU = _Kernel(_cpu_forward, _cpu_backward)  # torch's tiled kernel for processors
FLASH_CUDA = _Kernel(_cuda_forward, _cuda_backward)  # FlashAttention-2
PLAIN = _Kernel(_plain_forward, _plain_backward)  # scores in full, some queries at a time: float32 on CUDA, for example
