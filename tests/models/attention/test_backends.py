"""Every backend against one softmax per document and head, and one document against another's changes."""

import gc
import weakref

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attention_reference import Parts, gradients, random_qkv, softmax_attention
from seqmill.errors import UserError
from seqmill.models.attention import FULL, Pattern, Segments, attend, choose_backend, layer_patterns, prepare
from seqmill.models.attention.backends import candidates
from seqmill.models.config import ModelConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LENGTHS = st.lists(st.one_of(st.just(1), st.integers(1, 70)), min_size=1, max_size=8)
PATTERNS = st.one_of(
    st.just(FULL),
    st.builds(Pattern, st.integers(1, 40)),
    st.builds(Pattern, st.integers(1, 40), st.integers(1, 12)),
)
BACKENDS = ["sdpa", "flex"]
# Whole blocks of 128 keys lie between sinks and window; in the second, a chunk of queries ends with its document.
LONG = [([400, 3, 1], Pattern(20, 2)), ([1, 20 + 64, 20 + 65, 300], Pattern(20, 5)), ([130, 260], Pattern(100, 70))]


def check_against_the_definition(backend: str, lengths: list[int], pattern: Pattern) -> None:
    q, k, v = (x.requires_grad_() for x in random_qkv(sum(lengths)))
    parts: Parts = (q, k, v)
    out = attend(*parts, Segments.of(lengths), backend, pattern)
    expected = softmax_attention(*parts, lengths, pattern.window, pattern.sinks)
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-6)
    for found, wanted in zip(gradients(out, parts), gradients(expected, parts), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, pattern=PATTERNS)
@example(*LONG[0])
@example(*LONG[1])
@example(*LONG[2])
@example([50] * 5, FULL)
def test_the_dense_backend_gives_outputs_and_gradients_of_the_definition(lengths: list[int], pattern: Pattern) -> None:
    check_against_the_definition("sdpa", lengths, pattern)


@settings(max_examples=10, deadline=None)
@given(lengths=LENGTHS, pattern=PATTERNS)
@example(*LONG[0])
@example(*LONG[1])
@example(*LONG[2])
def test_flex_gives_outputs_and_gradients_of_the_definition(lengths: list[int], pattern: Pattern) -> None:
    check_against_the_definition("flex", lengths, pattern)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(BACKENDS), st.lists(st.integers(1, 90), min_size=2, max_size=7), PATTERNS, st.data())
def test_another_document_changes_no_bit_of_outputs_and_gradients(
    backend: str, lengths: list[int], pattern: Pattern, data: st.DataObject
) -> None:
    changed = data.draw(st.integers(0, len(lengths) - 1))
    segments = Segments.of(lengths)
    start, stop = segments.cu_seqlens[changed : changed + 2].tolist()
    others = torch.ones(sum(lengths), dtype=torch.bool)
    others[start:stop] = False

    def run(shift: float) -> list[torch.Tensor]:
        q, k, v = random_qkv(sum(lengths), dtype=torch.float32)
        for x in (q, k, v):
            x[start:stop] += shift
            x.requires_grad_()
        out = attend(q, k, v, segments, backend, pattern)
        return [out, *gradients(out, (q, k, v))]

    for before, after in zip(run(0.0), run(1.0), strict=True):
        assert torch.equal(before[others], after[others])


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 90), min_size=2, max_size=7), pattern=PATTERNS)
def test_not_even_what_is_no_number_leaves_its_document_in_the_dense_backend(
    lengths: list[int], pattern: Pattern
) -> None:
    segments = Segments.of(lengths)
    parts, disturbed = random_qkv(sum(lengths)), random_qkv(sum(lengths))
    for x in disturbed:
        x[: lengths[0]] = torch.nan
    before, after = (attend(*x, segments, "sdpa", pattern) for x in (parts, disturbed))
    assert torch.equal(before[lengths[0] :], after[lengths[0] :])
    assert after[: lengths[0]].isnan().all()


def test_layers_of_one_pattern_share_what_is_prepared() -> None:
    segments = Segments.of([3, 4])
    assert prepare(segments, Pattern(2), "sdpa") is prepare(segments, Pattern(2), "sdpa")
    assert prepare(segments, Pattern(2), "sdpa") is not prepare(segments, FULL, "sdpa")
    assert prepare(Segments.of([3, 4]), FULL, "sdpa") is not prepare(segments, FULL, "sdpa")


@pytest.mark.parametrize("pattern", [FULL, Pattern(2)], ids=["full", "window"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_prepared_goes_with_its_batch(backend: str, pattern: Pattern) -> None:
    """At once, and not when a collector of cycles comes by: tensors of batches that are done would fill a GPU."""
    segments = Segments.of([3, 4, 3])
    prepare(segments, pattern, backend)(*random_qkv(10))
    alive = weakref.ref(segments.cu_seqlens)
    gc.disable()
    try:
        del segments
        assert alive() is None
    finally:
        gc.enable()


def test_every_so_manieth_layer_is_full(config: ModelConfig) -> None:
    from dataclasses import replace

    local = Pattern(8, 2)
    assert layer_patterns(config) == (FULL,) * config.layers
    assert layer_patterns(replace(config, layers=5, window=8, sinks=2)) == (local,) * 5
    mixed = replace(config, layers=5, window=8, sinks=2, full_every=2)
    assert layer_patterns(mixed) == (local, FULL, local, FULL, local)


def test_positions_count_from_zero_in_every_document() -> None:
    segments = Segments.of([3, 1, 2])
    assert segments.positions().tolist() == [0, 1, 2, 0, 0, 1]
    assert segments.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert segments.cu_seqlens.dtype == torch.int32
    assert segments.max_seqlen == 3


def test_auto_is_the_dense_backend_on_a_processor_and_the_ragged_one_on_cuda_in_half_precision() -> None:
    assert choose_backend("auto", CPU, torch.float32) == "sdpa"
    assert choose_backend("auto", CUDA, torch.bfloat16) == "varlen"
    assert choose_backend("auto", CUDA, torch.bfloat16, [FULL, Pattern(8)]) == "varlen"
    assert choose_backend("auto", CUDA, torch.bfloat16, [FULL, Pattern(8, 1)]) == "sdpa"
    assert choose_backend("auto", CUDA, torch.float32) == "sdpa"
    assert choose_backend("sdpa", CUDA, torch.bfloat16) == "sdpa"


def test_the_candidates_are_those_that_can_run() -> None:
    assert candidates(CPU, torch.float32) == ("sdpa",)
    assert candidates(CUDA, torch.bfloat16) == ("varlen", "flex")
    assert candidates(CUDA, torch.bfloat16, always_even=True) == ("varlen", "flex", "sdpa")
    assert candidates(CUDA, torch.bfloat16, [Pattern(8, 1)]) == ("flex",)
    assert candidates(CUDA, torch.float32) == ("flex",)


def test_a_backend_that_cannot_run_here_is_refused() -> None:
    with pytest.raises(UserError, match=r"'varlen' needs CUDA.*this is cpu.*auto"):
        choose_backend("varlen", CPU, torch.bfloat16)
    with pytest.raises(UserError, match=r"'varlen' has windows but no sinks.*auto"):
        choose_backend("varlen", CUDA, torch.bfloat16, [FULL, Pattern(8, 1)])
    with pytest.raises(UserError, match=r"'flash9'.*no such backend.*sdpa, flex, varlen"):
        choose_backend("flash9", CPU, torch.float32)
