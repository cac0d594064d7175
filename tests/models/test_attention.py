"""Attention inside documents, against one softmax per document in float64."""
# ruff: noqa: N803 (the axes of a tensor are capital letters)

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import seqmill.models.attention as attention_module
from seqmill.errors import UserError
from seqmill.models.attention import Segments, attend, choose_backend

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


def random_qkv(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(tokens, heads, HEAD_DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS))
    return q, k, v


def softmax_attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, lengths: list[int]) -> Tensor:
    """The definition, in float64: one head of one document after the other."""
    out = torch.zeros_like(q_THE, dtype=torch.float64)
    start = 0
    for length in lengths:
        here = slice(start, start + length)
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            q, k, v = q_THE[here, head].double(), k_TKE[here, group].double(), v_TKE[here, group].double()
            scores = (q @ k.T / math.sqrt(HEAD_DIM)).masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            out[here, head] = scores.softmax(-1) @ v
        start += length
    return out


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=12))
def test_documents_of_any_lengths_attend_causally_to_themselves_alone(lengths: list[int]) -> None:
    q, k, v = random_qkv(sum(lengths))
    out = attend(q, k, v, Segments.of(lengths), "sdpa")
    torch.testing.assert_close(out.double(), softmax_attention(q, k, v, lengths), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_definition() -> None:
    lengths = [3, 1, 17, 16, 40]
    parts = [x.requires_grad_() for x in random_qkv(sum(lengths))]
    weights = torch.randn(sum(lengths), HEADS, HEAD_DIM)
    found = torch.autograd.grad((attend(*parts, Segments.of(lengths), "sdpa") * weights).sum(), parts)
    expected = torch.autograd.grad((softmax_attention(*parts, lengths) * weights).sum(), parts)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=9), st.data())
def test_another_document_changes_no_bit_even_where_lengths_share_a_call(
    lengths: list[int], data: st.DataObject
) -> None:
    changed = data.draw(st.integers(0, len(lengths) - 1))
    segments = Segments.of(lengths)
    start, stop = segments.cu_seqlens[changed : changed + 2].tolist()
    parts, disturbed = random_qkv(sum(lengths)), random_qkv(sum(lengths))
    for x in disturbed:
        x[start:stop] = torch.nan
    before, after = (attend(*x, segments, "sdpa") for x in (parts, disturbed))
    others = torch.ones(sum(lengths), dtype=torch.bool)
    others[start:stop] = False
    assert torch.equal(before[others], after[others])
    assert after[start:stop].isnan().all()


def test_positions_count_from_zero_in_every_document() -> None:
    segments = Segments.of([3, 1, 2])
    assert segments.positions().tolist() == [0, 1, 2, 0, 0, 1]
    assert segments.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert segments.cu_seqlens.dtype == torch.int32
    assert segments.max_seqlen == 3


def kernel_of_2_10(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):  # type: ignore[no-untyped-def]
    assert is_causal
    return kernel_reference(q, k, v, cu_seq_q, max_q)


def kernel_of_2_11(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
    assert window_size == (-1, 0)
    return kernel_reference(q, k, v, cu_seq_q, max_q)


def kernel_of_2_12(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):  # type: ignore[no-untyped-def]
    assert window_size == (-1, 0)
    assert enable_gqa
    assert k.shape[1] == KV_HEADS
    return kernel_reference(q, *(x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v)), cu_seq_q, max_q)


def kernel_reference(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """A ragged kernel without grouped heads."""
    assert q.shape == k.shape == v.shape
    lengths = bounds.diff().tolist()
    assert max(lengths) == longest
    return softmax_attention(q, k[:, :: HEADS // KV_HEADS], v[:, :: HEADS // KV_HEADS], lengths)


@pytest.mark.parametrize("kernel", [kernel_of_2_10, kernel_of_2_11, kernel_of_2_12])
def test_the_ragged_kernel_is_called_as_its_version_wants(kernel: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "varlen_attn", kernel)
    lengths = [5, 1, 12]
    q, k, v = random_qkv(sum(lengths))
    out = attend(q, k, v, Segments.of(lengths), "varlen")
    torch.testing.assert_close(out, softmax_attention(q, k, v, lengths))


def test_auto_is_the_dense_backend_on_a_processor_and_the_ragged_one_on_cuda_in_half_precision() -> None:
    assert choose_backend("auto", torch.device("cpu"), torch.float32) == "sdpa"
    assert choose_backend("auto", torch.device("cuda"), torch.bfloat16) == "varlen"
    assert choose_backend("auto", torch.device("cuda"), torch.float32) == "sdpa"
    assert choose_backend("sdpa", torch.device("cuda"), torch.bfloat16) == "sdpa"


def test_a_backend_that_cannot_run_here_is_refused() -> None:
    with pytest.raises(UserError, match=r"'varlen' needs CUDA.*this is cpu.*auto"):
        choose_backend("varlen", torch.device("cpu"), torch.bfloat16)
    with pytest.raises(UserError, match=r"'flash9'.*no such backend.*sdpa, varlen"):
        choose_backend("flash9", torch.device("cpu"), torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_ragged_kernel_agrees_with_the_definition_on_cuda() -> None:
    lengths = [5, 1, 130, 64]
    q, k, v = (x.repeat(1, 1, 8).to("cuda", torch.bfloat16) for x in random_qkv(sum(lengths)))
    segments = Segments.of(lengths, "cuda")
    dense, ragged = (attend(q, k, v, segments, backend) for backend in ("sdpa", "varlen"))
    torch.testing.assert_close(ragged, dense, atol=2e-2, rtol=2e-2)
    changed = q.clone()
    changed[:5] += 1
    assert torch.equal(attend(changed, k, v, segments, "varlen")[5:], ragged[5:])
