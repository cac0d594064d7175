"""Rows as the arrays that a model takes, straight from mapped shards (seqmill.packing.row_table)."""

import numpy as np
import numpy.typing as npt
from numba import carray, njit

from seqmill.packing.addresses import pointer, prefetch, read_bit
from seqmill.packing.row_table import (
    CU,
    CU_COUNT,
    CU_OFFSETS,
    DOC_TARGETS,
    IDS,
    IDS_COUNT,
    IDS_OFFSETS,
    MAX_SEQLEN,
    N_LOSS,
    NEXT,
    NEXT_COUNT,
    NEXT_OFFSETS,
    POSITIONS,
    REPEAT,
    REPEAT_BIT,
    list_range,
    locate,
)
from seqmill.packing.schema import NO_NEXT

IGNORED = -100  # target of a token without one: what torch's cross entropy leaves out
_PAGE = 4096  # bytes of memory that are read from disk together, at least
_LINE = 64  # bytes of memory that come into a cache together
_AHEAD = 8  # rows that are on their way while one is copied
PAGE = 4096  # bytes; the smallest pages of any system we know

Int64s = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def measure(
    directory: Int64s, table: Int64s, row_ids: Int64s, all_rows: Int64s
) -> tuple[bool, np.int64, np.int64, np.int64, np.int64, np.int64]:
    """Whether all are mapped; tokens, segments, longest segment and targets of `row_ids`, and targets of `all_rows`."""
    tokens = segments = longest = loss = all_loss = np.int64(0)
    for row in row_ids:
        batch, within = locate(directory, table, row)
        if batch < 0:
            return False, tokens, segments, longest, loss, all_loss
        begin_token, end_token = list_range(table, batch, IDS_OFFSETS, within, table[batch, IDS_COUNT])
        tokens += max(0, end_token - begin_token)
        begin_cu, end_cu = list_range(table, batch, CU_OFFSETS, within, table[batch, CU_COUNT])
        segments += max(0, end_cu - begin_cu - 1)
        row_longest = np.int64(carray(pointer(table[batch, MAX_SEQLEN]), within + 1, np.int32)[within])
        longest = max(longest, row_longest)
        loss += np.int64(carray(pointer(table[batch, N_LOSS]), within + 1, np.int32)[within])
    if row_ids.size == all_rows.size:
        return True, tokens, segments, longest, loss, loss
    for row in all_rows:
        batch, within = locate(directory, table, row)
        if batch < 0:
            return False, tokens, segments, longest, loss, all_loss
        all_loss += np.int64(carray(pointer(table[batch, N_LOSS]), within + 1, np.int32)[within])
    return True, tokens, segments, longest, loss, all_loss


@njit(cache=True, nogil=True)
def fill(
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
    for row in row_ids[:_AHEAD]:
        _prefetch_row(directory, table, row, sample.itemsize)
    for number in range(row_ids.size):
        if number + _AHEAD < row_ids.size:
            _prefetch_row(directory, table, row_ids[number + _AHEAD], sample.itemsize)
        row = row_ids[number]
        batch, within = locate(directory, table, row)
        begin, end = list_range(table, batch, IDS_OFFSETS, within, table[batch, IDS_COUNT])
        cu_begin, cu_end = list_range(table, batch, CU_OFFSETS, within, table[batch, CU_COUNT])
        next_begin, next_end = list_range(table, batch, NEXT_OFFSETS, within, table[batch, NEXT_COUNT])
        count = cu_end - cu_begin - 1
        if end <= begin or count < 1 or next_end - next_begin != count:
            return row
        ids = carray(pointer(table[batch, IDS]), table[batch, IDS_COUNT], sample.dtype)[begin:end]
        bounds = carray(pointer(table[batch, CU]), table[batch, CU_COUNT], np.int32)[cu_begin:cu_end]
        following = carray(pointer(table[batch, NEXT]), table[batch, NEXT_COUNT], np.int32)[next_begin:next_end]
        starts = carray(pointer(table[batch, POSITIONS]), table[batch, NEXT_COUNT], np.int32)[next_begin:next_end]
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
def _prefetch_row(directory: Int64s, table: Int64s, row: int, itemsize: int) -> None:
    """Have the begins of a mapped row's lists on their way while other rows are copied: rows lie anywhere, and half of
    the time would go into waiting for memory. The processor fetches the rest of a list by itself."""
    batch, within = locate(directory, table, row)
    begin, end = list_range(table, batch, IDS_OFFSETS, within, table[batch, IDS_COUNT])
    first = table[batch, IDS] + begin * itemsize
    for address in range(first, min(first + _PAGE, table[batch, IDS] + end * itemsize), _LINE):
        prefetch(address)
    begin, _ = list_range(table, batch, CU_OFFSETS, within, table[batch, CU_COUNT])
    prefetch(table[batch, CU] + 4 * begin)
    begin, _ = list_range(table, batch, NEXT_OFFSETS, within, table[batch, NEXT_COUNT])
    prefetch(table[batch, NEXT] + 4 * begin)
    prefetch(table[batch, POSITIONS] + 4 * begin)


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
def repeats_of(directory: Int64s, table: Int64s, row_ids: Int64s, segments: int) -> npt.NDArray[np.bool_]:
    """is_repeat of the segments of these rows, bool[segments]; `fill` has checked their lists."""
    out = np.empty(segments, np.bool_)
    place = 0
    for row in row_ids:
        batch, within = locate(directory, table, row)
        begin, end = list_range(table, batch, NEXT_OFFSETS, within, table[batch, NEXT_COUNT])
        for segment in range(begin, end):
            out[place] = read_bit(table[batch, REPEAT], table[batch, REPEAT_BIT] + segment)
            place += 1
    return out


@njit(cache=True, nogil=True)
def targets_of_segments(directory: Int64s, table: Int64s, row_ids: Int64s) -> tuple[Int64s, Int64s]:
    """See `PackedRows.targets_of_segments`; a row whose lists have impossible bounds counts no segment."""
    segments = 0
    for row in row_ids:
        batch, within = locate(directory, table, row)
        begin, end = list_range(table, batch, NEXT_OFFSETS, within, table[batch, NEXT_COUNT])
        segments += max(0, end - begin)
    here, everywhere = np.zeros(segments, np.int64), np.zeros(segments, np.int64)
    place = 0
    for row in row_ids:
        batch, within = locate(directory, table, row)
        begin, end = list_range(table, batch, NEXT_OFFSETS, within, table[batch, NEXT_COUNT])
        first, last = list_range(table, batch, CU_OFFSETS, within, table[batch, CU_COUNT])
        if last - first != end - begin + 1:
            continue
        bounds = carray(pointer(table[batch, CU]), table[batch, CU_COUNT], np.int32)[first:last]
        following = carray(pointer(table[batch, NEXT]), table[batch, NEXT_COUNT], np.int32)[begin:end]
        documents = carray(pointer(table[batch, DOC_TARGETS]), table[batch, NEXT_COUNT], np.int64)[begin:end]
        for segment in range(end - begin):
            length = np.int64(bounds[segment + 1]) - np.int64(bounds[segment])
            here[place] = length - (following[segment] == NO_NEXT)
            everywhere[place] = documents[segment]
            place += 1
    return here, everywhere


@njit(cache=True, nogil=True)
def touch(directory: Int64s, table: Int64s, row_ids: Int64s, itemsize: int) -> int:
    """Read one byte of every page with tokens of these rows, which are mapped; a number that depends on all of them."""
    seen = 0
    for row in row_ids:
        batch, within = locate(directory, table, row)
        begin, end = list_range(table, batch, IDS_OFFSETS, within, table[batch, IDS_COUNT])
        tokens = carray(pointer(table[batch, IDS]), table[batch, IDS_COUNT] * itemsize, np.uint8)
        for place in range(begin * itemsize, end * itemsize, _PAGE):
            seen += tokens[place]
        if begin < end:
            seen += tokens[end * itemsize - 1]
    return seen
