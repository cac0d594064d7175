import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from seqmill.compress import CodeLength, bits_per_byte, code_lengths, unigram_entropy
from seqmill.errors import UserError


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50))
def test_unigram_entropy_equals_scipy(counts: list[int]) -> None:
    expected = entropy(counts) if sum(counts) else 0.0
    assert unigram_entropy(np.array(counts)) == pytest.approx(expected, abs=1e-12)


def test_a_uniform_source_has_the_entropy_of_its_size() -> None:
    assert unigram_entropy(np.full(256, 3)) == pytest.approx(math.log(256))


def test_a_byte_model_without_knowledge_needs_eight_bits_per_byte() -> None:
    assert bits_per_byte(math.log(256), tokens=1000, num_bytes=1000) == pytest.approx(8.0)
    assert bits_per_byte(math.log(256), tokens=250, num_bytes=1000) == pytest.approx(2.0)


def test_bits_per_byte_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="num_bytes = 0"):
        bits_per_byte(1.0, 0, 0)


def one(nats: list[float], sizes: list[int]) -> CodeLength:
    return code_lengths([np.array(nats)], [np.array(sizes)], ["web"])["web"]


def test_an_end_of_document_costs_bits_and_stands_for_no_byte() -> None:
    found = one([math.log(2), math.log(4), math.log(2)], [3, 5, 0])
    assert found == CodeLength(1, 3, 3, 8, 8, pytest.approx(math.log(16)))
    assert found.bits_per_byte == pytest.approx(4 / 8)
    assert found.bits_per_byte_of_all(1000) == pytest.approx(4 / 8)


def test_a_first_token_that_is_not_predicted_takes_its_bytes_along() -> None:
    found = one([math.log(4), math.log(2)], [3, 5, 0])
    assert (found.tokens, found.targets, found.bytes, found.target_bytes) == (3, 2, 8, 5)
    assert found.bits_per_byte == pytest.approx(3 / 5)
    assert found.bits_per_byte_of_all(1024) == pytest.approx((10 + 3) / 8)


documents = st.lists(
    st.tuples(
        st.sampled_from(["web", "code", ""]),
        st.lists(st.tuples(st.floats(0, 50), st.integers(0, 20)), min_size=1, max_size=8),
        st.booleans(),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=50)
@given(documents, st.randoms(use_true_random=False))
def test_sources_add_up_exactly_whatever_the_order(
    rows: list[tuple[str, list[tuple[float, int]], bool]], random: random.Random
) -> None:
    def lengths(rows: list[tuple[str, list[tuple[float, int]], bool]]) -> dict[str, CodeLength]:
        nats = [np.array([loss for loss, _ in tokens][not whole :]) for _, tokens, whole in rows]
        sizes = [np.array([size for _, size in tokens]) for _, tokens, _ in rows]
        return code_lengths(nats, sizes, [source for source, _, _ in rows])

    found = lengths(rows)
    assert list(found) == sorted({source for source, _, _ in rows})
    for source, length in found.items():
        own = [(tokens, int(not whole)) for name, tokens, whole in rows if name == source]
        predicted = [token for tokens, skipped in own for token in tokens[skipped:]]
        assert length.documents == len(own)
        assert length.tokens == sum(len(tokens) for tokens, _ in own)
        assert length.targets == len(predicted)
        assert length.bytes == sum(size for tokens, _ in own for _, size in tokens)
        assert length.target_bytes == sum(size for _, size in predicted)
        assert length.nats == pytest.approx(sum(loss for loss, _ in predicted))
    random.shuffle(rows)
    assert lengths(rows) == found


def test_a_uniform_model_needs_the_same_bits_per_byte_for_bytes_and_for_pairs_of_them() -> None:
    by_bytes = one([math.log(256)] * 100, [1] * 100)
    by_pairs = one([math.log(256**2)] * 50, [2] * 50)
    assert by_bytes.bits_per_byte == pytest.approx(by_pairs.bits_per_byte) == pytest.approx(8)


@pytest.mark.parametrize(
    ("nats", "sizes", "told"),
    [
        ([1.0], [1, 1, 1], "3 tokens and 1 losses"),
        ([1.0, 1.0], [1], "1 tokens and 2 losses"),
        ([-0.5], [1], "loss below 0"),
        ([math.nan], [1], "loss below 0"),
    ],
)
def test_losses_that_do_not_fit_are_refused(nats: list[float], sizes: list[int], told: str) -> None:
    with pytest.raises(UserError, match=f"document 0 has.*{told}"):
        one(nats, sizes)


def test_bits_of_a_document_without_a_predicted_byte_are_refused() -> None:
    with pytest.raises(ValueError, match="num_bytes = 0"):
        _ = one([], [1]).bits_per_byte
    assert one([], [1]).bits_per_byte_of_all(256) == 8.0
