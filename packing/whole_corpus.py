"""Best-fit-decreasing over a whole corpus: from the events on counts to the fragments of every row.

    lengths --count--> counts --best_fit_decreasing--> events: which places of which queues every bin takes
    lengths --counting sort--> queues: the fragments of one length side by side, in document order
    bins --keyed permutation--> rows

Nothing else is sorted. All bins of a group have the same events, so their rows are filled together: for some bins at a
time, place by place, each place from neighbours in one queue. Reads follow the queues; the rows, which lie in a
shuffled order, are written while they are in the cache. Documents and bins are shared out among threads, and no result
depends on how many there are.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from seqmill.packing.best_fit import best_fit_decreasing
from seqmill.packing.fragments import SPLIT, Documents, Rows, kept_tokens
from seqmill.packing.permutation import permute_range, round_keys

Int64s = npt.NDArray[np.int64]
_CHUNK = 1 << 16  # documents or bins that are worth a thread
_SHARES = 8  # of the bins per thread: rows of many fragments lie together, and take longer
_TOGETHER = 4096  # fragments that are placed while their rows are in the cache


def pack(documents: Documents) -> Rows:
    """The rows of exact best-fit-decreasing, in an order that the seed draws; in a row, longer fragments come first."""
    lengths, capacity, policy = documents.lengths, documents.capacity, documents.policy
    with ThreadPoolExecutor(documents.threads) as pool:

        def each(work: Callable[..., None], *arguments: Iterable[Any]) -> None:
            for _ in pool.map(work, *arguments):
                pass

        chunks = _chunks(len(lengths), max(_CHUNK, 4 * capacity), documents.threads)  # each has a table by length
        tables = list(pool.map(lambda chunk: _count(lengths[chunk], capacity, policy), chunks))
        counts = np.sum(tables, axis=0)
        events, groups, bins = best_fit_decreasing(counts, capacity)
        shifts = _shifts(events, round_keys("queues", documents.seed))

        fragments = int(counts.sum())
        queue = np.empty(fragments, np.int32 if len(lengths) < 2**31 else np.int64)
        full_start = np.empty(int(counts[capacity]) if policy == SPLIT else 0, np.int64)
        begin = np.cumsum(counts) - counts  # of the queue of every length
        cursors = begin + np.cumsum(tables, axis=0) - tables
        each(
            lambda chunk, cursor: _fill_queues(
                lengths, chunk.start, chunk.stop, capacity, policy, cursor, queue, full_start
            ),
            chunks,
            cursors,
        )

        shares = _chunks(bins, _CHUNK, _SHARES * documents.threads)
        row_of_bin = np.empty(bins, np.int32 if bins < 2**31 else np.int64)
        keys = round_keys("rows", documents.seed)
        offsets = np.zeros(bins + 1, np.int64)
        each(lambda share: permute_range(share.start, bins, keys, row_of_bin[share]), shares)
        each(lambda share: _row_sizes(share.start, share.stop, groups, events, row_of_bin, offsets[1:]), shares)
        np.cumsum(offsets, out=offsets)
        item, start, stop = np.empty(fragments, np.int64), np.zeros(fragments, np.int64), np.empty(fragments, np.int64)
        rows = Rows(offsets, item, start, stop)
        each(
            lambda share: _fill_rows(
                share.start, share.stop, groups, events, shifts, begin, queue, lengths, row_of_bin, *rows
            ),
            shares,
        )
        if full_start.size:
            _place_full(full_start, int(shifts[0]), capacity, row_of_bin, offsets, start, stop)
    return rows


def _chunks(count: int, least: int, most: int) -> list[slice]:
    """range(count) in at most `most` parts, none but the last of fewer than `least`."""
    parts = max(1, min(most, count // least))
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


@njit(cache=True, nogil=True)
def _count(lengths: Int64s, capacity: int, policy: int) -> Int64s:
    """The fragments of every length: int64[capacity + 1], 0 of length 0."""
    counts = np.zeros(capacity + 1, np.int64)
    for length in lengths:
        if length <= capacity:
            counts[length] += 1
        else:
            kept = kept_tokens(length, capacity, policy)
            counts[capacity] += kept // capacity
            counts[kept % capacity] += 1  # the tail; without one, length 0
    counts[0] = 0
    return counts


@njit(cache=True, nogil=True)
def _fill_queues(
    lengths: Int64s,
    first: int,
    last: int,
    capacity: int,
    policy: int,
    cursor: Int64s,
    queue: np.ndarray,
    full_start: Int64s,
) -> None:
    """Put the fragments of one length side by side, in document order: a counting sort by length.

    A document that is in one fragment is put down as its index, the tail of a longer one as -1 - index: it begins where
    its length says. Of the pieces as long as a row, which all come at the end, `full_start` tells where they begin.

    Args:
        cursor: where the fragments of documents first to last go in the queue of each length; moved along.
    """
    full_begin = queue.size - full_start.size
    for index in range(first, last):
        length = lengths[index]
        if length < capacity:
            if length:
                queue[cursor[length]] = index
                cursor[length] += 1
            continue
        kept, start = kept_tokens(length, capacity, policy), 0
        while kept - start >= capacity:
            place = cursor[capacity]
            cursor[capacity] += 1
            queue[place] = index
            if full_start.size:
                full_start[place - full_begin] = start
            start += capacity
        if start < kept:
            queue[cursor[kept - start]] = -1 - index
            cursor[kept - start] += 1


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
def _row_sizes(
    first: int, last: int, groups: np.ndarray, events: np.ndarray, row_of_bin: np.ndarray, sizes: Int64s
) -> None:
    """The fragments of the rows of bins first to last, put into sizes int64[bins] by row."""
    number, begin = np.searchsorted(groups["first_bin"], first, "right") - 1, first
    while begin < last:
        group = groups[number]
        total, end = events[group.event].total, min(last, group.first_bin + group.bins)
        for bin_number in range(begin, end):
            sizes[row_of_bin[bin_number]] = total
        begin, number = end, number + 1


@njit(cache=True, nogil=True)
def _fill_rows(
    first: int,
    last: int,
    groups: np.ndarray,
    events: np.ndarray,
    shifts: Int64s,
    queue_begin: Int64s,
    queue: np.ndarray,
    lengths: Int64s,
    row_of_bin: np.ndarray,
    row_offsets: Int64s,
    item: Int64s,
    start: Int64s,
    stop: Int64s,
) -> None:
    """Write the rows of bins first to last, `start` only where it is not 0; `_place_full` mends pieces as long as rows.

    A row is written from its end, as the last event of its bin holds its shortest fragments.
    """
    ends = np.empty(_TOGETHER, np.int64)
    number, begin = np.searchsorted(groups["first_bin"], first, "right") - 1, first
    while begin < last:
        group = groups[number]
        end = min(last, group.first_bin + group.bins, begin + max(1, _TOGETHER // events[group.event].total))
        for place in range(end - begin):
            ends[place] = row_offsets[row_of_bin[begin + place] + 1]
        index, slot = group.event, 1
        while index >= 0:
            event = events[index]
            # bin b of n takes the items t, t + n, t + 2n, ... of its event's part of the queue; t = b + shift mod n
            turn = (begin - event.first_bin + shifts[index]) % event.bins
            turn_begin = queue_begin[event.length] + event.queue
            for _ in range(event.each):
                source, turn_end = turn_begin + turn, turn_begin + event.bins
                for place in range(end - begin):
                    where, found = ends[place] - slot, queue[source]
                    if found >= 0:
                        item[where], stop[where] = found, event.length
                    else:  # the tail of a document
                        item[where], stop[where] = -1 - found, lengths[-1 - found]
                        start[where] = lengths[-1 - found] - event.length
                    source += 1
                    if source == turn_end:
                        source = turn_begin
                turn_begin = turn_end
                slot += 1
            index = event.parent
        begin = end
        number += begin == group.first_bin + group.bins


@njit(cache=True, nogil=True)
def _place_full(
    full_start: Int64s,
    shift: int,
    capacity: int,
    row_of_bin: np.ndarray,
    row_offsets: Int64s,
    start: Int64s,
    stop: Int64s,
) -> None:
    """Say where the pieces as long as a row lie in their documents: the first event, a bin for each."""
    source = shift
    for bin_number in range(full_start.size):
        where = row_offsets[row_of_bin[bin_number]]
        start[where], stop[where] = full_start[source], full_start[source] + capacity
        source += 1
        if source == full_start.size:
            source = 0
