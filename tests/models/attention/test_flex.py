"""Block masks against the mask of every pair of tokens, and FlexAttention where it must not run."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from attention_reference import is_seen, random_qkv, softmax_attention
from seqmill.errors import UserError
from seqmill.models.attention import FULL, Pattern, Segments, attend
from seqmill.models.attention import flex as flex_module
from seqmill.models.attention.flex import (
    BLOCK,
    _fused,
    _mask_mod,
    _starts,
    block_mask,
    compile_kernel,
    padded_length,
)

PATTERNS = st.one_of(
    st.just(FULL), st.builds(Pattern, st.integers(1, 700)), st.builds(Pattern, st.integers(1, 700), st.integers(1, 400))
)
LENGTHS = st.lists(st.one_of(st.just(1), st.integers(1, 30), st.integers(100, 700)), min_size=1, max_size=9)


def seen_pairs(lengths: list[int], pattern: Pattern, length: int) -> torch.Tensor:
    """bool[length, length] by the definition; each token of padding sees itself."""
    lengths = lengths + [1] * (length - sum(lengths))
    document = torch.repeat_interleave(torch.tensor(lengths))
    position = Segments.of(lengths).positions()
    query, key = position[:, None], position
    seen = (document[:, None] == document) & (key <= query)
    if pattern.window is not None:
        seen &= (key > query - pattern.window) | (key < pattern.sinks)
    return seen


def listed(count: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """bool[rows, columns] of a BlockMask's arrays: the first `count` of a row's `indices` are in."""
    out = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for row, (number, places) in enumerate(zip(count[0, 0].tolist(), indices[0, 0].tolist(), strict=True)):
        out[row, places[:number]] = True
    return out


@settings(max_examples=40, deadline=None)
@given(LENGTHS, PATTERNS, st.integers(0, 2))
def test_every_block_is_empty_partial_or_full_as_its_pairs_say(
    lengths: list[int], pattern: Pattern, more_blocks: int
) -> None:
    length = (-(-sum(lengths) // BLOCK) + more_blocks) * BLOCK
    mask = block_mask(Segments.of(lengths), pattern, length)
    pairs = seen_pairs(lengths, pattern, length).unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    any_seen, all_seen = pairs.any(dim=3).any(dim=1), pairs.all(dim=3).all(dim=1)
    assert mask.shape == (1, 1, length, length)
    assert torch.equal(listed(mask.full_kv_num_blocks, mask.full_kv_indices), all_seen)
    assert torch.equal(listed(mask.kv_num_blocks, mask.kv_indices), any_seen & ~all_seen)
    assert torch.equal(listed(mask.full_q_num_blocks, mask.full_q_indices), all_seen.T)  # for the backward pass
    assert torch.equal(listed(mask.q_num_blocks, mask.q_indices), (any_seen & ~all_seen).T)


@settings(max_examples=10, deadline=None)
@given(LENGTHS, PATTERNS)
def test_arrays_and_pairs_are_those_of_create_block_mask(lengths: list[int], pattern: Pattern) -> None:
    length = -(-sum(lengths) // BLOCK) * BLOCK
    segments = Segments.of(lengths)
    found = block_mask(segments, pattern, length)
    start = torch.from_numpy(_starts(segments, length))
    expected = create_block_mask(_mask_mod(start, pattern), None, None, length, length, device="cpu")
    assert torch.equal(found.to_dense(), expected.to_dense())
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    place = torch.arange(length)
    pairs = found.mask_mod(torch.tensor(0), torch.tensor(0), place[:, None], place[None])
    assert torch.equal(pairs, seen_pairs(lengths, pattern, length))


def test_the_pairs_of_a_pattern_are_those_of_the_definition() -> None:
    place = torch.arange(12)
    for window, sinks in [(None, 0), (1, 0), (3, 0), (3, 1), (3, 5), (12, 2), (40, 0)]:
        pairs = Pattern(window, sinks).visible(place[:, None], place)
        assert pairs.tolist() == [[is_seen(row, column, window, sinks) for column in range(12)] for row in range(12)]


@given(st.integers(1, 3_000_000))
def test_a_padded_length_is_one_of_few_and_holds_the_tokens(tokens: int) -> None:
    length = padded_length(tokens)
    assert tokens <= length < tokens * 1.25 + BLOCK
    assert length % BLOCK == 0
    assert padded_length(length) == length
    assert (length // BLOCK) % 2 ** max(
        0, (length // BLOCK - 1).bit_length() - 3
    ) == 0  # four from 2 ** n to 2 ** (n + 1)


def test_a_long_batch_is_refused_on_a_processor_rather_than_computed_with_all_scores() -> None:
    with pytest.raises(UserError, match=r"'flex' on cpu.*fewer than 1024 of them, not 1024.*'sdpa'"):
        attend(*random_qkv(1024), Segments.of([1000, 24]), "flex")


def check_fused(pattern: Pattern) -> None:
    """Three batches that are padded to one length, as on CUDA, against the definition."""
    for lengths in ([100, 28, 170], [300], [5] * 56):
        parts = random_qkv(sum(lengths), dtype=torch.float32, head_dim=16)
        out = _fused(Segments.of(lengths), pattern)(*parts)
        expected = softmax_attention(*parts, lengths, pattern.window, pattern.sinks)
        torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_kernel_is_one_graph_for_batches_of_other_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for CUDA, with torch's own operations in place of the compiled kernel."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    kernel = compile_kernel(counter)
    monkeypatch.setattr(flex_module, "_compiled_kernel", lambda: kernel)
    check_fused(Pattern(40, 3))
    assert counter.frame_count == 1


@pytest.mark.slow
def test_the_compiled_kernel_reads_the_blocks_as_the_definition_wants() -> None:
    check_fused(Pattern(40, 3))
