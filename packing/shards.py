"""The shards of a packed folder, mapped into memory: all of a local one, and those of a remote one as they are needed.

Shards of a local folder are mapped when it is opened. Those of a remote one are fetched into a local cache and mapped
when a row of theirs is read; which rows they have is in the manifest.
"""

import os
import threading
import weakref
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.packing.cache import CacheFullError, Held, RemoteFolder, ShardCache
from seqmill.packing.prefetch import Prefetcher
from seqmill.packing.row_table import BATCHES_BEGIN, COLUMNS, ROW, SHARD_ROW, Int64s, describe_batch
from seqmill.packing.schema import KIND, REPEAT_COLUMN, token_dtype
from seqmill.storage import read_arrow


class _Mapped(NamedTuple):
    """A shard in memory."""

    batches: list[pa.RecordBatch]
    table: Int64s  # [batches, COLUMNS]
    held: Held | None  # against removal from the cache


class Shards:
    """Where the rows of a folder lie in memory (seqmill.packing.row_table).

    Attributes:
        folder: a path, or a URL.
        manifest: of the folder.
        cache: of a remote folder.
        first_rows: int64[shards + 1], of every shard, and the number of rows.
        lock: to be held while the directory and the table are in use, as other threads may map and unmap shards.
        directory: int64[shards + 1, 3].
        table: int64[batches, COLUMNS], of what is mapped.
    """

    def __init__(
        self, folder: str | Path, cache: str | Path | None, cache_bytes: int | None, manifest: dict[str, Any] | None
    ) -> None:
        """Open a finished folder; arguments and errors as of PackedRows."""
        is_remote = cache is not None or "://" in str(folder)
        self.folder: str | Path = str(folder) if is_remote else Path(folder)
        self.cache: ShardCache | None = None
        if is_remote:
            if cache is None:
                raise UserError(
                    f"{folder} is remote, and its shards need a place here; name a folder with cache=, and its limit "
                    "with cache_bytes="
                )
            remote = RemoteFolder(str(folder), KIND, manifest)
            self.manifest: dict[str, Any] = remote.manifest
            self.cache = ShardCache(remote, Path(cache), cache_bytes)
        else:
            self.manifest = open_manifest(Path(folder), KIND)
        self._dtype = token_dtype(self.manifest["pack"]["vocab_size"])
        self._has_repeats: bool = self.manifest["pack"].get(REPEAT_COLUMN, False)
        self.first_rows: Int64s = np.cumsum([0, *(file["rows"] for file in self.manifest["files"])], dtype=np.int64)
        self._prefetcher: Prefetcher | None = None
        self._stop: weakref.finalize | None = None
        self._begin()
        if self.cache is None:
            self.map(range(len(self.manifest["files"])))

    def _begin(self) -> None:
        """With nothing mapped."""
        self.lock = threading.RLock()
        self._mapped: dict[int, _Mapped] = {}
        self._said: tuple[Sequence[int], Sequence[int]] | None = None  # what to hold
        self._index()
        if self.cache is not None:
            if self._stop is not None:
                self._stop.detach()
            self._prefetcher = Prefetcher(self.cache, self.manifest["files"])
            self._stop = weakref.finalize(self, self._prefetcher.stop)
            _REMOTE.add(self)

    def bytes(self) -> Int64s:
        """Sizes of the files, int64[shards]."""
        return np.array([file["bytes"] for file in self.manifest["files"]], np.int64)

    def of(self, row_ids: Int64s) -> Int64s:
        """The shard of every row."""
        return np.searchsorted(self.first_rows, row_ids, "right") - 1

    def map(self, shards: Collection[int]) -> None:
        """Map these shards, if they are not yet.

        Raises:
            UserError: one of them is damaged, cannot be fetched, or has no room.
        """
        missing = [number for number in shards if number not in self._mapped]
        for number in missing:
            held = self._hold(number, shards)
            file = self.manifest["files"][number]
            path = held.path if held else Path(self.folder) / file["name"]
            self._mapped[number] = self._map_file(path, f"{self.folder}/{file['name']}", number, held)
        if missing:
            self._index()

    def batch(self, row: int) -> tuple[pa.RecordBatch, int]:
        """The record batch of a row, and the row's number within it."""
        shard = int(self.of(np.array([row]))[0])
        with self.lock:
            self.map([shard])
            mapped = self._mapped[shard]
        number = int(np.searchsorted(mapped.table[:, ROW], row, "right")) - 1
        return mapped.batches[number], row - int(mapped.table[number, ROW])

    def hold(self, now: Sequence[int], ahead: Sequence[int]) -> None:
        """As PackedRows.hold."""
        if self._prefetcher is None or self._said == (now, ahead):
            return
        self._said = now, ahead
        wanted = dict.fromkeys([*now, *ahead])
        with self.lock:
            self._unmap(self._mapped.keys() - wanted.keys())
            self._prefetcher.want([number for number in wanted if number not in self._mapped])

    def _hold(self, number: int, needed: Collection[int]) -> Held | None:
        """A shard of a remote folder in the cache, for which shards that are not needed may have to go."""
        if self.cache is None or self._prefetcher is None:
            return None
        file = self.manifest["files"][number]
        if held := self._prefetcher.take(number):
            return held
        try:
            return self.cache.hold(file, wait=False)
        except CacheFullError:
            self._prefetcher.want(())
            self._unmap(self._mapped.keys() - set(needed))
        try:
            return self.cache.hold(file)
        except CacheFullError as error:
            size = sum(self.manifest["files"][one]["bytes"] for one in needed)
            raise UserError(
                f"no room for {self.folder}/{file['name']}: the cache {self.cache.folder} may hold "
                f"{self.cache.limit} bytes, and {error}; this step needs {size} bytes, and other readers of the cache "
                "hold theirs: choose a larger cache_bytes, fewer workers, or a cache for each reader"
            ) from error

    def _map_file(self, path: Path, name: str, number: int, held: Held | None) -> _Mapped:
        table = read_arrow(path)
        rows = self.manifest["files"][number]["rows"]
        if table.num_rows != rows:
            raise UserError(f"{name} has {table.num_rows} rows, the manifest lists {rows}; pack again")
        batches = [batch for batch in table.to_batches() if batch.num_rows]
        described = [describe_batch(batch, name, self._dtype, self._has_repeats) for batch in batches]
        first_row = self.first_rows[number] + np.cumsum([0, *(batch.num_rows for batch in batches)])[:-1]
        columns = np.array(described, np.int64).reshape(-1, COLUMNS - 1)
        return _Mapped(batches, np.column_stack([first_row, columns]).astype(np.int64), held)

    def _unmap(self, shards: Iterable[int]) -> None:
        gone = [self._mapped.pop(number) for number in shards]
        self._index()
        for mapped in gone:
            if mapped.held is not None:
                mapped.held.release()

    def _index(self) -> None:
        """Tell the kernels what is mapped."""
        self.directory = np.zeros((len(self.first_rows), 3), np.int64)
        self.directory[:, SHARD_ROW] = self.first_rows
        begin = 0
        for number, mapped in self._mapped.items():
            end = begin + len(mapped.table)
            self.directory[number, BATCHES_BEGIN:] = begin, end
            begin = end
        tables = [mapped.table for mapped in self._mapped.values()]
        self.table = np.concatenate([np.empty((0, COLUMNS), np.int64), *tables])


_REMOTE: "weakref.WeakSet[Shards]" = weakref.WeakSet()


def _begin_again() -> None:
    """In a forked process, which has neither the threads nor the locks of its parent."""
    for shards in list(_REMOTE):
        shards._begin()


os.register_at_fork(after_in_child=_begin_again)
