"""From document lengths to packed rows: which tokens of which document go where, and what is left out.

    lengths -> survey (counts per length, overflow) -> best_fit.best_fit_decreasing (events)
            -> queues (items of one length, side by side) -> rows (a shuffled order of bins, each read off its events)

Every pass over the documents or fragments is one sequential loop of machine code; a row's items are found by walking
its events, so nothing is sorted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from seqmill.errors import UserError
from seqmill.packing.best_fit import best_fit_decreasing
from seqmill.packing.buckets import Buckets
from seqmill.packing.permutation import permutation, round_keys
from seqmill.storage import read_arrow, read_metadata, with_metadata, write_arrow

ALGORITHM: Final = "best-fit-decreasing"
OVERFLOWS: Final = ("split", "truncate", "drop", "error")
MAX_CAPACITY: Final = 1 << 24  # tokens; bounds the tables that are indexed by length (128 MiB each)

Int64s = npt.NDArray[np.int64]
_SPLIT, _TRUNCATE, _DROP, _ERROR = range(len(OVERFLOWS))
_FRAGMENT = pa.struct([("item", pa.int64()), ("start", pa.int64()), ("stop", pa.int64())])
_SCHEMA = pa.schema([pa.field("fragments", pa.large_list(_FRAGMENT), nullable=False)])
_COUNTERS = (
    "documents",
    "tokens",
    "dropped_tokens",
    "dropped_documents",
    "truncated_documents",
    "split_documents",
    "empty_documents",
)


@dataclass(frozen=True, eq=False)
class PackPlan:
    """The contents of every packed row: row r holds fragments row_offsets[r] to row_offsets[r + 1].

    Fragment f is tokens start[f] to stop[f] of document item[f]. In a row, longer fragments come first.
    """

    row_offsets: Int64s  # int64[rows + 1], in fragments, from 0
    item: Int64s  # int64[fragments], position of the document in `lengths`
    start: Int64s  # int64[fragments], first token within the document
    stop: Int64s  # int64[fragments], one past the last token; start < stop
    capacity: int  # tokens that a row can hold
    overflow: str  # what was done with documents longer than that: one of OVERFLOWS
    seed: int  # of the order of the rows and of which equally long fragment fills which place
    documents: int  # length of `lengths`, empty ones included
    tokens: int  # tokens in the rows, all fragments together
    dropped_tokens: int  # tokens that are in no row (overflow "truncate" or "drop")
    dropped_documents: int  # documents that are in no row though they are not empty
    truncated_documents: int  # documents that lost their end
    split_documents: int  # documents that are in more than one fragment
    empty_documents: int  # documents without tokens: in no row
    buckets: Buckets | None = None  # rows of several lengths (seqmill.packing.decomposition); None: of one

    @property
    def rows(self) -> int:
        """Number of packed rows."""
        return len(self.row_offsets) - 1

    @property
    def efficiency(self) -> float:
        """The share of the rows' places that hold a token, 0 to 1; 1 for no rows at all."""
        places = self.buckets.places if self.buckets else self.rows * self.capacity
        return self.tokens / places if self.rows else 1.0

    @property
    def lower_bound(self) -> int:
        """The rows that the tokens would need if they could be cut anywhere: no packing has fewer.

        With buckets: if the leftovers could be; the other rows are full.
        """
        if self.buckets:
            return self.rows - self.buckets.leftover_rows - (-self.buckets.leftover_tokens // self.buckets.shortest)
        return -(-self.tokens // self.capacity)

    @property
    def target_only_tokens(self) -> int:
        """Tokens that are in rows as targets alone. With buckets: the last of each document's tokens that are kept."""
        return self.documents - self.empty_documents - self.dropped_documents if self.buckets else 0

    def room(self, row: int) -> int:
        """Tokens that a row has room for."""
        return int(self.buckets.room_of(np.array([row]))[0]) if self.buckets else self.capacity


def plan(lengths: npt.ArrayLike, capacity: int, overflow: str = "split", seed: int = 0) -> PackPlan:
    """Pack documents into rows of at most `capacity` tokens by exact best-fit-decreasing (arXiv 2404.10830).

    Args:
        lengths: tokens per document, integers[documents] >= 0. Documents of length 0 are counted and left out.
        capacity: tokens per row, 1 to MAX_CAPACITY.
        overflow: what happens to a document that is longer: "split" cuts it into pieces of `capacity` and a tail and
            keeps all of them, "truncate" keeps its first `capacity` tokens, "drop" leaves it out, "error" refuses it.
        seed: rows come in an order drawn from it, so that neighbours differ; it never changes their number.

    Returns:
        The plan: the same one for the same arguments, on any machine.

    Raises:
        UserError: an argument is out of its range, or a document is too long and `overflow` is "error".
    """
    checked = checked_lengths(lengths)
    if not 1 <= capacity <= MAX_CAPACITY:
        raise UserError(f"a row capacity of {capacity} tokens is outside 1 to {MAX_CAPACITY}; choose one inside")
    if overflow not in OVERFLOWS:
        raise UserError(f"unknown overflow policy {overflow!r}; choose one of {', '.join(OVERFLOWS)}")
    policy = OVERFLOWS.index(overflow)
    counts, (culprit, empty, too_long, dropped_tokens) = _survey(checked, capacity, policy)
    if culprit >= 0:
        raise _refusal(culprit, int(checked[culprit]), capacity)
    row_offsets, item, start, stop = _rows(checked, counts, capacity, policy, seed)
    return PackPlan(
        row_offsets=row_offsets,
        item=item,
        start=start,
        stop=stop,
        capacity=capacity,
        overflow=overflow,
        seed=seed,
        documents=len(checked),
        tokens=int(counts @ np.arange(capacity + 1)),
        dropped_tokens=dropped_tokens,
        dropped_documents=too_long if overflow == "drop" else 0,
        truncated_documents=too_long if overflow == "truncate" else 0,
        split_documents=too_long if overflow == "split" else 0,
        empty_documents=empty,
    )


def save_plan(path: Path, packed: PackPlan) -> None:
    """Write a plan as an Arrow stream of one batch: a row per packed row, its fragments in one list column."""
    fragments = pa.StructArray.from_arrays(
        [pa.array(packed.item), pa.array(packed.start), pa.array(packed.stop)], fields=list(_FRAGMENT)
    )
    column = pa.LargeListArray.from_arrays(pa.array(packed.row_offsets), fragments)
    described = {name: getattr(packed, name) for name in ("capacity", "overflow", "seed", *_COUNTERS)}
    if packed.buckets:
        described["buckets"] = packed.buckets.as_json()
    schema = with_metadata(_SCHEMA, "plan", algorithm=ALGORITHM, **described)
    write_arrow(path, schema, [pa.record_batch([column], schema=schema)])


def load_plan(path: Path) -> PackPlan:
    """Map a plan that `save_plan` wrote; its arrays are read-only views of the file.

    Raises:
        UserError: the file is damaged or holds something else.
    """
    table = read_arrow(path)
    metadata = read_metadata(table.schema)
    if metadata.get("kind") != "plan" or table.column(0).num_chunks != 1:
        raise UserError(f"{path} holds {metadata.get('kind', 'something else')}, but a pack plan is needed; plan again")
    column = table.column(0).chunk(0)
    fragments = column.values
    item, start, stop = (fragments.field(name).to_numpy(zero_copy_only=True) for name in ("item", "start", "stop"))
    return PackPlan(
        row_offsets=column.offsets.to_numpy(zero_copy_only=True),
        item=item,
        start=start,
        stop=stop,
        buckets=Buckets.of(metadata["buckets"]) if "buckets" in metadata else None,
        **{name: metadata[name] for name in ("capacity", "overflow", "seed", *_COUNTERS)},
    )


def checked_lengths(lengths: npt.ArrayLike) -> Int64s:
    """`lengths` as int64[documents].

    Raises:
        UserError: they are not one dimension of integers of 0 or more.
    """
    given = np.asarray(lengths)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise UserError(
            f"document lengths must be one dimension of integers, not {given.ndim} dimensions of {given.dtype}; "
            "pass one integer per document"
        )
    checked = np.ascontiguousarray(given, dtype=np.int64)
    if checked.size and checked.min() < 0:  # uint64 beyond 2^63 ends here too
        index = int(np.argmax(checked < 0))
        raise UserError(f"document {index} has length {given[index]}; lengths are counts of tokens, 0 or more")
    return checked


def _refusal(index: int, length: int, capacity: int) -> UserError:
    return UserError(
        f"document {index} has {length} tokens, more than the row capacity {capacity}, and overflow is 'error'; "
        "raise the capacity, or choose overflow split, truncate or drop"
    )


@njit(cache=True, nogil=True)
def _survey(lengths: Int64s, capacity: int, policy: int) -> tuple[Int64s, tuple[int, int, int, int]]:
    """Count the fragments of every length: int64[capacity + 1], and (refused document or -1, empty documents, too
    long documents, dropped tokens)."""
    counts = np.zeros(capacity + 1, np.int64)
    too_long = dropped_tokens = 0
    for index in range(lengths.size):
        length = lengths[index]
        if length <= capacity:
            counts[length] += 1
            continue
        too_long += 1
        if policy == _ERROR:
            return counts, (index, 0, 0, 0)
        if policy == _SPLIT:
            counts[capacity] += length // capacity
            counts[length % capacity] += 1  # the tail; one of length 0 is taken back below
            if length % capacity == 0:
                counts[0] -= 1
        elif policy == _TRUNCATE:
            counts[capacity] += 1
            dropped_tokens += length - capacity
        else:
            dropped_tokens += length
    empty = counts[0]
    counts[0] = 0
    return counts, (-1, empty, too_long, dropped_tokens)


def _rows(
    lengths: Int64s, counts: Int64s, capacity: int, policy: int, seed: int
) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """The plan's row_offsets, item, start and stop."""
    events, bins = best_fit_decreasing(counts, capacity)
    queue_begin = np.zeros(capacity + 2, np.int64)  # where the queue of every length begins
    np.cumsum(counts, out=queue_begin[1:])
    fragments = int(queue_begin[-1])
    is_cut = policy == _SPLIT and bool(lengths.size) and int(lengths.max()) > capacity
    index_type = np.int32 if lengths.size < 2**31 else np.int64  # half the memory for the random reads below
    queue_item = np.empty(fragments, index_type)
    queue_start = np.empty(fragments if is_cut else 0, np.int64)
    _fill_queues(lengths, capacity, policy, queue_begin[:-1].copy(), queue_item, queue_start)
    shifts = _shifts(events, round_keys("queues", seed))
    row_of_bin = permutation(bins, round_keys("rows", seed))
    last_event = _last_events(events, bins)
    row_offsets = np.zeros(bins + 1, np.int64)
    row_offsets[row_of_bin + 1] = events["total"][last_event]
    np.cumsum(row_offsets, out=row_offsets)
    item, stop = np.empty(fragments, np.int64), np.empty(fragments, np.int64)
    start = np.zeros(fragments, np.int64)
    row_ends = row_offsets[row_of_bin + 1]
    _fill_rows(row_ends, last_event, events, shifts, queue_begin, queue_item, queue_start, item, start, stop)
    return row_offsets, item, start, stop


@njit(cache=True, nogil=True)
def _fill_queues(
    lengths: Int64s, capacity: int, policy: int, cursor: Int64s, queue_item: np.ndarray, queue_start: Int64s
) -> None:
    """Put the fragments of one length side by side, in document order: a counting sort by length.

    `cursor` is where the queue of each length begins and is moved along. `queue_start` stays empty, and every start
    is 0, unless documents are split.
    """
    for index in range(lengths.size):
        length = lengths[index]
        if length <= capacity:
            if length:
                place = cursor[length]
                cursor[length] += 1
                queue_item[place] = index
                if queue_start.size:
                    queue_start[place] = 0
        elif policy != _DROP:
            end = capacity if policy == _TRUNCATE else length
            for start in range(0, end, capacity):
                piece = min(capacity, end - start)
                place = cursor[piece]
                cursor[piece] += 1
                queue_item[place] = index
                if queue_start.size:
                    queue_start[place] = start


@njit(cache=True, nogil=True)
def _shifts(events: np.ndarray, keys: npt.NDArray[np.uint64]) -> Int64s:
    """A keyed shift per event, int64[events], each below the event's number of bins.

    Without it the n-th bins of a group would get the n-th items of every length, and a corpus that is ordered by
    source would give rows of a single source. Shifting every event by its own amount joins items from unrelated
    places, and reads memory in order as before.
    """
    shifts = np.empty(events.size, np.int64)
    for index in range(events.size):
        mixed = (np.uint64(index) + keys[0]) * keys[1]
        mixed = ((mixed ^ (mixed >> np.uint64(29))) + keys[2]) * (keys[3] | np.uint64(1))
        shifts[index] = np.int64(mixed >> np.uint64(2)) % events[index].bins
    return shifts


@njit(cache=True, nogil=True)
def _last_events(events: np.ndarray, bins: int) -> Int64s:
    last = np.empty(bins, np.int64)
    for index in range(events.size):
        event = events[index]
        last[event.first_bin : event.first_bin + event.bins] = index
    return last


@njit(cache=True, nogil=True)
def _fill_rows(
    row_ends: Int64s,
    last_event: Int64s,
    events: np.ndarray,
    shifts: Int64s,
    queue_begin: Int64s,
    queue_item: np.ndarray,
    queue_start: Int64s,
    item: Int64s,
    start: Int64s,
    stop: Int64s,
) -> None:
    """Write every bin to its row by walking its events from the last, which holds the shortest items, to the first.

    `row_ends` is where the row of each bin ends among the fragments, `last_event` the last event of each bin. Going
    from bin to bin, not from row to row, reads the queues in order; only the writes jump.
    """
    for bin_number in range(row_ends.size):
        index, place = last_event[bin_number], row_ends[bin_number]
        while index >= 0:
            event = events[index]
            # bin b of n takes the items t, t + n, t + 2n, ... of its event's part of the queue; t = b + shift mod n
            turn = bin_number - event.first_bin + shifts[index]
            if turn >= event.bins:
                turn -= event.bins
            source = queue_begin[event.length] + event.queue + turn
            for _ in range(event.each):
                place -= 1
                item[place] = queue_item[source]
                stop[place] = event.length
                if queue_start.size:
                    start[place] = queue_start[source]
                    stop[place] += queue_start[source]
                source += event.bins
            index = event.parent
