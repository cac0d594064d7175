from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.packing import Buckets, make_schedule
from seqmill.packing.order import ShuffledOrder
from seqmill.packing.permutation import permutation, round_keys


def order_of(
    shard_rows: list[int], batch_rows: int = 4, seed: int = 5, blocks: int | None = None, **options: Any
) -> Any:
    first_rows = tuple(np.cumsum([0, *shard_rows]).tolist())
    options = {"shuffle": True, "schedule": None, **options}
    return ShuffledOrder(first_rows, batch_rows, seed, shuffle_shards=blocks, **options)


def epoch_of(order: ShuffledOrder, epoch: int) -> list[int]:
    return [row for step in range(order.steps) for row in order.rows(epoch, step).tolist()]


def slow_blocks(shard_rows: list[int], seed: int, epoch: int, blocks: int, first: int = 0) -> list[int]:
    """The docstring of seqmill.packing.order, word by word; `first` is the number of rows before these shards."""
    bounds = list(pairwise((first + np.cumsum([0, *shard_rows])).tolist()))
    shards = [list(range(begin, end)) for begin, end in bounds if begin < end]
    shards = [shards[i] for i in permutation(len(shards), round_keys("shards", seed, epoch, first))]
    found = []
    for number, begin in enumerate(range(0, len(shards), blocks)):
        rows = [row for shard in shards[begin : begin + blocks] for row in shard]
        found += [rows[i] for i in permutation(len(rows), round_keys("block", seed, epoch, first, number))]
    return found


@given(
    shard_rows=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any),
    blocks=st.integers(1, 10),
    batch_rows=st.integers(1, 30),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 3),
)
def test_shards_are_shuffled_and_then_the_rows_of_each_block(
    shard_rows: list[int], blocks: int, batch_rows: int, seed: int, epoch: int
) -> None:
    order = order_of(shard_rows, batch_rows, seed, blocks)
    assert epoch_of(order, epoch) == slow_blocks(shard_rows, seed, epoch, blocks)
    assert [len(order.rows(epoch, step)) for step in range(order.steps - 1)] == [batch_rows] * (order.steps - 1)


@given(
    shard_rows=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any),
    blocks=st.one_of(st.none(), st.integers(1, 10)),
    batch_rows=st.integers(1, 30),
    shuffle=st.booleans(),
)
def test_what_is_in_use_has_the_rows_and_fits_the_bound(
    shard_rows: list[int], blocks: int | None, batch_rows: int, shuffle: bool
) -> None:
    order = order_of(shard_rows, batch_rows, 1, blocks if shuffle else None, shuffle=shuffle)
    first_rows, sizes = np.array(order.first_rows), 100 + 7 * np.arange(len(shard_rows))
    before: set[int] = set()
    for epoch in range(2):
        for step in range(order.steps):
            use = order.use(epoch, step)
            read = set((np.searchsorted(first_rows, order.rows(epoch, step), "right") - 1).tolist())
            assert read <= set(use.now)
            assert sum(sizes[shard] for shard in {*use.now, *use.ahead}) <= order.most_bytes(sizes)
            assert batch_rows > 1 or not before or set(use.now) <= before, "shards that were not told of before"
            before = {*use.now, *use.ahead}


def test_the_order_of_a_seed_never_changes() -> None:
    """Saved positions name rows: these lists are those of the first release."""
    order = order_of([10, 13])
    assert epoch_of(order, 0) == GOLDEN[0]
    assert epoch_of(order, 1) == GOLDEN[1]
    assert epoch_of(order_of([3, 3, 3, 3, 3], blocks=2), 1) == GOLDEN[2]
    assert epoch_of(order_of([10, 13], shuffle=False), 1) == list(range(23))


@pytest.mark.parametrize("blocks", [None, 1, 2])
@pytest.mark.parametrize("shard_rows", [[10, 6, 8, 4], [7, 7, 7, 7]])  # along the buckets, and across
def test_with_a_schedule_every_bucket_has_its_own_order(blocks: int | None, shard_rows: list[int]) -> None:
    buckets = Buckets(4, "longest", "carry_to_packer", (16, 12), 0, 0)
    schedule = make_schedule(buckets, 16, "uniform", 1)
    order = order_of(shard_rows, blocks=blocks, schedule=schedule)
    assert order.steps == schedule.steps
    found: dict[int, list[int]] = {2: [], 3: []}
    for step in range(order.steps):
        found[int(schedule.bucket[step])] += order.rows(1, step).tolist()
    for bucket, first, last in ((2, 0, 16), (3, 16, 28)):
        bounds = np.clip(np.cumsum([0, *shard_rows]), first, last)
        if blocks is None:
            name = ("epoch", 5, 1, *([first] if first else []))
            expected = (first + permutation(last - first, round_keys(*name))).tolist()
        else:
            expected = slow_blocks(np.diff(bounds).tolist(), 5, 1, blocks, first)
        assert found[bucket] == expected


def test_a_late_step_costs_what_the_first_one_does() -> None:
    order = order_of([1000] * 10_000, blocks=16)
    epoch = [order.rows(0, 2_499_999), order.rows(0, 0)]
    assert len(set(epoch[0].tolist()) | set(epoch[1].tolist())) == 8


GOLDEN = [
    [1, 11, 7, 4, 10, 18, 21, 3, 16, 2, 6, 13, 20, 17, 8, 22, 12, 5, 9, 19, 14, 0, 15],
    [16, 4, 7, 8, 21, 2, 0, 13, 14, 12, 19, 18, 15, 1, 22, 9, 20, 3, 10, 11, 17, 5, 6],
    [1, 3, 2, 0, 4, 5, 9, 8, 11, 7, 6, 10, 14, 13, 12],
]
