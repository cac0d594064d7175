"""Packed shards, mapped: any row of the dataset by its number, as the arrays that a model takes.

All record batches of all shards are one table of addresses, so a step's rows are read, widened and shifted into
targets by a single kernel, wherever they lie.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import carray, njit

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.packing.addresses import address_of, bits_of, pointer, read_bit
from seqmill.packing.permutation import permute
from seqmill.packing.schema import KIND, NO_NEXT, REPEAT_COLUMN, hash_rows, token_dtype
from seqmill.storage import read_arrow

IGNORED = -100  # target of a token without one: what torch's cross entropy leaves out

Int64s = npt.NDArray[np.int64]
_NO_KEYS = np.empty(0, np.uint64)  # stands for the order in which the rows are stored

# Columns of the table of record batches, int64[batches, 14]: addresses, and sizes of the values behind them.
(
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
) = range(14)


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


class PackedRows:
    """Random access to a packed dataset.

    Attributes:
        manifest: of the folder.
        rows: number of rows.
        capacity: tokens that a row can hold.
        fingerprint: of the manifest, and so of the contents.
        has_repeats: whether the rows have a column is_repeat.
    """

    def __init__(self, folder: Path) -> None:
        """Map the shards of a finished folder; the cost does not depend on the number of rows.

        Raises:
            UserError: the folder is not finished, holds something else, or its shards do not match the manifest.
        """
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = open_manifest(self.folder, KIND)
        self.capacity: int = self.manifest["pack"]["capacity"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self.dtype = token_dtype(self.manifest["pack"]["vocab_size"])
        self.has_repeats: bool = self.manifest["pack"].get(REPEAT_COLUMN, False)
        self._batches: list[pa.RecordBatch] = []
        for file in self.manifest["files"]:
            table = read_arrow(self.folder / file["name"])
            if table.num_rows != file["rows"]:
                raise UserError(
                    f"{self.folder / file['name']} has {table.num_rows} rows, the manifest lists {file['rows']}; "
                    "pack again"
                )
            self._batches += [batch for batch in table.to_batches() if batch.num_rows]
        sizes = [batch.num_rows for batch in self._batches]
        self._first_row = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        described = [_describe(batch, self.dtype, self.has_repeats) for batch in self._batches]
        self._table = np.array(described, np.int64).reshape(-1, 14)
        self._sample = np.empty(0, self.dtype)
        self.rows = int(self._first_row[-1])

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
            UserError: a row contradicts itself; its shard was damaged.
        """
        keys = _NO_KEYS if keys is None else keys
        row_ids, tokens, segments, longest, loss, all_loss = _measure(
            self._table, self._first_row, keys, *(among or (0, self.rows)), begin, end, mine.start, mine.stop
        )
        block = np.empty((3, tokens), np.int64)
        cu_seqlens = np.empty(segments + 1, np.int32)
        bad = _fill(self._table, self._first_row, row_ids, self._sample, block, cu_seqlens)
        if bad >= 0:
            raise UserError(
                f"row {bad} of {self.folder} is damaged: its segments and tokens disagree; run "
                f"seqmill inspect --validate {self.folder} and pack again"
            )
        is_repeat = _repeats(self._table, self._first_row, row_ids, segments) if self.has_repeats else None
        return Step(block, cu_seqlens, longest, loss, all_loss, row_ids, is_repeat)

    def row(self, index: int) -> dict[str, Any]:
        """All stored columns of one row: numpy arrays for lists, Python integers otherwise."""
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of a dataset of {self.rows} rows")
        number = int(np.searchsorted(self._first_row, index, "right")) - 1
        batch, within = self._batches[number], index - int(self._first_row[number])
        stored: dict[str, Any] = {}
        for name in batch.schema.names:
            value = batch.column(name)[within]
            is_list = pa.types.is_list(value.type)
            is_bits = name == REPEAT_COLUMN
            stored[name] = value.values.to_numpy(zero_copy_only=not is_bits) if is_list else value.as_py()
        return stored

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


def _describe(batch: pa.RecordBatch, dtype: np.dtype, has_repeats: bool) -> tuple[int, ...]:
    ids, cu, following = batch.column("input_ids"), batch.column("cu_seqlens"), batch.column("next_token")
    positions = batch.column("pos_start")
    repeats = batch.column(REPEAT_COLUMN) if REPEAT_COLUMN in batch.schema.names else None
    like_next = [positions.offsets] if repeats is None else [positions.offsets, repeats.offsets]
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
        min(len(following.values), len(positions.values)),
        address_of(positions.values),
        address_of(batch.column("n_loss_tokens")),
        address_of(batch.column("max_seqlen")),
        *((0, 0) if repeats is None else bits_of(repeats.values)),
    )


@njit(cache=True, nogil=True)
def _locate(first_row: Int64s, row: int) -> tuple[int, int]:
    """(record batch, row within it)."""
    low, high = 0, first_row.size - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if first_row[middle] <= row:
            low = middle
        else:
            high = middle
    return low, row - first_row[low]


@njit(cache=True, nogil=True)
def _range(table: Int64s, batch: int, offsets: int, row: int, values: int) -> tuple[np.int64, np.int64]:
    """Where a row's list begins and ends among `values` values; (0, -1) if that is impossible."""
    bounds = carray(pointer(table[batch, offsets]), row + 2, np.int32)
    begin, end = np.int64(bounds[row]), np.int64(bounds[row + 1])
    return (begin, end) if 0 <= begin <= end <= values else (np.int64(0), np.int64(-1))


@njit(cache=True, nogil=True)
def _measure(
    table: Int64s,
    first_row: Int64s,
    keys: npt.NDArray[np.uint64],
    first: int,
    last: int,
    begin: int,
    end: int,
    mine_begin: int,
    mine_end: int,
) -> tuple[Int64s, np.int64, np.int64, np.int64, np.int64, np.int64]:
    """Row ids, tokens, segments, longest segment and targets of the rows in `mine`, and the targets of all rows."""
    row_ids = np.empty(mine_end - mine_begin, np.int64)
    tokens = segments = longest = loss = all_loss = np.int64(0)
    for position in range(begin, end):
        row = first + permute(position - first, last - first, keys) if keys.size else position
        batch, within = _locate(first_row, row)
        row_loss = np.int64(carray(pointer(table[batch, _N_LOSS]), within + 1, np.int32)[within])
        all_loss += row_loss
        if mine_begin <= position < mine_end:
            row_ids[position - mine_begin] = row
            loss += row_loss
            begin_token, end_token = _range(table, batch, _IDS_OFFSETS, within, table[batch, _IDS_COUNT])
            tokens += max(0, end_token - begin_token)
            begin_cu, end_cu = _range(table, batch, _CU_OFFSETS, within, table[batch, _CU_COUNT])
            segments += max(0, end_cu - begin_cu - 1)
            row_longest = np.int64(carray(pointer(table[batch, _MAX_SEQLEN]), within + 1, np.int32)[within])
            longest = max(longest, row_longest)
    return row_ids, tokens, segments, longest, loss, all_loss


@njit(cache=True, nogil=True)
def _fill(
    table: Int64s,
    first_row: Int64s,
    row_ids: Int64s,
    sample: np.ndarray,
    block: Int64s,
    cu_seqlens: npt.NDArray[np.int32],
) -> int:
    """Read the rows one after the other into `block` (tokens, targets, positions) and `cu_seqlens`.

    Returns:
        The id of a row that contradicts itself, or -1.
    """
    input_ids, targets, positions = block[0], block[1], block[2]
    base = segment_base = 0
    cu_seqlens[0] = 0
    for row in row_ids:
        batch, within = _locate(first_row, row)
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
def _repeats(table: Int64s, first_row: Int64s, row_ids: Int64s, segments: int) -> npt.NDArray[np.bool_]:
    """is_repeat of the segments of these rows, bool[segments]; `_fill` has checked their lists."""
    out = np.empty(segments, np.bool_)
    place = 0
    for row in row_ids:
        batch, within = _locate(first_row, row)
        begin, end = _range(table, batch, _NEXT_OFFSETS, within, table[batch, _NEXT_COUNT])
        for segment in range(begin, end):
            out[place] = read_bit(table[batch, _REPEAT], table[batch, _REPEAT_BIT] + segment)
            place += 1
    return out
