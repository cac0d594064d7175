"""Where the rows of mapped shards lie: a table of addresses of all record batches, and a directory of the shards in it.

The kernels of seqmill.packing.row_kernels read rows by these two arrays alone.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import carray, njit

from seqmill.errors import UserError
from seqmill.packing.addresses import address_of, bits_of, pointer
from seqmill.packing.schema import REPEAT_COLUMN

Int64s = npt.NDArray[np.int64]

# Columns of the directory of shards, int64[shards + 1, 3]; a shard that is not mapped has no batches.
SHARD_ROW, BATCHES_BEGIN, BATCHES_END = range(3)

# Columns of the table of record batches, int64[batches, COLUMNS]: the first row, addresses, sizes of the values there.
(
    ROW,
    IDS_OFFSETS,
    IDS,
    IDS_COUNT,
    CU_OFFSETS,
    CU,
    CU_COUNT,
    NEXT_OFFSETS,
    NEXT,
    NEXT_COUNT,
    POSITIONS,
    N_LOSS,
    MAX_SEQLEN,
    REPEAT,
    REPEAT_BIT,
    DOC_TARGETS,
) = range(16)
COLUMNS = 16


def describe_batch(batch: pa.RecordBatch, shard: str, dtype: np.dtype, has_repeats: bool) -> tuple[int, ...]:
    """A row of the table but for its first column, the number of the first row.

    Raises:
        UserError: the record batch has not the columns or the layout of packed rows with this dtype.
    """
    ids, cu, following = batch.column("input_ids"), batch.column("cu_seqlens"), batch.column("next_token")
    positions = batch.column("pos_start")
    repeats = batch.column(REPEAT_COLUMN) if REPEAT_COLUMN in batch.schema.names else None
    if "doc_targets" not in batch.schema.names:
        raise UserError(f"{shard} has no column doc_targets: an earlier version wrote it; pack again")
    document_targets = batch.column("doc_targets")
    like_next = [positions.offsets, document_targets.offsets] + ([] if repeats is None else [repeats.offsets])
    if (
        ids.type.value_type != pa.from_numpy_dtype(dtype)
        or (repeats is not None) != has_repeats
        or not all(offsets.equals(following.offsets) for offsets in like_next)
        or (repeats is not None and len(repeats.values) < len(following.values))
    ):
        raise UserError(f"{shard} does not have the layout that its manifest describes; pack again")
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
def locate(directory: Int64s, table: Int64s, row: int) -> tuple[np.int64, np.int64]:
    """(record batch, row within it); the batch is -1 where the shard is not mapped."""
    low, high = np.int64(0), np.int64(directory.shape[0] - 1)
    while high - low > 1:
        middle = (low + high) >> 1
        if directory[middle, SHARD_ROW] <= row:
            low = middle
        else:
            high = middle
    low, high = directory[low, BATCHES_BEGIN], directory[low, BATCHES_END]
    if low == high:
        return np.int64(-1), np.int64(0)
    while high - low > 1:
        middle = (low + high) >> 1
        if table[middle, ROW] <= row:
            low = middle
        else:
            high = middle
    return low, row - table[low, ROW]


@njit(cache=True, nogil=True)
def list_range(table: Int64s, batch: int, offsets: int, row: int, values: int) -> tuple[np.int64, np.int64]:
    """Where a row's list begins and ends among `values` values; (0, -1) if that is impossible."""
    bounds = carray(pointer(table[batch, offsets]), row + 2, np.int32)
    begin, end = np.int64(bounds[row]), np.int64(bounds[row + 1])
    return (begin, end) if 0 <= begin <= end <= values else (np.int64(0), np.int64(-1))
