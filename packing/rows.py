"""Packed rows by their number, as the arrays that a model takes.

All record batches of all mapped shards are one table of addresses, so a step's rows are read, widened and shifted into
targets by a single kernel, wherever they lie.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.packing import row_kernels
from seqmill.packing.row_table import Int64s
from seqmill.packing.schema import REPEAT_COLUMN, hash_rows, token_dtype
from seqmill.packing.shards import Shards


class Step(NamedTuple):
    """Some rows one after the other, without padding: T tokens in n segments."""

    # int64[3, T], one block because an allocation and a conversion to torch cost as much as widening a row:
    # the tokens; the token that follows each in its document, IGNORED where none is known; positions in the segment
    ids_targets_positions: Int64s
    cu_seqlens: npt.NDArray[np.int32]  # int32[n + 1], segment bounds in tokens
    max_seqlen: int  # longest segment, tokens; 0 for no rows
    n_loss_tokens: int  # targets that are not IGNORED
    global_loss_tokens: int  # the same over the rows of all ranks
    row_ids: Int64s  # int64[rows]
    is_repeat: npt.NDArray[np.bool_] | None  # bool[n], per segment; None where the rows do not tell
    row_bounds: Int64s  # int64[rows + 1], in tokens


class PackedRows:
    """Random access to a packed dataset.

    Attributes:
        shards: that hold the rows.
        folder: a path, or a URL.
        manifest: of the folder.
        rows: number of rows.
        capacity: tokens that a row can hold.
        fingerprint: of the manifest, and so of the contents.
        has_repeats: whether the rows have a column is_repeat.
    """

    def __init__(
        self,
        folder: str | Path,
        cache: str | Path | None = None,
        cache_bytes: int | None = None,
        manifest: dict[str, Any] | None = None,
    ) -> None:
        """Open a finished folder; the cost does not depend on the number of rows.

        Args:
            folder: a path, whose shards are mapped now; or a URL that fsspec can open, which needs a `cache`.
            cache: a local folder for copies of the shards, which others may use too; for a path on a slow disk as well.
            cache_bytes: that the cache may hold, of all datasets together; None for no limit.
            manifest: of a remote folder, where it is known already.

        Raises:
            UserError: the folder is not finished, holds something else, or its shards do not match the manifest.
        """
        self.shards = Shards(folder, cache, cache_bytes, manifest)
        self.folder, self.manifest = self.shards.folder, self.shards.manifest
        self.rows = int(self.shards.first_rows[-1])
        self.capacity: int = self.manifest["pack"]["capacity"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self.has_repeats: bool = self.manifest["pack"].get(REPEAT_COLUMN, False)
        self._sample = np.empty(0, token_dtype(self.manifest["pack"]["vocab_size"]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the folder by itself, a remote one without reading its manifest again."""
        cache = self.shards.cache
        return PackedRows, (self.folder, *((cache.folder, cache.limit, self.manifest) if cache else ()))

    def read(self, row_ids: Int64s, all_rows: Int64s) -> Step:
        """Some rows one after the other.

        Args:
            row_ids: int64[n], the rows to read.
            all_rows: int64[m], the rows that all ranks together read, each once, these among them; their targets are
                counted.

        Raises:
            UserError: a row contradicts itself, its shard is damaged, or cannot be fetched.
        """
        with self.shards.lock:
            tokens, segments, longest, loss, all_loss = self._map_and_measure(row_ids, all_rows)
            block = np.empty((3, tokens), np.int64)
            cu_seqlens = np.empty(segments + 1, np.int32)
            row_bounds = np.empty(len(row_ids) + 1, np.int64)
            where = self.shards.directory, self.shards.table
            bad = row_kernels.fill(*where, row_ids, self._sample, block, cu_seqlens, row_bounds)
            if bad >= 0:
                raise UserError(
                    f"row {bad} of {self.folder} is damaged: its segments and tokens disagree; run "
                    f"seqmill inspect --validate {self.folder} and pack again"
                )
            is_repeat = row_kernels.repeats_of(*where, row_ids, segments) if self.has_repeats else None
        return Step(block, cu_seqlens, longest, loss, all_loss, row_ids, is_repeat, row_bounds)

    def touch(self, row_ids: Int64s, all_rows: Int64s) -> None:
        """Have in memory what `read` needs: for whoever reads these rows soon, maybe in another process.

        Raises:
            UserError: a shard is damaged, or cannot be fetched.
        """
        with self.shards.lock:
            self._map_and_measure(row_ids, all_rows)
            row_kernels.touch(self.shards.directory, self.shards.table, row_ids, self._sample.itemsize)

    def _map_and_measure(self, row_ids: Int64s, all_rows: Int64s) -> tuple[int, int, int, int, int]:
        """Of row_ids tokens, segments, the longest segment and targets; targets of all_rows."""
        while True:
            is_mapped, *sizes = row_kernels.measure(self.shards.directory, self.shards.table, row_ids, all_rows)
            if is_mapped:
                return tuple(sizes)
            self.shards.map(np.unique(self.shards.of(np.concatenate([row_ids, all_rows]))).tolist())

    def targets_of_segments(self, row_ids: Int64s) -> tuple[Int64s, Int64s]:
        """For every segment of these rows: its targets, and those of its document in all rows; int64[segments] each.

        Raises:
            UserError: a shard cannot be fetched.
        """
        with self.shards.lock:
            self.shards.map(np.unique(self.shards.of(row_ids)).tolist())
            here, everywhere = row_kernels.targets_of_segments(self.shards.directory, self.shards.table, row_ids)
        return here, everywhere

    def row(self, index: int) -> dict[str, Any]:
        """All stored columns of one row: numpy arrays for lists, Python integers otherwise."""
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of a dataset of {self.rows} rows")
        batch, within = self.shards.batch(index)
        stored: dict[str, Any] = {}
        for name in batch.schema.names:
            value = batch.column(name)[within]
            is_list = pa.types.is_list(value.type)
            is_bits = name == REPEAT_COLUMN
            stored[name] = value.values.to_numpy(zero_copy_only=not is_bits) if is_list else value.as_py()
        return stored

    def hold(self, now: Sequence[int], ahead: Sequence[int]) -> None:
        """Of a remote folder, keep the shards `now` in the cache, fetch `ahead` behind them, and let go of all others.

        Rows of other shards can be read all the same; their shards are then held until the next call, or until there
        is no room for another. Nothing happens for a local folder, or when the same was said before.
        """
        self.shards.hold(now, ahead)

    def verify(self, row_ids: Int64s) -> None:
        """Compare rows with their hashes.

        Raises:
            UserError: a row was changed after it was written.
        """
        for index in row_ids.tolist():
            row = self.row(index)
            ids, cu_seqlens = row["input_ids"], row["cu_seqlens"]
            found = hash_rows(ids, np.array([0, len(ids)]), cu_seqlens, np.array([0, len(cu_seqlens)]))
            if found[0] != row["xxh3"]:
                raise UserError(
                    f"row {index} of {self.folder} does not match its hash: the shard was changed or damaged; "
                    "copy it again from its source or pack again"
                )
