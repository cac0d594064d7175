"""Packed rows as torch batches, in an order that ranks, workers and restarts cannot change.

The global order comes first: the rows of global step t over all ranks (seqmill.packing.order: a keyed permutation
without a table, in blocks of shards where these are far away, or a plan). Only then is a step divided: rank r reads a
contiguous part of it, or what the plan says. A position is therefore one integer, the global step, and means the same
for any number of ranks and workers (seqmill.packing.steps).

All ranks draw from the same block of shards, so that each knows the targets of the others' rows. The price: every
machine reads every shard once per epoch.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from seqmill.errors import UserError
from seqmill.packing.buckets import Buckets
from seqmill.packing.curriculum import BucketSchedule
from seqmill.packing.loss_weights import TOKEN_MEAN, check_normalisation, segment_weights, total_weight
from seqmill.packing.order import PlannedOrder, PlannedRows, ShuffledOrder, Use, check_plan
from seqmill.packing.row_table import Int64s
from seqmill.packing.rows import PackedRows, Step
from seqmill.packing.step_plan import StepPlan, load_step_plan
from seqmill.packing.steps import Batch, StepDataset

BATCH_ROWS = 8  # rows per global step, where nothing else tells

_Count = TypeVar("_Count", int, int | None)


class PackedDataset(StepDataset):
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
        loss_weights        float32[n], per segment, and
        global_loss_weight  float: sum the losses with these weights and divide by this (seqmill.packing.loss_weights);
                            both only with a normalisation that is not "token-mean"

    and with a step plan, for micro-batches that begin at the same time on all ranks:

        slots               int32[s + 1], where each slot begins, in tokens, from 0 to T; s is the same for all ranks,
                            and slots for which this rank has no row are empty
        slot_ranks          int32[s, 2], the first of the ranks that share the slot's row, and how many they are; every
                            one of them gets the whole row, and global_loss_tokens counts it once

    For worker processes use `seqmill.packing.Loader(dataset, workers=n)`. Torch's own
    `DataLoader(dataset, batch_size=None, num_workers=n)` gives the same batches at a fraction of the speed, and has
    another two rules. Its workers have copies of the dataset, and the one in the main process does not see how far they
    are: take the state with `state_at(batch["step"] + 1)`. Their batches travel as numbers and are made in the main
    process (seqmill.packing.handover): a `collate_fn` that changes a batch does so by torch, by setting entries, or in
    a new dictionary; not through numpy.

    Every `iter()` begins at the loaded state, or at the beginning where none was loaded.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        batch_rows: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = 1,
        shuffle: bool = True,
        shuffle_shards: int | None = None,
        verify: bool = False,
        schedule: BucketSchedule | None = None,
        plan: StepPlan | str | Path | None = None,
        cache: str | Path | None = None,
        cache_bytes: int | None = None,
        normalisation: str = TOKEN_MEAN,
    ) -> None:
        """Open a finished packed folder.

        Args:
            path: of the folder, or a URL that fsspec can open.
            batch_rows: rows per global step, over all ranks, 8 by default; a schedule or a plan has its own.
            seed: of the order of the rows; every epoch has its own order.
            epochs: passes over the data, or None for no end.
            shuffle: False reads the rows in stored order in every epoch, or the steps of a plan as planned.
            shuffle_shards: shuffle blocks of this many shards (see seqmill.packing.order), so that only two blocks
                need to be here; None shuffles all rows among themselves.
            verify: compare every row with its hash when it is read.
            schedule: the bucket of every step of an epoch, for a folder with buckets:
                `load_schedule(folder / "schedule.arrow")`, or another one by `make_schedule`.
            plan: who reads what in every step of an epoch: what `plan_steps` gave, or the file of `seqmill plan`.
                The steps of later epochs are the same ones in another order.
            cache: a local folder for copies of the shards, which other ranks and datasets may use too. A URL needs it;
                for a path it helps where reading is slow.
            cache_bytes: that the cache may hold; None for no limit.
            normalisation: of the loss, one of seqmill.packing.loss_weights.NORMALISATIONS. It changes no row and no
                order, and is no part of the state.

        Raises:
            UserError: the folder cannot be read, an argument is out of its range or excludes another, the schedule or
                the plan is of other rows or of another number of ranks, or the cache is too small.
        """
        super().__init__()
        self.path = path if "://" in str(path) else Path(path)
        self.world_size = _at_least_one("world_size", world_size)
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of {world_size} ranks; ranks count from 0 to world_size - 1")
        self.rank = rank
        self.epochs = _at_least_one("epochs", epochs)
        self.seed = seed
        self.shuffle = shuffle
        self.shuffle_shards = _at_least_one("shuffle_shards", shuffle_shards)
        if shuffle_shards is not None and not shuffle:
            raise UserError(f"shuffle_shards is {shuffle_shards}, but shuffle is False; leave one of them out")
        self.verify = verify
        self.normalisation = check_normalisation(normalisation)
        self.batch_rows = _at_least_one("batch_rows", BATCH_ROWS if batch_rows is None else batch_rows)
        self._rows = PackedRows(path, cache, _at_least_one("cache_bytes", cache_bytes))
        if not self._rows.rows:
            raise UserError(f"{self.path} has no rows; there is nothing to train on, look at its drops in the manifest")
        self.schedule = schedule
        if schedule is not None:
            _check_schedule(schedule, self._rows, world_size)
        self.plan = load_step_plan(plan) if isinstance(plan, str | Path) else plan
        if self.plan is not None:
            _check_alone(batch_rows=batch_rows, schedule=schedule, shuffle_shards=shuffle_shards)
            check_plan(self.plan, self._rows.fingerprint, self._rows.rows, world_size, self.path)
        self._order = self._make_order()
        self.check_cache()
        self._in_use: dict[int, Use] = {}  # by region
        self._wanted: tuple[tuple[int, ...], tuple[int, ...]] = (), ()  # shards: now, ahead

    def _make_order(self) -> ShuffledOrder | PlannedOrder:
        bounds = tuple(self._rows.shards.first_rows.tolist())
        if self.plan is not None:
            return PlannedOrder(self.plan, bounds, self.seed, self.shuffle)
        return ShuffledOrder(bounds, self.batch_rows, self.seed, self.shuffle, self.shuffle_shards, self.schedule)

    def check_cache(self, steps: int = 1) -> None:
        """Whether the shards that are in use at one time, by this many steps, have room.

        Raises:
            UserError: they have not.
        """
        cache = self._rows.shards.cache
        if cache is None or cache.limit is None:
            return
        sizes = self._rows.shards.bytes()
        needed = self._order.most_bytes(sizes, steps) if isinstance(self._order, ShuffledOrder) else int(sizes.sum())
        if needed <= cache.limit:
            return
        blocks = "the step plan reads rows of any shard" if self.plan else "all rows are shuffled among themselves"
        if self.shuffle_shards:
            blocks = f"blocks of {self.shuffle_shards} shards, the current and the next one"
        elif not self.shuffle:
            blocks = "the current shards and the next ones"
        way_out = {None: "set shuffle_shards to read block by block", 1: "pack with a smaller shard_tokens"}
        fewer = way_out.get(self.shuffle_shards if self.shuffle else 1, "choose a smaller shuffle_shards")
        if steps > 1:
            blocks = f"{steps} steps that workers have begun reach over several blocks"
            fewer = "fewer workers"
        raise UserError(
            f"cache_bytes is {cache.limit}, but {needed} bytes of shards are in use at one time ({blocks}); choose a "
            f"cache_bytes of {needed} or more, or {'leave out the plan' if self.plan else fewer}"
        )

    def __len__(self) -> int:
        """Steps per epoch."""
        return self._order.steps

    @property
    def end(self) -> int | None:
        """Steps of all epochs; None for no end."""
        return None if self.epochs is None else self.epochs * len(self)

    def batch_at(self, step: int) -> Batch:
        """This rank's item of a global step, in constant time."""
        self._hold(step, is_ahead=True)
        batch = self._make(step)
        if self.verify:
            self._rows.verify(batch["row_ids"].numpy())
        return batch

    def read_ahead(self, step: int) -> None:
        """All of `batch_at` that waits."""
        self._hold(step, is_ahead=True)
        mine, all_rows, _ = self._share(step)
        self._rows.touch(mine, all_rows)
        if self.verify:
            self._rows.verify(mine)

    def make(self, step: int) -> Batch:
        """As `batch_at`, for a step that a worker has read: its rows are checked, and the next shards on their way."""
        self._hold(step, is_ahead=False)
        return self._make(step)

    def _make(self, step: int) -> Batch:
        mine, all_rows, planned = self._share(step)
        read = self._rows.read(mine, all_rows)
        batch = _batch(read)
        if planned is not None:
            batch.update(_slots(planned, read, self.rank))
        if self.normalisation != TOKEN_MEAN:
            batch.update(self._weights(read, all_rows))
        batch["step"] = step
        return batch

    def _share(self, step: int) -> tuple[Int64s, Int64s, PlannedRows | None]:
        """The rows of a step that this rank reads, those of all ranks, and how a plan divides them."""
        epoch, within = divmod(step, len(self))
        if isinstance(self._order, PlannedOrder):
            planned = self._order.rows(epoch, within, self.rank)
            return planned.mine, planned.all, planned
        all_rows = self._order.rows(epoch, within)
        if self.world_size == 1:
            return all_rows, all_rows, None
        begin, end = (len(all_rows) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return all_rows[begin:end], all_rows, None

    def _weights(self, step: Step, all_rows: Int64s) -> Batch:
        """What the normalisation of the loss adds to a batch."""
        weights = segment_weights(self.normalisation, *self._rows.targets_of_segments(step.row_ids))
        of_all = self._rows.targets_of_segments(all_rows)
        total = total_weight(self.normalisation, *of_all, step.n_loss_tokens, self.world_size)
        return {"loss_weights": torch.from_numpy(weights.astype(np.float32)), "global_loss_weight": total}

    def definition(self) -> tuple[Any, ...]:
        """What a batch depends on, beside the contents of the folder and its step; and where iterators begin."""
        return (
            self.first_step,
            self.rank,
            self.world_size,
            self.seed,
            self.batch_rows,
            self.shuffle,
            self.shuffle_shards,
            self.normalisation,
        )

    def _hold(self, step: int, is_ahead: bool) -> None:
        """Have the shards of a step and those around it here, and then those of the next ones, if `is_ahead`."""
        if self._rows.shards.cache is None:
            return
        use = self._order.use(*divmod(step, len(self)), self.epochs)
        if self._in_use.get(use.region) != use:
            self._in_use[use.region] = use
            uses = [use, *(other for region, other in self._in_use.items() if region != use.region)]
            ahead = tuple(number for one in uses for number in one.ahead) if is_ahead else ()
            self._wanted = tuple(number for one in uses for number in one.now), ahead
        self._rows.hold(*self._wanted)

    def row(self, index: int) -> Batch:
        """One row by its id: the entries of a batch but for "step", with doc_id and doc_offset int64[n]."""
        return _single(self._rows, index)

    def state_at(self, step: int) -> dict[str, Any]:
        """The state in which global step `step` is next: the same for all ranks, whatever their number."""
        return {
            "fingerprint": self._rows.fingerprint,
            "seed": self.seed,
            **self._division(),
            "shuffle": self.shuffle,
            **({} if self.shuffle_shards is None else {"shuffle_shards": self.shuffle_shards}),
            "epoch": step // len(self),
            "step": step,
        }

    def _division(self) -> dict[str, Any]:
        """What tells the rows of a step."""
        if self.plan is not None:
            return {"plan": self.plan.hash}
        return {"batch_rows": self.batch_rows} if self.schedule is None else {"schedule": self.schedule.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a state; the number of workers and epochs may differ from the saved run's, and without a
        plan that of ranks.

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
        for name in state:
            if name in ("epoch", "step"):  # a position, checked below
                continue
            if name not in expected or state[name] != expected[name]:
                raise UserError(
                    f"the dataset state has {name} {state[name]!r}, this dataset {expected.get(name)!r}: its position "
                    f"would name other rows; open the dataset with the saved {name}, or start without the state"
                )
        if state["step"] < 0 or state["epoch"] != state["step"] // len(self):
            raise UserError(
                f"the dataset state is at step {state['step']} of epoch {state['epoch']}, but an epoch has "
                f"{len(self)} steps; pass what state_dict() gave"
            )
        self.first_step = self.next_step = state["step"]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is in use here; the rows are opened again (see PackedRows)."""
        return {name: value for name, value in self.__dict__.items() if name != "_in_use"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_in_use": {}})


class PackedRowDataset(Dataset[Batch]):
    """The rows of a packed folder by their number, for torch's own samplers and shuffling.

        rows = PackedRowDataset("packed")
        DataLoader(rows, batch_size=8, shuffle=True, collate_fn=join_rows)

    Items are those of `PackedDataset.row`. The order, its division among ranks and its state are the sampler's.
    """

    def __init__(self, path: str | Path, cache: str | Path | None = None, cache_bytes: int | None = None) -> None:
        """Open a finished packed folder; arguments and errors as of PackedDataset."""
        self._rows = PackedRows(path, cache, cache_bytes)

    def __len__(self) -> int:
        """Number of rows."""
        return self._rows.rows

    def __getitem__(self, index: int) -> Batch:
        """One row, from the end for negative numbers."""
        return _single(self._rows, index + len(self) if index < 0 else index)


def join_rows(rows: list[Batch]) -> Batch:
    """Rows of PackedRowDataset, one after the other, in the form of PackedDataset's batches without a step; doc_id and
    doc_offset are int64[n], per segment."""
    lengths = torch.tensor([0, *(len(row["input_ids"]) for row in rows)])
    starts = lengths.cumsum(0)[:-1].tolist()
    joined: Batch = {
        name: torch.cat([row[name] for row in rows]) for name in rows[0] if isinstance(rows[0][name], torch.Tensor)
    }
    bounds = [row["cu_seqlens"][1:] + start for row, start in zip(rows, starts, strict=True)]
    joined["cu_seqlens"] = torch.cat([torch.zeros(1, dtype=torch.int32), *bounds])
    joined["max_seqlen"] = max(row["max_seqlen"] for row in rows)
    joined["n_loss_tokens"] = joined["global_loss_tokens"] = sum(row["n_loss_tokens"] for row in rows)
    return joined


def _batch(step: Step) -> Batch:
    input_ids, targets, position_ids = map(torch.from_numpy, step.ids_targets_positions)  # quicker than `unbind`
    batch = {
        "input_ids": input_ids,
        "targets": targets,
        "position_ids": position_ids,
        "cu_seqlens": torch.from_numpy(step.cu_seqlens),
        "max_seqlen": step.max_seqlen,
        "n_loss_tokens": step.n_loss_tokens,
        "global_loss_tokens": step.global_loss_tokens,
        "row_ids": torch.from_numpy(step.row_ids),
    }
    if step.is_repeat is not None:
        batch["is_repeat"] = torch.from_numpy(step.is_repeat)
    return batch


def _single(rows: PackedRows, index: int) -> Batch:
    stored = rows.row(index)
    provenance = {name: torch.from_numpy(stored[name].astype(np.int64)) for name in ("doc_id", "doc_offset")}
    row_ids = np.array([index])
    return {**_batch(rows.read(row_ids, row_ids)), **provenance}


def _slots(planned: PlannedRows, step: Step, rank: int) -> Batch:
    """Where the slots of a rank begin, and who shares them."""
    tokens = np.bincount(planned.slot, np.diff(step.row_bounds), planned.slots)
    slot_ranks = np.tile(np.array([rank, 1], np.int32), (planned.slots, 1))
    slot_ranks[planned.slot] = planned.sharers
    slots = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32)
    return {"slots": torch.from_numpy(slots), "slot_ranks": torch.from_numpy(slot_ranks)}


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


def _check_alone(**others: object) -> None:
    """Whether no argument is given that tells the rows of a step, beside a plan that does."""
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} is given together with a plan, which tells the rows of every step; omit it")


def _at_least_one(name: str, value: _Count) -> _Count:
    if value is not None and value < 1:
        raise UserError(f"{name} is {value}, but there must be at least 1; choose a larger one")
    return value
