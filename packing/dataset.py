"""Packed rows as torch batches, in an order that ranks, workers and restarts cannot change.

The global order comes first: each epoch is a keyed permutation of the row numbers (seqmill.packing.permutation: no
table, constant time per position), and global step t is its positions t * batch_rows to (t + 1) * batch_rows. Only
then is a step divided: rank r reads a contiguous part of it, worker w of n reads steps w, w + n, ... of its rank.
A position is therefore one integer, the global step, and means the same for any number of ranks and workers.

With a bucket schedule (seqmill.packing.curriculum) a step reads rows of one bucket, which are permuted among
themselves; all else is the same.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from seqmill.errors import UserError
from seqmill.packing.buckets import Buckets
from seqmill.packing.curriculum import BucketSchedule, Positions
from seqmill.packing.permutation import round_keys
from seqmill.packing.rows import PackedRows, Step

Batch = dict[str, Any]


class PackedDataset(IterableDataset[Batch]):
    """The steps of a training run over a packed folder, for one rank.

    Every item is one step of this rank: T tokens of its rows, one after the other, in n segments. There is no
    padding, and the last step of an epoch is short rather than dropped; a rank may get no rows in it (T = 0).

        input_ids           int64[T]
        targets             int64[T], already shifted: the token that follows in the same document, -100 at its end
        position_ids        int64[T], from 0 in every segment
        cu_seqlens          int32[n + 1], segment bounds in tokens, from 0 to T
        max_seqlen          int, longest segment
        n_loss_tokens       int, targets of this rank that are not -100
        global_loss_tokens  int, the same of all ranks in this step: divide the summed loss by it
        row_ids             int64[rows]
        step                int, counted from 0 over all epochs
        is_repeat           bool[n], per segment; only where the packed rows have this column

    For worker processes use `DataLoader(dataset, batch_size=None, num_workers=n)`. They have copies of the dataset:
    the one in the main process does not see how far they are, so take the state with `state_at(batch["step"] + 1)`.

    Every `iter()` begins at the loaded state, or at the beginning where none was loaded.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        batch_rows: int = 8,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = 1,
        shuffle: bool = True,
        verify: bool = False,
        schedule: BucketSchedule | None = None,
    ) -> None:
        """Open a finished packed folder.

        Args:
            batch_rows: rows per global step, over all ranks; with a schedule, that tells.
            seed: of the order of the rows; every epoch has its own order.
            epochs: passes over the data, or None for no end.
            shuffle: False reads the rows in stored order in every epoch.
            verify: compare every row with its hash when it is read.
            schedule: the bucket of every step of an epoch, for a folder with buckets:
                `load_schedule(folder / "schedule.arrow")`, or another one by `make_schedule`.

        Raises:
            UserError: the folder cannot be read, an argument is out of its range, the schedule is of other rows, or
                its steps cannot be divided evenly among the ranks.
        """
        super().__init__()
        self.path = Path(path)
        self.batch_rows = _at_least_one("batch_rows", batch_rows)
        self.world_size = _at_least_one("world_size", world_size)
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of {world_size} ranks; ranks count from 0 to world_size - 1")
        self.rank = rank
        self.epochs = None if epochs is None else _at_least_one("epochs", epochs)
        self.seed = seed
        self.shuffle = shuffle
        self.verify = verify
        self._rows = PackedRows(self.path)
        if not self._rows.rows:
            raise UserError(f"{self.path} has no rows; there is nothing to train on, look at its drops in the manifest")
        self.schedule = schedule
        if schedule is not None:
            _check_schedule(schedule, self._rows, world_size)
        self._first_step = 0  # where the next iterator begins
        self._next_step = 0  # where the latest iterator is

    def __len__(self) -> int:
        """Steps per epoch."""
        if self.schedule is not None:
            return self.schedule.steps
        return -(-self._rows.rows // self.batch_rows)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        workers, offset = (worker.num_workers, worker.id) if worker else (1, 0)
        self._next_step = self._first_step
        end = None if self.epochs is None else self.epochs * len(self)
        # Worker w of n gives every n-th item of the loader: counting from the first step keeps the order at a resume.
        step = self._first_step + offset
        while end is None or step < end:
            batch = self.batch_at(step)
            self._next_step = step + workers
            yield batch
            step += workers

    def batch_at(self, step: int) -> Batch:
        """This rank's item of a global step, in constant time."""
        epoch, within = divmod(step, len(self))
        first, last, begin, end = self._positions(within)
        mine = slice(
            begin + (end - begin) * self.rank // self.world_size,
            begin + (end - begin) * (self.rank + 1) // self.world_size,
        )
        keys = _epoch_keys(self.seed, epoch, first) if self.shuffle else None
        return {**self._batch(self._rows.step(begin, end, mine, keys, (first, last))), "step": step}

    def _positions(self, within: int) -> Positions:
        """The rows of a step of an epoch, over all ranks."""
        if self.schedule is not None:
            return self.schedule.positions(within)
        begin = within * self.batch_rows
        return Positions(0, self._rows.rows, begin, min(begin + self.batch_rows, self._rows.rows))

    def row(self, index: int) -> Batch:
        """One row by its id: the entries of a batch but for "step", with doc_id and doc_offset int64[n]."""
        if not 0 <= index < self._rows.rows:
            raise IndexError(f"row {index} of a dataset of {self._rows.rows} rows")
        stored = self._rows.row(index)
        provenance = {name: torch.from_numpy(stored[name].astype(np.int64)) for name in ("doc_id", "doc_offset")}
        return {**self._batch(self._rows.step(index, index + 1, slice(index, index + 1))), **provenance}

    def _batch(self, step: Step) -> Batch:
        if self.verify:
            self._rows.verify(step.row_ids)
        input_ids, targets, position_ids = torch.from_numpy(step.ids_targets_positions).unbind()
        return {
            "input_ids": input_ids,
            "targets": targets,
            "position_ids": position_ids,
            "cu_seqlens": torch.from_numpy(step.cu_seqlens),
            "max_seqlen": step.max_seqlen,
            "n_loss_tokens": step.n_loss_tokens,
            "global_loss_tokens": step.global_loss_tokens,
            "row_ids": torch.from_numpy(step.row_ids),
            **({} if step.is_repeat is None else {"is_repeat": torch.from_numpy(step.is_repeat)}),
        }

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch of the latest iterator in this process, as JSON of under 300 bytes."""
        return self.state_at(self._next_step)

    def state_at(self, step: int) -> dict[str, Any]:
        """The state in which global step `step` is next: the same for all ranks, whatever their number."""
        return {
            "fingerprint": self._rows.fingerprint,
            "seed": self.seed,
            **({"batch_rows": self.batch_rows} if self.schedule is None else {"schedule": self.schedule.fingerprint}),
            "shuffle": self.shuffle,
            "epoch": step // len(self),
            "step": step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a state; the number of ranks, workers and epochs may differ from the saved run's.

        Raises:
            UserError: the state is of another dataset, seed or division into steps, so that its position means
                something else here.
        """
        expected = self.state_at(0)
        missing = sorted(expected.keys() - state.keys())
        if missing:
            raise UserError(
                f"the dataset state {json.dumps(state)[:300]} has no {missing[0]!r}; pass what state_dict() gave"
            )
        for name in expected:
            if name in ("epoch", "step"):  # a position, checked below
                continue
            if state[name] != expected[name]:
                raise UserError(
                    f"the dataset state has {name} {state[name]!r}, this dataset {expected[name]!r}: its position "
                    f"would name other rows; open the dataset with the saved {name}, or start without the state"
                )
        if state["step"] < 0 or state["epoch"] != state["step"] // len(self):
            raise UserError(
                f"the dataset state is at step {state['step']} of epoch {state['epoch']}, but an epoch has "
                f"{len(self)} steps; pass what state_dict() gave"
            )
        self._first_step = self._next_step = state["step"]

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped shards: another process maps them by itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = PackedRows(self.path)


@lru_cache(maxsize=64)
def _epoch_keys(seed: int, epoch: int, first_row: int) -> npt.NDArray[np.uint64]:
    """Of the order of the rows from `first_row` on: of all, or of a bucket's."""
    return round_keys("epoch", seed, epoch, *([first_row] if first_row else []))


def _check_schedule(schedule: BucketSchedule, rows: PackedRows, ranks: int) -> None:
    """Whether a schedule is of these rows and can be shared by the ranks."""
    entry = rows.manifest["pack"].get("buckets")
    buckets = Buckets.of(entry) if entry else None
    wanted = schedule.settings
    if buckets is None or (buckets.shortest, buckets.rows) != (wanted.shortest, wanted.rows):
        found = f"buckets from {buckets.shortest} with rows {buckets.rows}" if buckets else "no buckets"
        raise UserError(
            f"the schedule is of buckets from {wanted.shortest} with rows {wanted.rows}, {rows.folder} has {found}; "
            "make the schedule from this folder's manifest"
        )
    schedule.check_ranks(ranks)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise UserError(f"{name} is {value}, but there must be at least 1; choose a larger one")
    return value
