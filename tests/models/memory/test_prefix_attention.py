"""The attention of a chunk, against one softmax per document in float64."""
# ruff: noqa: N803 (the axes of a tensor are capital letters)

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqmill.models.attention import Segments, attend
from seqmill.models.memory import prefix_attention
from seqmill.models.memory.prefix_attention import attend_to_prefix, chunks_of
from seqmill.models.transformer import LayerAttention

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
LENGTHS = st.lists(st.one_of(st.just(1), st.integers(1, 40)), min_size=1, max_size=8)


def random_qkv(tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(tokens, heads, HEAD_DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def softmax_attention(q_CHE: Tensor, k_PKE: Tensor, v_PKE: Tensor) -> Tensor:
    """The definition: the last query sees all keys, the one before it all but one."""
    queries, keys = len(q_CHE), len(k_PKE)
    hidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=1).transpose(0, 1) for x in (k_PKE, v_PKE))
    scores = q_CHE.transpose(0, 1) @ k.mT / math.sqrt(HEAD_DIM)
    return (scores.masked_fill(hidden, -math.inf).softmax(-1) @ v).transpose(0, 1)


@pytest.mark.parametrize("tile", [1, 3, 8, 256])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 30), (8, 8), (8, 9), (17, 40), (24, 31)])
def test_the_last_tokens_of_a_document_see_all_before_them(
    queries: int, keys: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_attention, "_TILE_QUERIES", tile)
    q, k, v = random_qkv(keys)
    inputs = [x.requires_grad_() for x in (q[:queries].clone(), k, v)]
    found, expected = attend_to_prefix(*inputs), softmax_attention(*inputs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    weights = torch.randn(found.shape, dtype=found.dtype)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), inputs) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_last_tokens_see_all_before_them_on_a_gpu_too(dtype: torch.dtype, tolerance: float) -> None:
    q, k, v = (x.cuda() for x in random_qkv(700, dtype))
    inputs = [x.requires_grad_() for x in (q[:300].clone(), k, v)]
    exact = [x.detach().double().cpu().requires_grad_() for x in inputs]
    found, expected = attend_to_prefix(*inputs), softmax_attention(*exact)
    torch.testing.assert_close(found.double().cpu(), expected, atol=tolerance, rtol=tolerance)
    ours, theirs = (torch.autograd.grad(out.sum(), parts) for out, parts in ((found, inputs), (expected, exact)))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double().cpu(), other, atol=10 * tolerance, rtol=10 * tolerance)


def within(segments: Segments) -> LayerAttention:
    return lambda _layer, q_THE, k_TKE, v_TKE: attend(q_THE, k_TKE, v_TKE, segments, "sdpa")


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 60))
@example([1] * 30, 7)
@example([5, 3, 20], 10)
def test_chunks_cover_a_row_in_order_and_cut_no_document_that_fits(lengths: list[int], most: int) -> None:
    chunks = list(chunks_of(Segments.of(lengths), most, within))
    bounds = {sum(lengths[:count]) for count in range(len(lengths) + 1)}
    assert [chunk.tokens.start for chunk in chunks] == [0, *(chunk.tokens.stop for chunk in chunks[:-1])]
    assert chunks[-1].tokens.stop == sum(lengths)
    assert all(0 < chunk.tokens.stop - chunk.tokens.start <= most for chunk in chunks)
    assert all(chunk.keys.start in bounds and chunk.keys.stop == chunk.tokens.stop for chunk in chunks)
    if most >= max(lengths):
        assert {chunk.tokens.stop for chunk in chunks} <= bounds
        assert all(chunk.keys == chunk.tokens for chunk in chunks)
    assert len(chunks) <= 2 * sum(lengths) / most + 1


def test_the_example_of_the_docstring() -> None:
    chunks = chunks_of(Segments.of([5, 3, 20]), 10, within)
    assert [(chunk.tokens.start, chunk.tokens.stop, chunk.keys.start) for chunk in chunks] == [
        (0, 8, 0),
        (8, 18, 8),
        (18, 28, 8),
    ]


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 60))
def test_chunks_together_attend_as_the_whole_row_does(lengths: list[int], most: int) -> None:
    q, k, v = random_qkv(sum(lengths))
    found = torch.cat(
        [
            chunk.attention(0, q[chunk.tokens], k[chunk.keys], v[chunk.keys])
            for chunk in chunks_of(Segments.of(lengths), most, within)
        ]
    )
    expected, start = [], 0
    for length in lengths:
        here = slice(start, start + length)
        expected.append(softmax_attention(q[here], k[here], v[here]))
        start += length
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-12, rtol=1e-12)
