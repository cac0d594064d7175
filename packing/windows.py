"""Best-fit-decreasing in windows, for corpora whose order matters: curricula, shuffled streams, sorted sources.

    documents  | window 0      | window 1      | window 2 ...
    bins         aaaaaaaaaaaaaa  bbbbbbbbbbbbbb          all bins with little room are closed after their window
                            a'   a'      b'      b'      those with more stay open for the next one, and no longer

Rows lie in the order in which their bins are closed, those of one window by their first fragment; in a row, fragments
are in the order of the documents. So the row of a document of window w comes with those that close after window w or
w + 1: documents that are 2 * window or more apart never change places. No seed changes anything.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from seqmill.packing.best_fit import GROUP, Shelves, empty_shelves, fill, mark, push, tightest
from seqmill.packing.fragments import Documents, Rows, count_fragments, kept_tokens
from seqmill.packing.in_order import rows_of_bins

Int64s = npt.NDArray[np.int64]
OPEN_SHARE = 64  # a bin stays open if more than 1 / OPEN_SHARE of it is empty


def pack(documents: Documents) -> Rows:
    """The rows of best-fit-decreasing on windows of `documents.window` documents."""
    lengths, capacity, policy = documents.lengths, documents.capacity, documents.policy
    bin_of_fragment = np.empty(count_fragments(lengths, capacity, policy), np.int64)
    closing = np.empty(len(bin_of_fragment), np.int64)
    bins = _pack(lengths, capacity, policy, documents.window, capacity // OPEN_SHARE + 1, bin_of_fragment, closing)
    return rows_of_bins(documents, bin_of_fragment, closing[:bins])


@njit(cache=True, nogil=True)
def _pack(
    lengths: Int64s,
    capacity: int,
    policy: int,
    window: int,
    open_room: int,
    bin_of_fragment: Int64s,
    closing: Int64s,
) -> int:
    """Write the bin of every fragment, and the window after which every bin is closed.

    Args:
        open_room: bins with at least so much room stay open for one more window.

    Returns:
        The number of bins.
    """
    shelves, groups, used_groups = empty_shelves(capacity), np.empty(1024, GROUP), 0
    counts, cursor = np.zeros(capacity + 1, np.int64), np.zeros(capacity + 1, np.int64)
    bins = first_fragment = 0
    for number, first in enumerate(range(0, lengths.size, window)):
        here = lengths[first : first + window]
        found, fragments = _count(here, capacity, policy, counts)
        queue = _queues(here, capacity, policy, found, counts, cursor, fragments)
        old_bins = bins
        events, groups, used_groups, bins = fill(found, counts, shelves, groups, used_groups, bins)
        for event in events:
            place = cursor[event.length] - counts[event.length] + event.queue
            for bin_number in range(event.first_bin, event.first_bin + event.bins):
                for _ in range(event.each):
                    bin_of_fragment[first_fragment + queue[place]] = bin_number
                    place += 1
        closing[old_bins:bins] = number
        groups, used_groups = _clear(shelves, groups, open_room, old_bins)
        for group in groups[:used_groups]:
            closing[group.first_bin : group.first_bin + group.bins] = number + 1
        counts[found] = 0
        first_fragment += fragments
    return bins


@njit(cache=True, nogil=True)
def _count(lengths: Int64s, capacity: int, policy: int, counts: Int64s) -> tuple[Int64s, int]:
    """Count the fragments of every length; returns the lengths that occur, longest first, and the fragments."""
    found, fragments = np.empty(min(capacity, 2 * lengths.size), np.int64), 0
    kinds = 0
    for length in lengths:
        left = kept_tokens(length, capacity, policy)
        while left > 0:
            piece = min(left, capacity)
            if counts[piece] == 0:
                found[kinds] = piece
                kinds += 1
            counts[piece] += 1
            fragments += 1
            left -= piece
    return np.sort(found[:kinds])[::-1].copy(), fragments


@njit(cache=True, nogil=True)
def _queues(
    lengths: Int64s, capacity: int, policy: int, found: Int64s, counts: Int64s, cursor: Int64s, fragments: int
) -> Int64s:
    """The numbers of the fragments, by length and then in their order; `cursor` is left where each length ends."""
    begin = 0
    for length in found:
        cursor[length] = begin
        begin += counts[length]
    queue, fragment = np.empty(fragments, np.int64), 0
    for length in lengths:
        left = kept_tokens(length, capacity, policy)
        while left > 0:
            piece = min(left, capacity)
            queue[cursor[piece]] = fragment
            cursor[piece] += 1
            fragment += 1
            left -= piece
    return queue


@njit(cache=True, nogil=True)
def _clear(shelves: Shelves, groups: np.ndarray, open_room: int, old_bins: int) -> tuple[np.ndarray, int]:
    """Take all groups off the shelves but those with `open_room` tokens or more that were opened in this window.

    Args:
        old_bins: those before it; whatever was open before is closed now.
    """
    kept, used = np.empty(1024, GROUP), 0
    shelves.heads[0] = -1
    residual = tightest(shelves, 1)
    while residual > 0:
        number = shelves.heads[residual]
        shelves.heads[residual] = -1
        mark(shelves, residual)
        while number >= 0:
            group = groups[number]
            if residual >= open_room and group.first_bin >= old_bins:
                if used == kept.size:
                    kept = np.concatenate((kept, np.empty_like(kept)))
                used = push(shelves, kept, used, residual, group.first_bin, group.bins, -1)
            number = group.below
        residual = tightest(shelves, residual + 1)
    return kept, used
