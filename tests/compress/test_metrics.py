import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from seqmill.compress import bits_per_byte, unigram_entropy


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
