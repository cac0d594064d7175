import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.packing import PackPlan, plan
from seqmill.packing.windows import OPEN_SHARE

from .oracle import Bin, fragments_of, rows_of, tokens_in, windowed


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[int], int, int]:
    capacity = draw(st.sampled_from([1, 2, 7, 8, 9, 13, 63, 64, 65, 127, 128, 129, 1023, 1025]))
    edges = st.sampled_from(
        [0, 1, capacity - 1, capacity, capacity + 1, 2 * capacity, 2 * capacity + 1, 100 * capacity]
    )
    lengths = draw(st.lists(edges | st.integers(0, capacity) | st.integers(0, 1 + capacity // 3), max_size=40))
    return lengths, capacity, draw(st.sampled_from([1, 2, 5, 16, 100]))


def kinds(bins: list[Bin]) -> list[tuple[int, int]]:
    return sorted((one.opened, tokens_in(one.fragments)) for one in bins)


@settings(max_examples=200, deadline=None)
@given(instances(), st.sampled_from(["split", "truncate", "drop"]))
def test_the_rows_that_each_window_closes_are_those_of_the_textbook(
    instance: tuple[list[int], int, int], overflow: str
) -> None:
    """Which of two bins of equal room and age gets a fragment is free; how full the rows are is not."""
    lengths, capacity, window = instance
    packed = plan(lengths, capacity, overflow, algorithm="windowed", window=window)
    rows = rows_of(packed)
    assert sorted(one for row in rows for one in row) == fragments_of(lengths, capacity, overflow)
    expected = windowed(lengths, capacity, overflow, window, capacity // OPEN_SHARE + 1)
    assert len(rows) == sum(map(len, expected))
    begin = 0
    for bins in expected:
        here = rows[begin : begin + len(bins)]
        assert sorted((row[0][0] // window, tokens_in(row)) for row in here) == kinds(bins)
        assert [row[0] for row in here] == sorted(row[0] for row in here)
        assert all(row == sorted(row) for row in here)
        begin += len(bins)


def spans(packed: PackPlan, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last row of every document."""
    row = np.repeat(np.arange(packed.rows), np.diff(packed.row_offsets))
    first, last = np.full(documents, packed.rows), np.full(documents, -1)
    np.minimum.at(first, packed.item, row)
    np.maximum.at(last, packed.item, row)
    return first, last


@pytest.mark.parametrize("window", [1, 10, 64, 1000])
def test_documents_two_windows_apart_never_change_places(window: int) -> None:
    lengths = np.random.default_rng(window).lognormal(4, 1.2, 3000).astype(np.int64)
    packed = plan(lengths, 256, algorithm="windowed", window=window)
    first, last = spans(packed, len(lengths))
    assert np.all(np.maximum.accumulate(last)[: -2 * window] < np.minimum.accumulate(first[::-1])[::-1][2 * window :])
    distances = [row[-1][0] - row[0][0] for row in rows_of(packed)]
    assert window == 1 or window < max(distances) < 2 * window  # and some do go as far as they may


def test_a_longer_window_wastes_less_and_the_whole_corpus_is_the_limit() -> None:
    lengths = np.random.default_rng(1).lognormal(5, 1.1, 20_000).astype(np.int64) + 1
    rows = [plan(lengths, 2048, algorithm="windowed", window=window).rows for window in (10, 100, 1000, 20_000)]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] > 1.02 * rows[2]
    assert rows[3] == plan(lengths, 2048).rows


def test_a_row_with_much_room_waits_for_the_next_window_and_one_with_little_does_not() -> None:
    """Capacity 128: a row stays open from 3 tokens of room on."""
    packed = plan([100, 126, 125, 28, 2, 3, 28, 1], 128, algorithm="windowed", window=3)
    assert [[item for item, _, _ in row] for row in rows_of(packed)] == [[1], [0, 3], [2, 5], [4, 6, 7]]
    later = plan([100, 1, 1, 28], 128, algorithm="windowed", window=1)  # the row of 100 is closed after document 1
    assert [[item for item, _, _ in row] for row in rows_of(later)] == [[0, 1], [2, 3]]


def test_the_seed_changes_nothing() -> None:
    lengths = np.random.default_rng(2).integers(0, 300, 500)
    one, other = (plan(lengths, 128, seed=seed, algorithm="windowed", window=50) for seed in (1, 2))
    assert rows_of(one) == rows_of(other)


def test_a_window_of_few_documents_does_not_look_at_all_lengths_of_a_long_row() -> None:
    capacity = 1 << 24  # looking at all of them in each of 5,000 windows would take a minute
    packed = plan([capacity - 1, 5, 1, 3] * 5000, capacity, algorithm="windowed", window=4)
    assert [tokens_in(row) for row in rows_of(packed)][:3] == [capacity, 16, capacity]
