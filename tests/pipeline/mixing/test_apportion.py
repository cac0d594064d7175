from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.mixing.apportion import (
    Copies,
    copies_of_documents,
    copies_of_epochs,
    copies_of_size,
    exact,
    largest_remainder,
)

from . import oracle

some_weights = st.lists(st.integers(0, 1000).map(lambda n: Fraction(n, 1000)), min_size=1, max_size=8).filter(any)


@given(st.integers(0, 10**12), some_weights)
def test_shares_are_those_of_giving_out_one_at_a_time(total: int, weights: list[Fraction]) -> None:
    counts = largest_remainder(total, weights)
    assert counts == oracle.apportion(total, weights)
    assert sum(counts) == total
    assert all(abs(count - total * weight / sum(weights)) < 1 for count, weight in zip(counts, weights, strict=True))


def test_shares_of_nothing_are_nothing() -> None:
    assert largest_remainder(5, [Fraction(0), Fraction(0)]) == [0, 0]
    assert largest_remainder(0, [Fraction(1)]) == [0]
    assert largest_remainder(10, [Fraction(1)] * 3) == [4, 3, 3]


def test_a_weight_is_the_decimal_that_was_written() -> None:
    assert largest_remainder(10, [exact(0.7), exact(0.1), exact(0.2)]) == [7, 1, 2]
    assert exact(1e-05) == Fraction(1, 100000)


@given(st.integers(0, 5000), st.integers(0, 300))
def test_epochs_become_whole_copies(thousandths: int, documents: int) -> None:
    copies = copies_of_epochs(Fraction(thousandths, 1000), documents)
    wanted = thousandths // 1000 * documents + round(Fraction(thousandths % 1000, 1000) * documents)
    assert copies.base * documents + copies.extra == wanted
    assert 0 <= copies.extra < max(1, documents)
    assert copies.most == copies.base + (copies.extra > 0)


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_wanted_documents_are_met_exactly(wanted: int, documents: int) -> None:
    copies = copies_of_documents(wanted, documents)
    assert copies.base * documents + copies.extra == wanted


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.integers(1, 500), st.booleans())
def test_wanted_sizes_are_met_as_closely_as_whole_documents_can(sizes: list[int], wanted: int, at_most: bool) -> None:
    copies = copies_of_size(wanted, np.array(sizes), at_most)
    assert copies.base * sum(sizes) + sum(sizes[: copies.extra]) == oracle.closest(wanted, sizes, at_most)
    assert 0 <= copies.extra < len(sizes)


def test_documents_without_size_are_not_taken_for_nothing() -> None:
    assert copies_of_size(5, np.array([0, 5, 0, 5]), at_most=True) == Copies(0, 2)
    assert copies_of_size(1, np.array([0, 5, 0, 5]), at_most=True) == Copies(0, 0)
