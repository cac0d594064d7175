"""Attention by its definition: one head of one document after the other, a softmax over the tokens that are seen."""
# ruff: noqa: N803 (the axes of a tensor are capital letters)

import math

import torch
from torch import Tensor

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
Parts = tuple[Tensor, Tensor, Tensor]


def random_qkv(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float64, head_dim: int = HEAD_DIM) -> Parts:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(tokens, heads, head_dim, generator=generator, dtype=dtype) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    return q, k, v


def is_seen(query: int, key: int, window: int | None, sinks: int) -> bool:
    """Of positions in one document."""
    return key <= query and (window is None or key > query - window or key < sinks)


def softmax_attention(
    q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, lengths: list[int], window: int | None = None, sinks: int = 0
) -> Tensor:
    """In float64."""
    heads, head_dim = q_THE.shape[1:]
    outputs, start = [], 0
    for length in lengths:
        here = slice(start, start + length)
        seen = torch.tensor(
            [[is_seen(row, column, window, sinks) for column in range(length)] for row in range(length)]
        )
        of_document = []
        for head in range(heads):
            group = head // (heads // k_TKE.shape[1])
            q, k, v = q_THE[here, head].double(), k_TKE[here, group].double(), v_TKE[here, group].double()
            of_document.append((q @ k.T / math.sqrt(head_dim)).masked_fill(~seen, -math.inf).softmax(-1) @ v)
        outputs.append(torch.stack(of_document, dim=1))
        start += length
    return torch.cat(outputs)


def gradients(out: Tensor, parts: Parts) -> tuple[Tensor, ...]:
    """Of a fixed weighted sum of the outputs."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad((out.double() * weights.to(out.device)).sum(), parts)
