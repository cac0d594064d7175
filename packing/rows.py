"""Packed shards, mapped: any row of the dataset by its number, as the arrays that a model takes.

All record batches of all shards are one table of addresses, so a step's rows are read, widened and shifted into
targets by a single kernel, wherever they lie. Shards of a local folder are mapped when it is opened. Those of a remote
one are fetched into a local cache and mapped when a row of theirs is read; which rows they have is in the manifest.
"""

import os
import threading
import weakref
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import carray, njit

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.packing.addresses import address_of, bits_of, pointer, read_bit
from seqmill.packing.cache import CacheFullError, Held, RemoteFolder, ShardCache
from seqmill.packing.order import permuted_rows
from seqmill.packing.prefetch import Prefetcher
from seqmill.packing.schema import KIND, NO_NEXT, REPEAT_COLUMN, hash_rows, token_dtype
from seqmill.storage import read_arrow

IGNORED = -100  # target of a token without one: what torch's cross entropy leaves out

Int64s = npt.NDArray[np.int64]
_NO_KEYS = np.empty(0, np.uint64)  # stands for the order in which the rows are stored

# Columns of the directory of shards, int64[shards + 1, 3]; a shard that is not mapped has no batches.
_SHARD_ROW, _BATCHES_BEGIN, _BATCHES_END = range(3)

# Columns of the table of record batches, int64[batches, 16]: the first row, addresses, and sizes of the values there.
(
    _ROW,
    _IDS_OFFSETS,
    _IDS,
    _IDS_COUNT,
    _CU_OFFSETS,
    _CU,
    _CU_COUNT,
    _NEXT_OFFSETS,
    _NEXT,
    _NEXT_COUNT,
    _POSITIONS,
    _N_LOSS,
    _MAX_SEQLEN,
    _REPEAT,
    _REPEAT_BIT,
    _DOC_TARGETS,
) = range(16)


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


class _Mapped(NamedTuple):
    """A shard in memory."""

    batches: list[pa.RecordBatch]
    table: Int64s  # [batches, 16]
    held: Held | None  # against removal from the cache


class PackedRows:
    """Random access to a packed dataset.

    Attributes:
        folder: a path, or a URL.
        manifest: of the folder.
        rows: number of rows.
        capacity: tokens that a row can hold.
        fingerprint: of the manifest, and so of the contents.
        has_repeats: whether the rows have a column is_repeat.
        first_rows: int64[shards + 1], of every shard, and the number of rows.
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
        self.capacity: int = self.manifest["pack"]["capacity"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self.dtype = token_dtype(self.manifest["pack"]["vocab_size"])
        self.has_repeats: bool = self.manifest["pack"].get(REPEAT_COLUMN, False)
        self.first_rows: Int64s = np.cumsum([0, *(file["rows"] for file in self.manifest["files"])], dtype=np.int64)
        self.rows = int(self.first_rows[-1])
        self._sample = np.empty(0, self.dtype)
        self._prefetcher: Prefetcher | None = None
        self._stop: weakref.finalize | None = None
        self._begin()
        if self.cache is None:
            self._map(range(len(self.manifest["files"])))

    def _begin(self) -> None:
        """With nothing mapped."""
        self._lock = threading.RLock()  # of what is mapped, where that changes
        self._mapped: dict[int, _Mapped] = {}
        self._index()
        if self.cache is not None:
            if self._stop is not None:
                self._stop.detach()
            self._prefetcher = Prefetcher(self.cache, self.manifest["files"])
            self._stop = weakref.finalize(self, self._prefetcher.stop)
            _REMOTE.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the folder by itself, a remote one without reading its manifest again."""
        if self.cache is None:
            return PackedRows, (self.folder,)
        return PackedRows, (self.folder, self.cache.folder, self.cache.limit, self.manifest)

    def step(
        self,
        begin: int,
        end: int,
        mine: slice,
        keys: npt.NDArray[np.uint64] | None = None,
        among: tuple[int, int] | None = None,
    ) -> Step:
        """Positions begin to end of an order of the rows, of which the positions in `mine` are to be read.

        Args:
            keys: the order is the permutation with these keys, or that of the shards where None.
            mine: positions from mine.start to mine.stop, within begin and end.
            among: the permutation is of rows among[0] to among[1], which begin and end lie in; None: of all rows.

        Raises:
            UserError: as `read`.
        """
        all_rows = permuted_rows(begin, end, *(among or (0, self.rows)), _NO_KEYS if keys is None else keys)
        return self.read(all_rows[mine.start - begin : mine.stop - begin], all_rows)

    def read(self, row_ids: Int64s, all_rows: Int64s) -> Step:
        """Some rows one after the other.

        Args:
            row_ids: int64[n], the rows to read.
            all_rows: int64[m], the rows that all ranks together read, each once, these among them; their targets are
                counted.

        Raises:
            UserError: a row contradicts itself, its shard is damaged, or cannot be fetched.
        """
        if self.cache is None:
            return self._read(row_ids, all_rows)
        with self._lock:
            return self._read(row_ids, all_rows)

    def _read(self, row_ids: Int64s, all_rows: Int64s) -> Step:
        while True:
            measured = _measure(self._directory, self._table, row_ids, all_rows)
            is_mapped, tokens, segments, longest, loss, all_loss = measured
            if is_mapped:
                break
            self._map(np.unique(self._shard_of(np.concatenate([row_ids, all_rows]))).tolist())
        block = np.empty((3, tokens), np.int64)
        cu_seqlens = np.empty(segments + 1, np.int32)
        row_bounds = np.empty(len(row_ids) + 1, np.int64)
        bad = _fill(self._directory, self._table, row_ids, self._sample, block, cu_seqlens, row_bounds)
        if bad >= 0:
            raise UserError(
                f"row {bad} of {self.folder} is damaged: its segments and tokens disagree; run "
                f"seqmill inspect --validate {self.folder} and pack again"
            )
        is_repeat = _repeats(self._directory, self._table, row_ids, segments) if self.has_repeats else None
        return Step(block, cu_seqlens, longest, loss, all_loss, row_ids, is_repeat, row_bounds)

    def targets_of_segments(self, row_ids: Int64s) -> tuple[Int64s, Int64s]:
        """For every segment of these rows: its targets, and those of its document in all rows; int64[segments] each.

        Raises:
            UserError: a shard cannot be fetched.
        """
        with self._lock:
            self._map(np.unique(self._shard_of(row_ids)).tolist())
            here, everywhere = _targets_of_segments(self._directory, self._table, row_ids)
        return here, everywhere

    def row(self, index: int) -> dict[str, Any]:
        """All stored columns of one row: numpy arrays for lists, Python integers otherwise."""
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of a dataset of {self.rows} rows")
        shard = int(self._shard_of(np.array([index]))[0])
        with self._lock:
            self._map([shard])
            mapped = self._mapped[shard]
        number = int(np.searchsorted(mapped.table[:, _ROW], index, "right")) - 1
        batch, within = mapped.batches[number], index - int(mapped.table[number, _ROW])
        stored: dict[str, Any] = {}
        for name in batch.schema.names:
            value = batch.column(name)[within]
            is_list = pa.types.is_list(value.type)
            is_bits = name == REPEAT_COLUMN
            stored[name] = value.values.to_numpy(zero_copy_only=not is_bits) if is_list else value.as_py()
        return stored

    def hold(self, now: Iterable[int], ahead: Iterable[int]) -> None:
        """Of a remote folder, keep the shards `now` in the cache, fetch `ahead` behind them, and let go of all others.

        Rows of other shards can be read all the same; their shards are then held until the next call, or until there
        is no room for another. Nothing happens for a local folder.
        """
        if self._prefetcher is None:
            return
        wanted = dict.fromkeys([*now, *ahead])
        with self._lock:
            self._unmap(self._mapped.keys() - wanted.keys())
            self._prefetcher.want([number for number in wanted if number not in self._mapped])

    def _shard_of(self, row_ids: Int64s) -> Int64s:
        return np.searchsorted(self.first_rows, row_ids, "right") - 1

    def _map(self, shards: Collection[int]) -> None:
        """Map these shards, if they are not yet."""
        missing = [number for number in shards if number not in self._mapped]
        for number in missing:
            held = self._hold(number, shards)
            file = self.manifest["files"][number]
            path = held.path if held else Path(self.folder) / file["name"]
            self._mapped[number] = self._map_file(path, f"{self.folder}/{file['name']}", number, held)
        if missing:
            self._index()

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
        described = [_describe(batch, self.dtype, self.has_repeats) for batch in batches]
        first_row = self.first_rows[number] + np.cumsum([0, *(batch.num_rows for batch in batches)])[:-1]
        columns = np.array(described, np.int64).reshape(-1, 15)
        return _Mapped(batches, np.column_stack([first_row, columns]).astype(np.int64), held)

    def _unmap(self, shards: Iterable[int]) -> None:
        gone = [self._mapped.pop(number) for number in shards]
        self._index()
        for mapped in gone:
            if mapped.held is not None:
                mapped.held.release()

    def _index(self) -> None:
        """Tell the kernels what is mapped."""
        self._directory = np.zeros((len(self.first_rows), 3), np.int64)
        self._directory[:, _SHARD_ROW] = self.first_rows
        begin = 0
        for number, mapped in self._mapped.items():
            end = begin + len(mapped.table)
            self._directory[number, _BATCHES_BEGIN:] = begin, end
            begin = end
        self._table = np.concatenate([np.empty((0, 16), np.int64), *(mapped.table for mapped in self._mapped.values())])

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


_REMOTE: "weakref.WeakSet[PackedRows]" = weakref.WeakSet()


def _begin_again() -> None:
    """In a forked process, which has neither the threads nor the locks of its parent."""
    for rows in list(_REMOTE):
        rows._begin()


os.register_at_fork(after_in_child=_begin_again)


def _describe(batch: pa.RecordBatch, dtype: np.dtype, has_repeats: bool) -> tuple[int, ...]:
    ids, cu, following = batch.column("input_ids"), batch.column("cu_seqlens"), batch.column("next_token")
    positions = batch.column("pos_start")
    repeats = batch.column(REPEAT_COLUMN) if REPEAT_COLUMN in batch.schema.names else None
    if "doc_targets" not in batch.schema.names:
        raise UserError("a packed shard has no column doc_targets: an earlier version wrote it; pack again")
    document_targets = batch.column("doc_targets")
    like_next = [positions.offsets, document_targets.offsets] + ([] if repeats is None else [repeats.offsets])
    if (
        ids.type.value_type != pa.from_numpy_dtype(dtype)
        or (repeats is not None) != has_repeats
        or not all(offsets.equals(following.offsets) for offsets in like_next)
        or (repeats is not None and len(repeats.values) < len(following.values))
    ):
        raise UserError("a packed shard does not have the layout that its manifest describes; pack again")
    return (
        address_of(ids.offsets),
        address_of(ids.values),
        len(ids.values),
        address_of(cu.offsets),
        address_of(cu.values),
        len(cu.values),
        address_of(following.offsets),
        address_of(following.values),
        min(len(following.values), len(positions.values), len(document_targets.values)),
        address_of(positions.values),
        address_of(batch.column("n_loss_tokens")),
        address_of(batch.column("max_seqlen")),
        *((0, 0) if repeats is None else bits_of(repeats.values)),
        address_of(document_targets.values),
    )


@njit(cache=True, nogil=True)
def _locate(directory: Int64s, table: Int64s, row: int) -> tuple[np.int64, np.int64]:
    """(record batch, row within it); the batch is -1 where the shard is not mapped."""
    low, high = np.int64(0), np.int64(directory.shape[0] - 1)
    while high - low > 1:
        middle = (low + high) >> 1
        if directory[middle, _SHARD_ROW] <= row:
            low = middle
        else:
            high = middle
    low, high = directory[low, _BATCHES_BEGIN], directory[low, _BATCHES_END]
    if low == high:
        return np.int64(-1), np.int64(0)
    while high - low > 1:
        middle = (low + high) >> 1
        if table[middle, _ROW] <= row:
            low = middle
        else:
            high = middle
    return low, row - table[low, _ROW]


@njit(cache=True, nogil=True)
def _range(table: Int64s, batch: int, offsets: int, row: int, values: int) -> tuple[np.int64, np.int64]:
    """Where a row's list begins and ends among `values` values; (0, -1) if that is impossible."""
    bounds = carray(pointer(table[batch, offsets]), row + 2, np.int32)
    begin, end = np.int64(bounds[row]), np.int64(bounds[row + 1])
    return (begin, end) if 0 <= begin <= end <= values else (np.int64(0), np.int64(-1))


@njit(cache=True, nogil=True)
def _measure(
    directory: Int64s, table: Int64s, row_ids: Int64s, all_rows: Int64s
) -> tuple[bool, np.int64, np.int64, np.int64, np.int64, np.int64]:
    """Whether all are mapped; tokens, segments, longest segment and targets of `row_ids`, and targets of `all_rows`."""
    tokens = segments = longest = loss = all_loss = np.int64(0)
    for row in row_ids:
        batch, within = _locate(directory, table, row)
        if batch < 0:
            return False, tokens, segments, longest, loss, all_loss
        begin_token, end_token = _range(table, batch, _IDS_OFFSETS, within, table[batch, _IDS_COUNT])
        tokens += max(0, end_token - begin_token)
        begin_cu, end_cu = _range(table, batch, _CU_OFFSETS, within, table[batch, _CU_COUNT])
        segments += max(0, end_cu - begin_cu - 1)
        row_longest = np.int64(carray(pointer(table[batch, _MAX_SEQLEN]), within + 1, np.int32)[within])
        longest = max(longest, row_longest)
        loss += np.int64(carray(pointer(table[batch, _N_LOSS]), within + 1, np.int32)[within])
    if row_ids.size == all_rows.size:
        return True, tokens, segments, longest, loss, loss
    for row in all_rows:
        batch, within = _locate(directory, table, row)
        if batch < 0:
            return False, tokens, segments, longest, loss, all_loss
        all_loss += np.int64(carray(pointer(table[batch, _N_LOSS]), within + 1, np.int32)[within])
    return True, tokens, segments, longest, loss, all_loss


@njit(cache=True, nogil=True)
def _fill(
    directory: Int64s,
    table: Int64s,
    row_ids: Int64s,
    sample: np.ndarray,
    block: Int64s,
    cu_seqlens: npt.NDArray[np.int32],
    row_bounds: Int64s,
) -> int:
    """Read the rows one after the other into `block` (tokens, targets, positions), `cu_seqlens` and `row_bounds`.

    Returns:
        The id of a row that contradicts itself, or -1.
    """
    input_ids, targets, positions = block[0], block[1], block[2]
    base = segment_base = 0
    cu_seqlens[0] = row_bounds[0] = 0
    for number in range(row_ids.size):
        row = row_ids[number]
        batch, within = _locate(directory, table, row)
        begin, end = _range(table, batch, _IDS_OFFSETS, within, table[batch, _IDS_COUNT])
        cu_begin, cu_end = _range(table, batch, _CU_OFFSETS, within, table[batch, _CU_COUNT])
        next_begin, next_end = _range(table, batch, _NEXT_OFFSETS, within, table[batch, _NEXT_COUNT])
        count = cu_end - cu_begin - 1
        if end <= begin or count < 1 or next_end - next_begin != count:
            return row
        ids = carray(pointer(table[batch, _IDS]), table[batch, _IDS_COUNT], sample.dtype)[begin:end]
        bounds = carray(pointer(table[batch, _CU]), table[batch, _CU_COUNT], np.int32)[cu_begin:cu_end]
        following = carray(pointer(table[batch, _NEXT]), table[batch, _NEXT_COUNT], np.int32)[next_begin:next_end]
        starts = carray(pointer(table[batch, _POSITIONS]), table[batch, _NEXT_COUNT], np.int32)[next_begin:next_end]
        if bounds[0] != 0 or bounds[-1] != end - begin:
            return row
        _widen(ids, input_ids[base : base + ids.size], targets[base : base + ids.size])
        for segment in range(count):
            first, last = np.int64(bounds[segment]), np.int64(bounds[segment + 1])
            if last <= first or last > ids.size:
                return row
            follower = np.int64(following[segment])
            targets[base + last - 1] = IGNORED if follower == NO_NEXT else follower
            _count_up(positions[base + first : base + last], np.int64(starts[segment]))
            cu_seqlens[segment_base + segment + 1] = base + last
        base += ids.size
        segment_base += count
        row_bounds[number + 1] = base
    return -1


@njit(cache=True, nogil=True)
def _widen(ids: np.ndarray, input_ids: Int64s, targets: Int64s) -> None:
    """The tokens, and each one's follower as its target; the last target is left to the caller."""
    for index in range(ids.size):
        input_ids[index] = ids[index]
    for index in range(ids.size - 1):
        targets[index] = ids[index + 1]


@njit(cache=True, nogil=True)
def _count_up(positions: Int64s, first: int) -> None:
    for index in range(positions.size):
        positions[index] = first + index


@njit(cache=True, nogil=True)
def _repeats(directory: Int64s, table: Int64s, row_ids: Int64s, segments: int) -> npt.NDArray[np.bool_]:
    """is_repeat of the segments of these rows, bool[segments]; `_fill` has checked their lists."""
    out = np.empty(segments, np.bool_)
    place = 0
    for row in row_ids:
        batch, within = _locate(directory, table, row)
        begin, end = _range(table, batch, _NEXT_OFFSETS, within, table[batch, _NEXT_COUNT])
        for segment in range(begin, end):
            out[place] = read_bit(table[batch, _REPEAT], table[batch, _REPEAT_BIT] + segment)
            place += 1
    return out


@njit(cache=True, nogil=True)
def _targets_of_segments(directory: Int64s, table: Int64s, row_ids: Int64s) -> tuple[Int64s, Int64s]:
    """See `PackedRows.targets_of_segments`; a row whose lists have impossible bounds counts no segment."""
    segments = 0
    for row in row_ids:
        batch, within = _locate(directory, table, row)
        begin, end = _range(table, batch, _NEXT_OFFSETS, within, table[batch, _NEXT_COUNT])
        segments += max(0, end - begin)
    here, everywhere = np.zeros(segments, np.int64), np.zeros(segments, np.int64)
    place = 0
    for row in row_ids:
        batch, within = _locate(directory, table, row)
        begin, end = _range(table, batch, _NEXT_OFFSETS, within, table[batch, _NEXT_COUNT])
        first, last = _range(table, batch, _CU_OFFSETS, within, table[batch, _CU_COUNT])
        if last - first != end - begin + 1:
            continue
        bounds = carray(pointer(table[batch, _CU]), table[batch, _CU_COUNT], np.int32)[first:last]
        following = carray(pointer(table[batch, _NEXT]), table[batch, _NEXT_COUNT], np.int32)[begin:end]
        documents = carray(pointer(table[batch, _DOC_TARGETS]), table[batch, _NEXT_COUNT], np.int64)[begin:end]
        for segment in range(end - begin):
            length = np.int64(bounds[segment + 1]) - np.int64(bounds[segment])
            here[place] = length - (following[segment] == NO_NEXT)
            everywhere[place] = documents[segment]
            place += 1
    return here, everywhere
