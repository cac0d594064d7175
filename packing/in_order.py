"""Packers that keep documents in their order: concatenation, first-fit, and rows from any assignment of bins.

In a row, fragments are in the order of the documents. No seed changes anything.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from seqmill.packing.fragments import Documents, Rows, count_fragments, kept_tokens

Int64s = npt.NDArray[np.int64]


def concatenate(documents: Documents) -> Rows:
    """One document after the other, cut where a row is full: all rows but the last are.

    Only for the policy "split": here it is the end of a row that cuts a document, not its length.
    """
    tokens = int(documents.lengths.sum())
    row_offsets = np.zeros(-(-tokens // documents.capacity) + 1, np.int64)
    fragments = _count_cuts(documents.lengths, documents.capacity)
    item, start, stop = (np.empty(fragments, np.int64) for _ in range(3))
    _cut(documents.lengths, documents.capacity, row_offsets, item, start, stop)
    return Rows(row_offsets, item, start, stop)


def first_fit(documents: Documents) -> Rows:
    """Every fragment, in order, into the first row with room for it; O(N log rows)."""
    lengths, capacity, policy = documents.lengths, documents.capacity, documents.policy
    bin_of_fragment = np.empty(count_fragments(lengths, capacity, policy), np.int64)
    bins = _first_fit(lengths, capacity, policy, bin_of_fragment)
    return rows_of_bins(documents, bin_of_fragment, np.zeros(bins, np.int64))


def rows_of_bins(documents: Documents, bin_of_fragment: Int64s, rank_of_bin: Int64s) -> Rows:
    """A row per bin, by rank, and of one rank by the first fragment.

    Args:
        bin_of_fragment: int64[fragments], in the order of the documents.
        rank_of_bin: int64[bins], 0 or more.
    """
    row_of_bin, row_offsets = _order_bins(bin_of_fragment, rank_of_bin)
    item, start, stop = (np.empty(len(bin_of_fragment), np.int64) for _ in range(3))
    cursor = row_offsets[:-1].copy()
    lengths, capacity, policy = documents.lengths, documents.capacity, documents.policy
    _place(lengths, capacity, policy, bin_of_fragment, row_of_bin, cursor, item, start, stop)
    return Rows(row_offsets, item, start, stop)


@njit(cache=True, nogil=True)
def _count_cuts(lengths: Int64s, capacity: int) -> int:
    fragments, used = 0, 0  # used: tokens of the open row
    for length in lengths:
        if used + length < capacity:  # the usual case, without a division
            fragments += length > 0
            used += length
        else:
            fragments += (used + length + capacity - 1) // capacity - (used == capacity)
            used = (used + length - 1) % capacity + 1
    return fragments


@njit(cache=True, nogil=True)
def _cut(lengths: Int64s, capacity: int, row_offsets: Int64s, item: Int64s, start: Int64s, stop: Int64s) -> None:
    fragment, row, used = 0, 0, 0
    for index in range(lengths.size):
        begin = 0
        while begin < lengths[index]:
            end = min(lengths[index], begin + capacity - used)
            item[fragment], start[fragment], stop[fragment] = index, begin, end
            fragment += 1
            used += end - begin
            begin = end
            if used == capacity:
                row, used = row + 1, 0
                row_offsets[row] = fragment
    row_offsets[-1] = fragment


@njit(cache=True, nogil=True)
def _first_fit(lengths: Int64s, capacity: int, policy: int, bin_of_fragment: Int64s) -> int:
    """Write the bin of every fragment; returns the number of bins.

    The leaves of a binary tree are the rooms of the bins, used or not yet, and every inner node is the most room below
    it. Node n has the children 2n and 2n + 1; the tree grows by a new root, whose left half is the tree so far.
    """
    leaves, bins, fragment = 1, 0, 0
    room = np.full(2, capacity, np.int64)
    for length in lengths:
        left = kept_tokens(length, capacity, policy)
        while left > 0:
            piece = min(left, capacity)
            left -= piece
            if room[1] < piece:
                room = _grown(room, capacity)
                leaves *= 2
            node = 1
            while node < leaves:
                node *= 2
                if room[node] < piece:
                    node += 1
            bin_of_fragment[fragment] = node - leaves
            bins = max(bins, node - leaves + 1)
            fragment += 1
            room[node] -= piece
            while node > 1:
                node >>= 1
                room[node] = max(room[2 * node], room[2 * node + 1])
    return bins


@njit(cache=True, nogil=True)
def _grown(room: Int64s, capacity: int) -> Int64s:
    """The tree with twice the leaves; the new ones are empty bins."""
    larger = np.full(2 * room.size, capacity, np.int64)
    level = 1
    while level < room.size:  # a level of the old tree is the left half of the next level of the new one
        larger[2 * level : 3 * level] = room[level : 2 * level]
        level *= 2
    return larger


@njit(cache=True, nogil=True)
def _order_bins(bin_of_fragment: Int64s, rank_of_bin: Int64s) -> tuple[Int64s, Int64s]:
    """The row of every bin, int64[bins], and where the rows begin among the fragments, int64[bins + 1]."""
    bins = rank_of_bin.size
    cursor = np.zeros(rank_of_bin.max() + 2 if bins else 1, np.int64)
    for rank in rank_of_bin:
        cursor[rank + 1] += 1
    cursor = np.cumsum(cursor)
    row_of_bin, row_offsets = np.full(bins, -1, np.int64), np.zeros(bins + 1, np.int64)
    for bin_number in bin_of_fragment:
        if row_of_bin[bin_number] < 0:
            row_of_bin[bin_number] = cursor[rank_of_bin[bin_number]]
            cursor[rank_of_bin[bin_number]] += 1
        row_offsets[row_of_bin[bin_number] + 1] += 1
    return row_of_bin, np.cumsum(row_offsets)


@njit(cache=True, nogil=True)
def _place(
    lengths: Int64s,
    capacity: int,
    policy: int,
    bin_of_fragment: Int64s,
    row_of_bin: Int64s,
    cursor: Int64s,
    item: Int64s,
    start: Int64s,
    stop: Int64s,
) -> None:
    """Write every fragment to where the cursor of its row is, and move that along."""
    fragment = 0
    for index in range(lengths.size):
        kept, begin = kept_tokens(lengths[index], capacity, policy), 0
        while begin < kept:
            row = row_of_bin[bin_of_fragment[fragment]]
            place = cursor[row]
            cursor[row] += 1
            item[place], start[place], stop[place] = index, begin, min(begin + capacity, kept)
            begin += capacity
            fragment += 1
