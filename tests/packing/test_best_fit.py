from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.packing.best_fit import best_fit_decreasing


def naive_best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """Textbook: longest item first, into the bin where the least room is left."""
    bins: list[list[int]] = []
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index in range(len(bins)) if room[index] >= length]
        if fitting:
            index = min(fitting, key=lambda candidate: room[candidate])
        else:
            index = len(bins)
            bins.append([])
            room.append(capacity)
        bins[index].append(length)
        room[index] -= length
    return bins


def bins_of(lengths: list[int], capacity: int) -> list[list[int]]:
    """The bins that the events describe, each event played back by hand."""
    counts = np.bincount(lengths, minlength=capacity + 1).astype(np.int64)
    events, groups, count = best_fit_decreasing(counts, capacity)
    bins: list[list[int]] = [[] for _ in range(count)]
    taken: Counter[int] = Counter()
    last = [-1] * count
    for number, event in enumerate(events):
        assert event["queue"] == taken[event["length"]]
        taken[int(event["length"])] += int(event["bins"] * event["each"])
        for index in range(event["first_bin"], event["first_bin"] + event["bins"]):
            assert last[index] == event["parent"]
            last[index] = number
            bins[index] += [int(event["length"])] * int(event["each"])
            assert len(bins[index]) == event["total"]
    assert taken == Counter(lengths)
    assert last == [group["event"] for group in groups for _ in range(group["bins"])]
    assert [index for group in groups for index in range(group["first_bin"], group["first_bin"] + group["bins"])] == [
        *range(count)
    ]
    return bins


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[int], int]:
    capacity = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 13, 31, 63, 64, 65, 100, 127, 128, 129, 4095, 4096, 4097]))
    longest = draw(st.integers(1, capacity))
    return draw(st.lists(st.integers(1, longest), max_size=120)), capacity


@settings(max_examples=400, deadline=None)
@given(instances())
def test_residuals_are_those_of_the_textbook_algorithm(instance: tuple[list[int], int]) -> None:
    lengths, capacity = instance
    ours = bins_of(lengths, capacity)
    theirs = naive_best_fit_decreasing(lengths, capacity)
    assert sorted(capacity - sum(one) for one in ours) == sorted(capacity - sum(one) for one in theirs)
    assert all(0 < sum(one) <= capacity for one in ours)


@pytest.mark.parametrize("capacity", [2047, 2048, 2049])
def test_residuals_agree_on_web_like_lengths(capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    lengths = np.clip(rng.lognormal(6.0, 1.1, 2000), 1, capacity).astype(np.int64).tolist()
    ours, theirs = bins_of(lengths, capacity), naive_best_fit_decreasing(lengths, capacity)
    assert sorted(map(sum, ours)) == sorted(map(sum, theirs))
    assert Counter(tuple(sorted(one)) for one in ours).total() == len(theirs)


def test_the_example_of_the_module() -> None:
    assert bins_of([5, 3, 3, 3], 8) == [[5, 3], [3, 3]]


def test_the_example_of_olmo_core() -> None:
    """Documents 8, 6, 6, 4, 3 go to bins 0, 1, 2, 3, 3 (golden test of its best-fit packer)."""
    assert bins_of([8, 6, 6, 4, 3], 8) == [[8], [6], [6], [4, 3]]


def test_the_number_of_events_does_not_grow_with_the_number_of_items() -> None:
    rng = np.random.default_rng(0)
    few, many = (
        best_fit_decreasing(
            np.bincount(np.clip(rng.lognormal(6.0, 1.1, count), 1, 2048).astype(np.int64), minlength=2049), 2048
        )[0].size
        for count in (20_000, 500_000)
    )
    assert 2000 < many < 2 * few


def test_a_large_sparse_capacity_finds_distant_residuals() -> None:
    """Residuals in other words of the bit set, in the summary's next word and in the same one."""
    capacity = (1 << 18) + 1
    lengths = [capacity - 5, capacity - 64, capacity - 8000, capacity // 2 + 1, 7999, 5000, 64, 6, 5, 1]
    assert sorted(map(sum, bins_of(lengths, capacity))) == sorted(
        map(sum, naive_best_fit_decreasing(lengths, capacity))
    )
