import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.packing import plan

from .oracle import concatenation, first_fit, rows_of, tokens_in


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 31]))
    edges = st.sampled_from([0, 1, capacity - 1, capacity, capacity + 1, 2 * capacity, 100 * capacity])
    return draw(st.lists(edges | st.integers(0, 1 + capacity) | st.integers(0, 3 * capacity), max_size=30)), capacity


@settings(max_examples=150, deadline=None)
@given(instances(), st.integers(0, 3))
def test_concatenation_is_that_of_the_tokens(instance: tuple[list[int], int], seed: int) -> None:
    lengths, capacity = instance
    packed = plan(lengths, capacity, seed=seed, algorithm="concat")
    rows = rows_of(packed)
    assert rows == concatenation(lengths, capacity)
    assert all(tokens_in(row) == capacity for row in rows[:-1])
    assert packed.rows == packed.lower_bound
    pieces = [item for row in rows for item, _, _ in row]
    assert packed.split_documents == sum(pieces.count(item) > 1 for item in set(pieces))
    assert packed.tokens == sum(lengths)
    assert packed.empty_documents == lengths.count(0)


@settings(max_examples=150, deadline=None)
@given(instances(), st.sampled_from(["split", "truncate", "drop"]))
def test_first_fit_is_that_of_the_textbook(instance: tuple[list[int], int], overflow: str) -> None:
    lengths, capacity = instance
    packed = plan(lengths, capacity, overflow, algorithm="first-fit")
    assert rows_of(packed) == first_fit(lengths, capacity, overflow)
    assert packed.tokens + packed.dropped_tokens == sum(lengths)


def test_first_fit_needs_more_rows_than_best_fit_decreasing() -> None:
    lengths = np.random.default_rng(0).integers(1, 700, 5000)
    best, first = (plan(lengths, 1000, algorithm=name).rows for name in ("best-fit-decreasing", "first-fit"))
    assert best < first < 1.7 * best


@pytest.mark.parametrize("overflow", ["truncate", "drop", "error"])
def test_concatenation_has_no_other_policy(overflow: str) -> None:
    with pytest.raises(UserError, match=f"overflow '{overflow}' with 'concat': it cuts documents at the ends of rows"):
        plan([1], 8, overflow, algorithm="concat")
