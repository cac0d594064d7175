from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.packing.shares import Shares, apportion, exact_weights

WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def carried(weights: list[int], block_rows: int, blocks: int) -> list[list[int]]:
    """Slow: what every block holds, by largest remainder of its quotas and of what was rounded off before it."""
    owed = [Fraction(0)] * len(weights)
    counts = []
    for _ in range(blocks):
        owed = [debt + Fraction(weight * block_rows, sum(weights)) for debt, weight in zip(owed, weights, strict=True)]
        block = [int(quota // 1) for quota in owed]
        for _ in range(block_rows - sum(block)):
            remainders = [quota - count for quota, count in zip(owed, block, strict=True)]
            block[remainders.index(max(remainders))] += 1
        owed = [quota - count for quota, count in zip(owed, block, strict=True)]
        counts.append(block)
    return counts


def sources_of(shares: Shares, rows: int) -> list[int]:
    """The source of every row of some blocks, from the counts before each row."""
    borders = range(0, rows, shares.block_rows)
    counts = np.hstack(
        [shares.before(range(row, row + shares.block_rows)) for row in borders] + [shares.before([rows])]
    )
    steps = np.diff(counts, axis=1)
    assert (steps.sum(axis=0) == 1).all()
    assert (steps >= 0).all()
    return steps.argmax(axis=0).tolist()


@given(WEIGHTS, st.integers(0, 30))
def test_blocks_hold_what_carrying_the_rounding_errors_gives_them(weights: list[int], extra: int) -> None:
    block_rows = -(-sum(weights) // min(weights)) + extra
    blocks = carried(weights, block_rows, 50)
    borders = [apportion(tuple(weights), block * block_rows) for block in range(51)]
    assert [np.subtract(after, before).tolist() for before, after in pairwise(borders)] == blocks
    assert min(min(block) for block in blocks) >= 0
    for block, counts in enumerate(borders):
        rows = block * block_rows
        assert sum(counts) == rows
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count - Fraction(weight * rows, sum(weights))) < 1


@settings(max_examples=40)
@given(WEIGHTS, st.integers(0, 5), st.integers(0, 2**63 - 1))
def test_every_row_has_one_source_and_every_block_its_counts(weights: list[int], extra: int, seed: int) -> None:
    block_rows = -(-sum(weights) // min(weights)) + extra
    shares = Shares(tuple(weights), block_rows, seed)
    order = sources_of(shares, 3 * block_rows)
    for block in range(4):
        counts = np.bincount(order[: block * block_rows], minlength=len(weights))
        assert tuple(counts.tolist()) == apportion(tuple(weights), block * block_rows)


@pytest.mark.parametrize(("weights", "block_rows"), [((1,), 4), ((3, 1), 8), ((1, 999), 1000), ((5, 3, 2), 768)])
def test_places_are_found_as_counting_finds_them(weights: tuple[int, ...], block_rows: int) -> None:
    """Also behind the first of the chunks in which a long block is counted."""
    shares = Shares(weights, block_rows, seed=3)
    order = sources_of(shares, 2 * block_rows)
    for source in range(len(weights)):
        places = np.flatnonzero(np.array(order) == source)
        assert [shares.rows_until(source, count + 1) for count in range(len(places))] == (places + 1).tolist()
    ask = [block_rows + 1, block_rows + 2, block_rows + block_rows // 2, 2 * block_rows]
    expected = [np.bincount(order[:row], minlength=len(weights)).tolist() for row in ask]
    assert np.transpose(shares.before(ask)).tolist() == expected


def test_blocks_differ_in_order_and_seeds_do_too() -> None:
    order = sources_of(Shares((3, 1), 64, seed=1), 128)
    assert order[:64] != order[64:]
    assert order != sources_of(Shares((3, 1), 64, seed=2), 128)
    assert order == sources_of(Shares((3, 1), 64, seed=1), 128)


def test_the_smaller_source_stands_in_any_place_of_a_block() -> None:
    order = sources_of(Shares((7, 1), 8, seed=0), 8 * 400)
    places = np.bincount(np.flatnonzero(np.array(order) == 1) % 8, minlength=8)
    assert places.min() > 20  # of 50 expected


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ([3, 1], (3, 1)),
        ([6, 2], (3, 1)),
        ([0.7, 0.3], (7, 3)),
        ([0.1, 0.2, 0.3], (1, 2, 3)),
        ([1e-3, 1], (1, 1000)),
        ([np.float64(0.75), np.int64(1)], (3, 4)),
        ([10**30], (1,)),
    ],
)
def test_weights_are_taken_as_they_are_written(weights: list[float], whole: tuple[int, ...]) -> None:
    assert exact_weights(weights) == whole


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_that_mean_nothing_are_refused(weight: float) -> None:
    with pytest.raises(UserError, match=r"the weight .* is no positive number"):
        exact_weights([1, weight])


def test_places_late_in_a_run_are_found_at_once() -> None:
    shares = Shares(exact_weights([0.123456789, 0.876543211]), 16, seed=0)
    row = 16 * 10**12
    (first,), (second,) = shares.before([row])
    assert first + second == row
    assert abs(first - row * Fraction(123456789, 10**9)) < 1
    assert row <= shares.rows_until(0, first + 1) <= row + 32
