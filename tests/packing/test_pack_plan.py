from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.packing import PackPlan, load_plan, plan, save_plan
from seqmill.packing.pack_plan import ALGORITHMS, MAX_CAPACITY, OVERFLOWS, WINDOW


def intervals(packed: PackPlan) -> dict[int, list[tuple[int, int]]]:
    """The kept token ranges of every document, in order."""
    found: dict[int, list[tuple[int, int]]] = {}
    for item, start, stop in zip(packed.item.tolist(), packed.start.tolist(), packed.stop.tolist(), strict=True):
        found.setdefault(item, []).append((start, stop))
    return {item: sorted(ranges) for item, ranges in found.items()}


def row_sums(packed: PackPlan) -> list[int]:
    ends = np.concatenate([[0], np.cumsum(packed.stop - packed.start)])[packed.row_offsets]
    return np.diff(ends).tolist()


def expected_intervals(lengths: list[int], capacity: int, overflow: str) -> dict[int, list[tuple[int, int]]]:
    expected = {}
    for item, length in enumerate(lengths):
        if length > capacity and overflow == "drop":
            continue
        end = min(length, capacity) if overflow == "truncate" else length
        if end:
            expected[item] = [(start, min(start + capacity, end)) for start in range(0, end, capacity)]
    return expected


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 1023, 1024, 1025]))
    edges = st.sampled_from(
        [0, 1, capacity - 1, capacity, capacity + 1, 2 * capacity, 2 * capacity + 1, 100 * capacity]
    )
    return draw(st.lists(edges | st.integers(0, 3 * capacity), max_size=60)), capacity


@settings(max_examples=300, deadline=None)
@given(instances(), st.sampled_from(["split", "truncate", "drop"]), st.integers(0, 3))
def test_every_token_is_in_one_row_or_in_the_drop_record(
    instance: tuple[list[int], int], overflow: str, seed: int
) -> None:
    lengths, capacity = instance
    packed = plan(np.array(lengths, np.int64), capacity, overflow, seed)
    assert intervals(packed) == expected_intervals(lengths, capacity, overflow)
    assert packed.tokens == sum(row_sums(packed))
    assert packed.tokens + packed.dropped_tokens == sum(lengths)
    assert all(0 < size <= capacity for size in row_sums(packed))
    too_long = sum(length > capacity for length in lengths)
    assert packed.split_documents == (too_long if overflow == "split" else 0)
    assert packed.truncated_documents == (too_long if overflow == "truncate" else 0)
    assert packed.dropped_documents == (too_long if overflow == "drop" else 0)
    assert packed.empty_documents == lengths.count(0)
    assert packed.documents == len(lengths)
    assert packed.lower_bound <= packed.rows


@pytest.mark.parametrize("capacity", [8191, 8192, 8193])
def test_capacities_around_a_power_of_two_are_packed_alike(capacity: int) -> None:
    """A segment tree over the next power of two once gave twice the rows at 8,193 (trl issue 3887)."""
    lengths = np.random.default_rng(0).lognormal(7.5, 1.0, 3000).astype(np.int64)
    packed = plan(lengths, capacity)
    assert packed.efficiency > 0.99
    assert packed.rows - packed.lower_bound < 0.01 * packed.rows


def test_only_unavoidable_cuts_are_made() -> None:
    lengths = np.random.default_rng(1).integers(0, 40, 1000)
    packed = plan(lengths, 16)
    assert len(packed.item) == int(np.sum(-(-lengths // 16)))


def test_longer_fragments_come_first_in_a_row() -> None:
    packed = plan(np.random.default_rng(2).integers(1, 30, 2000), 64)
    sizes = packed.stop - packed.start
    rows = [sizes[a:b] for a, b in zip(packed.row_offsets[:-1], packed.row_offsets[1:], strict=True)]
    assert max(map(len, rows)) > 2
    assert all(np.all(np.diff(row) <= 0) for row in rows)


def test_the_same_arguments_give_the_same_plan_and_other_seeds_other_orders() -> None:
    lengths = np.random.default_rng(3).integers(1, 100, 5000)
    one, same, other = (
        plan(lengths, 128, seed=1),
        plan(lengths.astype(np.uint16), 128, seed=1),
        plan(lengths, 128, seed=2),
    )
    for name in ("row_offsets", "item", "start", "stop"):
        assert np.array_equal(getattr(one, name), getattr(same, name))
    assert not np.array_equal(one.item, other.item)
    assert sorted(row_sums(one)) == sorted(row_sums(other))


def test_rows_mix_documents_from_distant_places() -> None:
    """A corpus ordered by source: rows and their neighbours hold documents of both halves."""
    count = 20_000
    packed = plan(np.random.default_rng(4).integers(1, 200, count), 1024)
    late = (packed.item >= count // 2).astype(np.int64)
    sizes = np.diff(packed.row_offsets)
    share = np.add.reduceat(late, packed.row_offsets[:-1]) / sizes
    assert np.mean((share > 0) & (share < 1)) > 0.9
    assert abs(np.corrcoef(share[:-1], share[1:])[0, 1]) < 0.1


def test_a_plan_of_an_earlier_version_is_kept() -> None:
    """Golden values: a change here changes the bytes of every packed dataset."""
    packed = plan([5, 3, 3, 3, 0, 20], 8, seed=1)
    assert packed.row_offsets.tolist() == [0, 1, 2, 4, 6, 7]
    assert packed.item.tolist() == [5, 5, 5, 2, 0, 1, 3]
    assert packed.start.tolist() == [0, 8, 16, 0, 0, 0, 0]
    assert packed.stop.tolist() == [8, 16, 20, 3, 5, 3, 3]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_no_tokens_give_no_rows(lengths: list[int]) -> None:
    packed = plan(np.array(lengths, np.int64), 16)
    assert (packed.rows, packed.tokens, packed.lower_bound, packed.efficiency) == (0, 0, 0, 1.0)
    assert packed.row_offsets.tolist() == [0]
    assert packed.empty_documents == len(lengths)


def test_overflow_error_names_the_document() -> None:
    with pytest.raises(UserError, match=r"document 2 has 17 tokens.*capacity 16.*split, truncate or drop"):
        plan([1, 16, 17, 30], 16, "error")
    assert plan([1, 16, 16], 16, "error").rows == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], 0), "capacity of 0 tokens"),
        (([1], MAX_CAPACITY + 1), f"outside 1 to {MAX_CAPACITY}"),
        (([1], 8, "split", 0, "best"), "unknown packing algorithm 'best'; choose one of best-fit-decreasing, windowed"),
        (([1], 8, "split", 0, "concat", 5), "a window of 5 documents is given, but 'concat' has none"),
        (([1], 8, "wrap"), "unknown overflow policy 'wrap'; choose one of split, truncate, drop, error"),
        (([1, -2], 8), "document 1 has length -2"),
        ((np.array([3, 2**63], np.uint64), 8), "document 1 has length 9223372036854775808"),
        (([1.5], 8), "not 1 dimensions of float64"),
        (([[1]], 8), "not 2 dimensions of int64"),
    ],
)
def test_impossible_arguments_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(*arguments)


@pytest.mark.parametrize("overflow", [policy for policy in OVERFLOWS if policy != "error"])
def test_a_saved_plan_is_read_back_whole(tmp_path: Path, overflow: str) -> None:
    packed = plan(np.random.default_rng(5).integers(0, 50, 300), 16, overflow, seed=9)
    save_plan(tmp_path / "plan.arrow", packed)
    loaded = load_plan(tmp_path / "plan.arrow")
    for name, value in asdict(packed).items():
        assert np.array_equal(getattr(loaded, name), value), name
    assert packed.rows > 10


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_plan_names_its_algorithm(tmp_path: Path, algorithm: str) -> None:
    window = 7 if algorithm == "windowed" else None
    packed = plan(np.random.default_rng(5).integers(0, 50, 300), 16, seed=9, algorithm=algorithm, window=window)
    save_plan(tmp_path / "plan.arrow", packed)
    loaded = load_plan(tmp_path / "plan.arrow")
    assert (loaded.algorithm, loaded.window) == (algorithm, window)
    for name, value in asdict(packed).items():
        assert np.array_equal(getattr(loaded, name), value), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 3], [8], [9], [800]])
def test_every_algorithm_takes_what_is_small_or_long(algorithm: str, lengths: list[int]) -> None:
    packed = plan(np.array(lengths, np.int64), 8, algorithm=algorithm)
    assert packed.tokens == sum(row_sums(packed)) == sum(lengths)
    assert packed.rows == packed.lower_bound
    assert packed.split_documents == sum(length > 8 for length in lengths)
    assert packed.window == (WINDOW if algorithm == "windowed" else None)


def test_an_empty_plan_can_be_saved(tmp_path: Path) -> None:
    save_plan(tmp_path / "plan.arrow", plan([0], 4))
    assert load_plan(tmp_path / "plan.arrow").rows == 0
