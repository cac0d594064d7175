"""Which rows all ranks together read in a step: the global order, before it is shared out.

Rows lie in regions, which are shuffled by themselves: one region of all rows, or with a bucket schedule one per bucket.
Without shuffle blocks, an epoch's order of a region is one keyed permutation of its rows, and a step may read from any
shard. With blocks of B shards, the shards of a region are permuted, B after B make a block, the rows of a block are
permuted among themselves, and the blocks follow one after the other:

    B = 2, shards 0 ... 4 of 3 rows each    shards 3 1 | 4 0 | 2    rows 10 4 3 9 11 5 | 1 12 0 14 2 13 | 7 6 8

A step may end in another block than it begins in. All is computed from (seed, epoch, step): nothing is kept between
steps, and only B shards and the B after them are in use.

A step plan (seqmill.packing.step_plan) replaces all of this by a table.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from seqmill.errors import UserError
from seqmill.packing.curriculum import BucketSchedule, Positions
from seqmill.packing.permutation import permutation, permute, round_keys
from seqmill.packing.step_plan import StepPlan

Int64s = npt.NDArray[np.int64]


class Use(NamedTuple):
    """The shards of the region that a step reads from."""

    region: int  # its first row
    now: tuple[int, ...]  # shards that this step and those around it read
    ahead: tuple[int, ...]  # shards that come next


class _Blocks(NamedTuple):
    """The order of the shards of a region in one epoch; a shard may be in it with some of its rows alone."""

    shard: Int64s  # [shards]
    first_row: Int64s  # [shards], of the shard's rows in this region
    ends: Int64s  # [shards], rows up to and with each shard, in this order
    begin: Int64s  # [blocks + 1], where each block begins, in rows

    def at(self, position: int) -> int:
        """The block of a position in the region."""
        return int(np.searchsorted(self.begin, position, "right")) - 1


@dataclass(frozen=True, eq=False)
class ShuffledOrder:
    """Rows by a keyed permutation, by one per block of shards, or as they are stored."""

    first_rows: tuple[int, ...]  # of every shard, and the number of rows
    batch_rows: int  # of a step; a schedule has its own
    seed: int
    shuffle: bool  # False: the stored order in every epoch
    shuffle_shards: int | None  # B; None: one block
    schedule: BucketSchedule | None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.schedule.steps if self.schedule is not None else -(-self.first_rows[-1] // self.batch_rows)

    def rows(self, epoch: int, step: int) -> Int64s:
        """The rows of a step of an epoch, int64[n]."""
        first, last, begin, end = self._positions(step)
        if not self.shuffle:
            return np.arange(begin, end)
        if self.shuffle_shards is None:
            return permuted_rows(begin, end, first, last, _keys("epoch", self.seed, epoch, *([first] if first else [])))
        blocks = self._blocks(epoch, first, last)
        row_ids = np.empty(end - begin, np.int64)
        here, stop = begin - first, end - first
        while here < stop:
            block = blocks.at(here)
            low, high = int(blocks.begin[block]), int(blocks.begin[block + 1])
            until = min(stop, high)
            keys = _keys("block", self.seed, epoch, first, block)
            out = row_ids[here + first - begin : until + first - begin]
            _block_rows(here, until, low, high, keys, blocks.ends, blocks.first_row, out)
            here = until
        return row_ids

    def use(self, epoch: int, step: int, epochs: int | None = None) -> Use:
        """The shards of the blocks of a step, and those of the block after them, which may be of the next epoch.

        Args:
            epochs: of the run; None for no end.
        """
        first, last, begin, end = self._positions(step)
        blocks = self._blocks(epoch, first, last)
        low, high = blocks.at(begin - first), blocks.at(end - first - 1)
        now = self._shards(blocks, low, high + 1)
        if len(blocks.begin) == 2:
            return Use(first, now, ())
        if low < high:  # the first one is let go after this step; then there is room for another
            return Use(first, now, ())
        if high + 2 < len(blocks.begin):
            return Use(first, now, self._shards(blocks, high + 1, high + 2))
        if epoch + 1 == epochs:
            return Use(first, now, ())
        return Use(first, now, self._shards(self._blocks(epoch + 1, first, last), 0, 1))

    def most_bytes(self, shard_bytes: Int64s, steps: int = 1) -> int:
        """Bytes of the shards that can be in use at one time, at most: two blocks of every region, or as many as the
        rows of this many steps reach over."""
        total = 0
        for first, last in self._regions():
            blocks = self._blocks(0, first, last)
            largest = np.sort(shard_bytes[blocks.shard])[::-1]
            size = self._block_shards
            least = np.sort(np.diff(blocks.ends, prepend=0))[:size].sum()
            reached = 1 + -(-steps * self._step_rows(first) // max(1, int(least)))
            total += int(largest[: size * max(2, reached)].sum())
        return min(total, int(shard_bytes.sum()))

    def _positions(self, step: int) -> Positions:
        """The rows of a step of an epoch, as positions in the order of their region."""
        if self.schedule is not None:
            return self.schedule.positions(step)
        begin, rows = step * self.batch_rows, self.first_rows[-1]
        return Positions(0, rows, begin, min(begin + self.batch_rows, rows))

    def _regions(self) -> list[tuple[int, int]]:
        if self.schedule is None:
            return [(0, self.first_rows[-1])]
        ends = np.cumsum(self.schedule.settings.rows).tolist()
        return [(first, last) for first, last in zip([0, *ends], ends, strict=False) if first < last]

    def _step_rows(self, first: int) -> int:
        if self.schedule is None:
            return self.batch_rows
        settings = self.schedule.settings
        bounds = np.cumsum(settings.rows)
        return settings.step_tokens // (settings.shortest << int(np.searchsorted(bounds, first, "right")))

    @property
    def _block_shards(self) -> int:
        """Shards of a block: in stored order every shard is one, without blocks all shards are."""
        return (self.shuffle_shards or len(self.first_rows)) if self.shuffle else 1

    def _blocks(self, epoch: int, first: int, last: int) -> _Blocks:
        has_order = self.shuffle and self.shuffle_shards is not None
        return _make_blocks(self, epoch if has_order else -1, first, last)

    @staticmethod
    def _shards(blocks: _Blocks, begin: int, end: int) -> tuple[int, ...]:
        low, high = np.searchsorted(blocks.ends, blocks.begin[[begin, end]], "right")
        return tuple(blocks.shard[low:high].tolist())


class PlannedRows(NamedTuple):
    """What a rank reads in a step of a plan."""

    mine: Int64s  # row ids, in the order of their slots
    all: Int64s  # row ids of all ranks, each once
    slot: Int64s  # [len(mine)]
    sharers: npt.NDArray[np.int32]  # [len(mine), 2], first rank that the row is shared by, and their number
    slots: int  # of the rank with most


@dataclass(frozen=True, eq=False)
class PlannedOrder:
    """Rows by a step plan: the first epoch as planned, the steps of later ones in an order by the seed."""

    plan: StepPlan
    first_rows: tuple[int, ...]  # of every shard, and the number of rows
    seed: int
    shuffle: bool  # False: all epochs as planned

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.plan.steps

    def rows(self, epoch: int, step: int, rank: int) -> PlannedRows:
        """The rows of a step of an epoch."""
        if self.shuffle and epoch:
            step = int(permute(step, self.steps, _keys("plan steps", self.seed, epoch)))
        low, high = np.searchsorted(self.plan.step, np.array([step, step + 1], self.plan.step.dtype))
        row_id, slot = self.plan.row_id[low:high], self.plan.slot[low:high]
        leader, group = self.plan.rank[low:high].astype(np.int32), self.plan.group[low:high].astype(np.int32)
        is_mine = (leader <= rank) & (rank < leader + group)
        return PlannedRows(
            mine=np.ascontiguousarray(row_id[is_mine], np.int64),
            all=np.ascontiguousarray(row_id, np.int64),
            slot=slot[is_mine].astype(np.int64),
            sharers=np.column_stack([leader[is_mine], group[is_mine]]),
            slots=int(slot.max()) + 1,
        )

    def use(self, epoch: int, step: int, epochs: int | None = None) -> Use:
        """All shards at any step, as any step may read from any; arguments as of ShuffledOrder.use."""
        del epoch, step, epochs
        return self._all_shards

    @cached_property
    def _all_shards(self) -> Use:
        """Those that the first epoch needs first come first."""
        shard = np.searchsorted(np.array(self.first_rows), self.plan.row_id, "right") - 1
        first_place = np.full(len(self.first_rows) - 1, len(shard))
        first_place[shard[::-1]] = np.arange(len(shard))[::-1]  # of several places, the last one stays
        return Use(0, tuple(np.argsort(first_place, kind="stable").tolist()), ())


def check_plan(plan: StepPlan, fingerprint: str, rows: int, ranks: int, folder: object) -> None:
    """Whether a plan is of a dataset and of this many ranks.

    Raises:
        UserError: it is not.
    """
    if plan.dataset != fingerprint:
        raise UserError(
            f"the step plan is of the dataset {plan.dataset}, {folder} is {fingerprint}; make one with seqmill plan "
            "from this folder"
        )
    if plan.settings.ranks != ranks:
        raise UserError(
            f"the step plan shares out rows among {plan.settings.ranks} ranks, world_size is {ranks}: plan again for "
            f"{ranks} ranks and begin at a new epoch, or go on with {plan.settings.ranks}"
        )
    if len(plan.row_id) != rows or (rows and not 0 <= int(plan.row_id.min()) <= int(plan.row_id.max()) < rows):
        raise UserError(f"the step plan has {len(plan.row_id)} rows, {folder} has {rows}; plan again")


@lru_cache(maxsize=64)
def _keys(*name: int | str) -> npt.NDArray[np.uint64]:
    return round_keys(*name)


@lru_cache(maxsize=64)
def _make_blocks(order: ShuffledOrder, epoch: int, first: int, last: int) -> _Blocks:
    """The shards of the rows `first` to `last` in the order of an epoch, or as stored for epoch -1."""
    bounds = np.clip(np.array(order.first_rows, np.int64), first, last)
    shard = np.flatnonzero(np.diff(bounds))
    if epoch >= 0:
        shard = shard[permutation(len(shard), round_keys("shards", order.seed, epoch, first))]
    ends = np.cumsum(bounds[shard + 1] - bounds[shard])
    size = order._block_shards
    begin = np.concatenate([[0], ends[size - 1 :: size], [ends[-1]]])
    return _Blocks(shard, bounds[shard], ends, np.unique(begin))


@njit(cache=True, nogil=True)
def permuted_rows(begin: int, end: int, first: int, last: int, keys: npt.NDArray[np.uint64]) -> Int64s:
    """Positions `begin` to `end` of the permutation with these keys of the rows `first` to `last`: int64[end - begin],
    in the order of the rows where there are no keys."""
    row_ids = np.empty(end - begin, np.int64)
    for index in range(end - begin):
        position = begin + index
        row_ids[index] = first + permute(position - first, last - first, keys) if keys.size else position
    return row_ids


@njit(cache=True, nogil=True)
def _block_rows(
    begin: int,
    end: int,
    low: int,
    high: int,
    keys: npt.NDArray[np.uint64],
    ends: Int64s,
    first_row: Int64s,
    out: Int64s,
) -> None:
    """Positions `begin` to `end` of a region, which lie in its block of the positions `low` to `high`."""
    for index in range(end - begin):
        position = low + permute(begin + index - low, high - low, keys)
        shard = np.searchsorted(ends, position, "right")
        out[index] = first_row[shard] + position - (ends[shard - 1] if shard else 0)
