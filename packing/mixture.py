"""Several packed folders as one run of training steps, in exact proportions that a restart cannot change.

Which source a row comes from is a function of its place in the run (seqmill.packing.shares), and the k-th row of a
source is the k-th of its own order, epoch after epoch. So, as for one folder, a position is one integer: the step.

    step 7, rows 56 to 64 of the run      order of the block    web web code web web web code web
    sources before row 56                                       web 42, code 14
    read                                                        web 42 to 48, code 14 to 16 of their own orders
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from seqmill.errors import UserError
from seqmill.packing.dataset import PackedDataset
from seqmill.packing.loss_weights import TOKEN_MEAN
from seqmill.packing.order import permuted_rows
from seqmill.packing.permutation import round_keys
from seqmill.packing.row_table import Int64s
from seqmill.packing.rows import PackedRows, Step
from seqmill.packing.shares import MOST_BLOCK_ROWS, Shares, exact_weights
from seqmill.packing.steps import Batch, StepDataset
from seqmill.storage import fingerprint

Stop = Literal["first_exhausted", "all_exhausted"]

_STORED: Final = np.empty(0, np.uint64)  # keys of the order in which rows are stored

# What rows of one batch must agree in, by their name in the manifest's entry "pack".
_SHARED: Final = {"capacity": "row length", "tokenizer": "tokenizer", "vocab_size": "vocabulary"}


class MixedDataset(StepDataset):
    """The steps of a training run over several packed folders, for one rank.

    Rows come in blocks of `block_rows`, and after every block each source has given its share of all rows so far, to
    less than one row. As rows are full, shares of rows are shares of tokens. Every source is read in its own order, the
    one in which `PackedDataset(folder, seed=seed)` reads it, and begins its next epoch when it runs out.

    Items are those of `PackedDataset`, with the rows of a rank's part of a step grouped by source, and with

        source      int64[n], per segment: an index into `names`
        row_source  int64[rows], the same per row: row_ids count within the source

    is_repeat is there where any source has it, and False for the others' segments. The number of ranks, workers and
    restarts changes neither the rows of a step nor the order in which the steps read any source.

    Attributes:
        names: of the sources, sorted.
        weights: of the same, as integers without a common factor.
        block_rows: rows per block.
    """

    def __init__(
        self,
        sources: Mapping[str, PackedDataset | str | Path],
        weights: Mapping[str, float],
        *,
        batch_rows: int = 8,
        block_rows: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        stop: Stop | None = "first_exhausted",
        verify: bool = False,
    ) -> None:
        """Open finished packed folders of one tokenizer and row length.

        Args:
            sources: folders by name; of a `PackedDataset`, what it reads, its seed, shuffle and verify are used.
            weights: of the same names, in any unit: {"web": 3, "code": 1} or {"web": 0.75, "code": 0.25}.
            batch_rows: rows per global step, over all ranks.
            block_rows: a multiple of batch_rows in which every source has at least one row; None: the smallest such.
            seed: of the order of the sources in a block, and of the rows of folders.
            stop: "first_exhausted" ends with the last row of the first source that has been read once, so that no row
                is read twice; "all_exhausted" when each has been read at least once; None never. The last step may be
                short.
            verify: compare every row with its hash when it is read, for folders.

        Raises:
            UserError: a folder cannot be read, the folders do not fit together, or an argument is out of its range.
        """
        super().__init__()
        self.names = tuple(sorted(sources))
        if not sources or weights.keys() != sources.keys():
            raise UserError(
                f"the mixture has sources {sorted(sources)} and weights for {sorted(weights)}; give one weight each"
            )
        if world_size < 1 or not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not one of {world_size} ranks; ranks count from 0 to world_size - 1")
        if batch_rows < 1:
            raise UserError(f"batch_rows is {batch_rows}, but a step has at least 1 row; choose a larger one")
        if stop not in (None, "first_exhausted", "all_exhausted"):
            raise UserError(f"stop is {stop!r}; choose 'first_exhausted', 'all_exhausted' or None")
        self.sources = tuple(_open(sources[name], seed, verify) for name in self.names)
        _check_alike(self.names, self.sources)
        self.weights = exact_weights([weights[name] for name in self.names])
        self.batch_rows = batch_rows
        self.block_rows = _block_rows(self.names, self.weights, batch_rows, block_rows)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.stop = stop
        self._shares = Shares(self.weights, self.block_rows, seed)
        self._last_row = self._end()
        self.check_cache()

    def _end(self) -> int | None:
        """Rows of the whole run, over all ranks."""
        ends = [self._shares.rows_until(number, _rows_of(source).rows) for number, source in enumerate(self.sources)]
        return {"first_exhausted": min(ends), "all_exhausted": max(ends), None: None}[self.stop]

    def __len__(self) -> int:
        """Steps of the run."""
        if self._last_row is None:
            raise TypeError("a mixture with stop=None has no end, and so no length")
        return -(-self._last_row // self.batch_rows)

    @property
    def end(self) -> int | None:
        """Steps of the whole run; None for no end."""
        return None if self._last_row is None else len(self)

    def batch_at(self, step: int) -> Batch:
        """This rank's item of a global step; the cost does not depend on the step."""
        parts = self._share(step)
        batch = self._make(step, parts)
        _verify(parts)
        return batch

    def read_ahead(self, step: int) -> None:
        """All of `batch_at` that waits."""
        parts = self._share(step)
        for part in parts:
            _rows_of(part.dataset).touch(part.mine, part.all)
        _verify(parts)

    def make(self, step: int) -> Batch:
        """As `batch_at`, for a step that a worker has had, and whose rows it has checked."""
        return self._make(step, self._share(step))

    def check_cache(self, steps: int = 1) -> None:
        """Whether the shards of all sources have room in the caches that they share; any step may read from any shard.

        Raises:
            UserError: they have not.
        """
        del steps
        sharing = defaultdict[tuple[Path, int], list[str]](list)
        for name, source in zip(self.names, self.sources, strict=True):
            cache = _rows_of(source).shards.cache
            if cache is not None and cache.limit is not None:
                sharing[cache.folder, cache.limit].append(name)
        for (folder, limit), names in sharing.items():
            sizes = [int(_rows_of(self.sources[self.names.index(name)]).shards.bytes().sum()) for name in names]
            if sum(sizes) > limit:
                raise UserError(
                    f"cache_bytes of {folder} is {limit}, but {sum(sizes)} bytes of shards of {', '.join(names)} are "
                    f"in use at one time (all rows of a source are shuffled among themselves); choose a cache_bytes of "
                    f"{sum(sizes)} or more"
                )

    def definition(self) -> tuple[Any, ...]:
        """What a batch depends on, beside the sources and its step; and where iterators begin."""
        where = (self.first_step, self.rank, self.world_size)
        return *where, self.seed, self.batch_rows, self.block_rows, self.stop, self.weights

    def _share(self, step: int) -> list["_Part"]:
        """The rows of a step, source after source; their shards are on their way."""
        for source in self.sources:
            _rows_of(source).hold(range(len(_rows_of(source).manifest["files"])), ())
        begin = step * self.batch_rows
        end = begin + self.batch_rows if self._last_row is None else min(begin + self.batch_rows, self._last_row)
        mine = [begin + (end - begin) * rank // self.world_size for rank in (self.rank, self.rank + 1)]
        places = self._shares.before([begin, *mine, end])
        return [part for number, bounds in enumerate(places) for part in _parts(number, self.sources[number], bounds)]

    def _make(self, step: int, parts: list["_Part"]) -> Batch:
        read = [(part.source, _rows_of(part.dataset).read(part.mine, part.all)) for part in parts]
        return {**_merge(read), "step": step}

    def rows_at(self, step: int) -> dict[str, int]:
        """Rows of each source that all ranks together have read when `step` is next."""
        row = step * self.batch_rows if self._last_row is None else min(step * self.batch_rows, self._last_row)
        return {name: count for name, (count,) in zip(self.names, self._shares.before([row]), strict=True)}

    def epochs_at(self, step: int) -> dict[str, float]:
        """How often each source has been read when `step` is next: 1.5 is once and half of it again."""
        rows = self.rows_at(step)
        return {name: rows[name] / _rows_of(source).rows for name, source in zip(self.names, self.sources, strict=True)}

    def state_at(self, step: int) -> dict[str, Any]:
        """The state in which global step `step` is next: the same for all ranks, whatever their number."""
        read = [
            [name, _rows_of(s).fingerprint, s.seed, s.shuffle] for name, s in zip(self.names, self.sources, strict=True)
        ]
        return {
            "fingerprint": fingerprint([read, self.weights]),
            "seed": self.seed,
            "batch_rows": self.batch_rows,
            "block_rows": self.block_rows,
            "stop": self.stop,
            "step": step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a state; the number of ranks and workers may differ from the saved run's.

        Raises:
            UserError: the state is of other sources, weights, seeds or sizes, so that its step means something else.
        """
        for name, expected in self.state_at(0).items():
            if name not in state:
                raise UserError(f"the state of the mixture has no {name!r}; pass what state_dict() gave")
            if name == "fingerprint" and state[name] != expected:
                raise UserError(
                    f"the state is of another mixture: of other contents, names, weights or seeds than {self.names}; "
                    "open the same one, or start without the state"
                )
            if name != "step" and state[name] != expected:
                raise UserError(
                    f"the state of the mixture has {name} {state[name]!r}, this one {expected!r}: its step would name "
                    f"other rows; open the mixture with the saved {name}, or start without the state"
                )
        if state["step"] < 0:
            raise UserError(f"the state of the mixture is at step {state['step']}; pass what state_dict() gave")
        self.first_step = self.next_step = state["step"]


class _Part(NamedTuple):
    """Rows of one epoch of one source, in a step."""

    source: int
    dataset: PackedDataset
    mine: Int64s  # row ids that this rank reads
    all: Int64s  # that all ranks read


def _rows_of(source: PackedDataset) -> PackedRows:
    """The stored rows that a dataset reads."""
    return source._rows


def _open(source: PackedDataset | str | Path, seed: int, verify: bool) -> PackedDataset:
    return source if isinstance(source, PackedDataset) else PackedDataset(source, seed=seed, verify=verify)


def _check_alike(names: tuple[str, ...], sources: tuple[PackedDataset, ...]) -> None:
    """Whether rows of these sources can stand in one batch."""
    packs = [_rows_of(source).manifest["pack"] for source in sources]
    for name, source, pack in zip(names, sources, packs, strict=True):
        for option in ("plan", "shuffle_shards"):
            if getattr(source, option) is not None:
                raise UserError(
                    f"{name} ({source.path}) is opened with {option}, but a mixture shuffles all rows of a source "
                    "among themselves; open it without"
                )
        if source.normalisation != TOKEN_MEAN:
            raise UserError(
                f"{name} ({source.path}) is opened with normalisation {source.normalisation!r}, but a mixture counts "
                f"every token alike; open it with {TOKEN_MEAN!r}"
            )
        if pack.get("buckets"):
            raise UserError(
                f"{name} ({source.path}) has buckets: rows of several lengths, so that shares of rows would not be "
                "shares of tokens; pack its tokens without buckets"
            )
        for key, meaning in _SHARED.items():
            if pack[key] != packs[0][key]:
                raise UserError(
                    f"{names[0]} ({sources[0].path}) has {meaning} {packs[0][key]!r}, {name} ({source.path}) "
                    f"{pack[key]!r}; a mixture needs one {meaning}, so make them alike and pack again"
                )


def _block_rows(names: tuple[str, ...], weights: tuple[int, ...], batch_rows: int, block_rows: int | None) -> int:
    """The block's size, checked: a source with less than a row in it would sometimes need less than none."""
    rarest, total = min(weights), sum(weights)
    least = -(-total // rarest)
    name = names[weights.index(rarest)]
    block_rows = -(-least // batch_rows) * batch_rows if block_rows is None else block_rows
    if block_rows < 1 or block_rows % batch_rows:
        raise UserError(f"block_rows is {block_rows}, which is no multiple of batch_rows, {batch_rows}; choose one")
    if block_rows < least:
        raise UserError(
            f"block_rows is {block_rows}, but {name} has one row in {total / rarest:g} and must have one in every "
            f"block; choose at least {least}, or leave it out"
        )
    if block_rows > MOST_BLOCK_ROWS:
        raise UserError(
            f"a block of {block_rows} rows is needed for the weights, as {name} has one row in {total / rarest:g}, but "
            f"the order of at most {MOST_BLOCK_ROWS} rows is held in memory; give {name} a larger weight"
        )
    return block_rows


def _parts(number: int, source: PackedDataset, bounds: Sequence[int]) -> Iterator[_Part]:
    """Rows of a source's endless order, a part per epoch.

    Args:
        bounds: where the rows of all ranks begin; where this one's begin and end; where those of all end.
    """
    begin, *mine_bounds, end = bounds
    rows = _rows_of(source).rows
    while begin < end:
        epoch, within = divmod(begin, rows)
        start = begin - within
        last = min(end - start, rows)
        all_rows = permuted_rows(within, last, 0, rows, _epoch_keys(source.seed, epoch) if source.shuffle else _STORED)
        first, stop = (min(max(place - start, within), last) - within for place in mine_bounds)
        yield _Part(number, source, all_rows[first:stop], all_rows)
        begin = start + last


def _verify(parts: list[_Part]) -> None:
    """Compare the rows of sources for which this is wanted with their hashes."""
    for part in parts:
        if part.dataset.verify:
            _rows_of(part.dataset).verify(part.mine)


@lru_cache(maxsize=64)
def _epoch_keys(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    """Of the order of a source's rows, as PackedDataset has it."""
    return round_keys("epoch", seed, epoch)


def _merge(parts: list[tuple[int, Step]]) -> Batch:
    """One batch of the parts of a step, each with the number of its source."""
    steps = [step for _, step in parts]
    numbers = np.array([number for number, _ in parts])
    blocks = [step.ids_targets_positions for step in steps]
    input_ids, targets, position_ids = torch.from_numpy(np.concatenate(blocks, axis=1) if blocks[1:] else blocks[0])
    rows = np.array([len(step.row_ids) for step in steps])
    segments = np.array([len(step.cu_seqlens) - 1 for step in steps])
    batch: Batch = {
        "input_ids": input_ids,
        "targets": targets,
        "position_ids": position_ids,
        "cu_seqlens": torch.from_numpy(_join_bounds([step.cu_seqlens for step in steps])),
        "max_seqlen": max([step.max_seqlen for step in steps]),
        "n_loss_tokens": sum([step.n_loss_tokens for step in steps]),
        "global_loss_tokens": sum([step.global_loss_tokens for step in steps]),
        "row_ids": torch.from_numpy(np.concatenate([step.row_ids for step in steps])),
        "row_source": torch.from_numpy(np.repeat(numbers, rows)),
        "source": torch.from_numpy(np.repeat(numbers, segments)),
    }
    if any(step.is_repeat is not None for step in steps):
        flags = [
            np.zeros(count, np.bool_) if step.is_repeat is None else step.is_repeat
            for step, count in zip(steps, segments, strict=True)
        ]
        batch["is_repeat"] = torch.from_numpy(np.concatenate(flags))
    return batch


def _join_bounds(bounds: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Segment bounds of batches as those of one batch: each batch begins where the one before it ends."""
    joined, base = bounds[:1], int(bounds[0][-1])
    for cu_seqlens in bounds[1:]:
        joined.append(cu_seqlens[1:] + np.int32(base))
        base += int(cu_seqlens[-1])
    return np.concatenate(joined)
