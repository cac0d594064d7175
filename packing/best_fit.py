"""Best-fit-decreasing on counts: exact, in time that depends on the lengths that occur and not on the number of items.

Best-fit-decreasing (Ding et al. 2024, arXiv 2404.10830) takes the items from long to short and puts each where the
least room is left. Items of one length are interchangeable (Krell et al. 2021, arXiv 2107.02027), and so are bins with
one residual. A bin that just took an item of length l and still has room for another is now the tightest of all
that can take one, so it goes on being filled: with residual s it takes s // l items before any other bin is touched.
A whole group of equal bins is therefore filled by one division, which this module records as one event.

    counts = {5: 1, 3: 3}, capacity 8
    event 0: 1 new bin  (bin 0)    takes 1 item  of length 5, residual 3
    event 1: 1 old bin  (bin 0)    takes 1 item  of length 3, residual 0, parent event 0
    event 2: 1 new bin  (bin 1)    takes 2 items of length 3, residual 2

A group is split at a bin boundary only, so its bins stay a contiguous range. An event at least halves the residual of
its bins (s mod l < s / 2), hence there are at most O(capacity log capacity) of them. Of several groups with one
residual, the one that was touched last is filled first.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

EVENT = np.dtype(
    [
        ("first_bin", np.int64),  # the event fills bins first_bin .. first_bin + bins
        ("bins", np.int64),
        ("each", np.int64),  # items that every one of these bins takes
        ("length", np.int64),  # of these items, in tokens
        ("queue", np.int64),  # position of the event's first item among all items of this length
        ("parent", np.int64),  # the event that filled the same bins before, or -1
        ("total", np.int64),  # items in each of these bins after the event
    ]
)
GROUP = np.dtype(
    [
        ("first_bin", np.int64),  # bins first_bin .. first_bin + bins have the same residual
        ("bins", np.int64),
        ("event", np.int64),  # the last event of these bins, or -1 for those without one
        ("below", np.int64),  # the next group with the same residual, or -1
    ]
)
_LOW_SIX = np.int64(63)
_ONE = np.uint64(1)

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


class Shelves(NamedTuple):
    """The groups of bins by residual, for residuals 0 to capacity."""

    bits: UInt64s  # a bit for every residual above 0 that some group has
    summary: UInt64s  # a bit for every word of `bits` that is not zero
    heads: Int64s  # int64[capacity + 1]: of each residual the group that was touched last, or -1


@njit(cache=True, nogil=True)
def empty_shelves(capacity: int) -> Shelves:
    """Shelves without groups."""
    bits = np.zeros((capacity >> 6) + 1, np.uint64)
    return Shelves(bits, np.zeros((bits.size >> 6) + 1, np.uint64), np.full(capacity + 1, -1, np.int64))


@njit(cache=True, nogil=True)
def _with_room(records: np.ndarray, used: int, wanted: int) -> np.ndarray:
    if used + wanted <= records.size:
        return records
    larger = np.empty(2 * records.size + wanted, records.dtype)
    larger[:used] = records[:used]
    return larger


@njit(cache=True, nogil=True)
def _lowest_bit(word: np.uint64) -> int:
    position = 0
    while not word & _ONE:
        word >>= _ONE
        position += 1
    return position


@njit(cache=True, nogil=True)
def mark(shelves: Shelves, residual: int) -> None:
    """Bring the bits up to date with whether any group has this residual."""
    bits, summary, word = shelves.bits, shelves.summary, residual >> 6
    bit = _ONE << np.uint64(residual & _LOW_SIX)
    bits[word] = bits[word] | bit if residual and shelves.heads[residual] >= 0 else bits[word] & ~bit
    bit = _ONE << np.uint64(word & _LOW_SIX)
    summary[word >> 6] = summary[word >> 6] | bit if bits[word] else summary[word >> 6] & ~bit


@njit(cache=True, nogil=True)
def tightest(shelves: Shelves, length: int) -> int:
    """The smallest residual >= `length` that some group has, or -1."""
    bits, summary, word = shelves.bits, shelves.summary, length >> 6
    if word >= bits.size:
        return -1
    found = bits[word] >> np.uint64(length & _LOW_SIX)
    if found:
        return length + _lowest_bit(found)
    word += 1
    top = word >> 6
    if top >= summary.size:
        return -1
    found = summary[top] >> np.uint64(word & _LOW_SIX)
    if not found:
        top += 1
        while top < summary.size and not summary[top]:
            top += 1
        if top == summary.size:
            return -1
        found = summary[top]
        word = top << 6
    word += _lowest_bit(found)
    return (word << 6) + _lowest_bit(bits[word])


@njit(cache=True, nogil=True)
def push(shelves: Shelves, groups: np.ndarray, used: int, residual: int, first_bin: int, bins: int, event: int) -> int:
    """Put a group on the shelf of its residual, as record `used` of `groups`; returns the records in use."""
    groups[used].first_bin = first_bin
    groups[used].bins = bins
    groups[used].event = event
    groups[used].below = shelves.heads[residual]
    shelves.heads[residual] = used
    mark(shelves, residual)
    return used + 1


@njit(cache=True, nogil=True)
def _record(
    events: np.ndarray, used: int, first_bin: int, bins: int, each: int, length: int, queue: int, parent: int
) -> int:
    events[used].first_bin = first_bin
    events[used].bins = bins
    events[used].each = each
    events[used].length = length
    events[used].queue = queue
    events[used].parent = parent
    events[used].total = each + (events[parent].total if parent >= 0 else 0)
    return used + 1


@njit(cache=True, nogil=True)
def fill(
    lengths: Int64s, counts: Int64s, shelves: Shelves, groups: np.ndarray, used_groups: int, all_bins: int
) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Put items into the bins that are on the shelves, and into new ones.

    Args:
        lengths: the lengths that occur, longest first; of each there are counts[length] items.
        groups, used_groups: the records of the groups on the shelves.
        all_bins: the number of the next new bin.

    Returns:
        The events in the order in which they happen, EVENT[...]; groups, used_groups and all_bins as they are now.
    """
    heads = shelves.heads
    events, used_events = np.empty(1024, EVENT), 0
    for length in lengths:
        left, queue = counts[length], 0
        while left > 0:
            groups = _with_room(groups, used_groups, 3)
            events = _with_room(events, used_events, 2)
            residual = tightest(shelves, length)
            if residual < 0:  # no bin has room: open as many as the rest of this length needs
                residual, first_bin, parent = heads.size - 1, all_bins, -1
                each = residual // length
                bins = (left + each - 1) // each
                all_bins += bins
            else:
                group = groups[heads[residual]]
                first_bin, bins, parent = group.first_bin, group.bins, group.event
                heads[residual] = group.below
                each = residual // length
            full = min(bins, left // each)
            for filled, take in ((full, each), (1, left - full * each)):
                # first the bins that take all they can hold, then, if bins are left, the one that takes the rest
                if filled > 0 and take > 0 and bins > 0:
                    used_events = _record(events, used_events, first_bin, filled, take, length, queue, parent)
                    after = residual - take * length
                    used_groups = push(shelves, groups, used_groups, after, first_bin, filled, used_events - 1)
                    first_bin, bins, queue, left = (
                        first_bin + filled,
                        bins - filled,
                        queue + filled * take,
                        left - filled * take,
                    )
            if bins > 0:
                used_groups = push(shelves, groups, used_groups, residual, first_bin, bins, parent)
            mark(shelves, residual)
    return events[:used_events], groups, used_groups, all_bins


@njit(cache=True, nogil=True)
def _all_groups(shelves: Shelves, groups: np.ndarray) -> np.ndarray:
    """The groups on all shelves by their first bin."""
    found = np.empty(groups.size, GROUP)
    count = 0
    for residual in range(shelves.heads.size):
        group = shelves.heads[residual]
        while group >= 0:
            found[count] = groups[group]
            count += 1
            group = groups[group].below
    return found[np.argsort(found["first_bin"][:count])]


@njit(cache=True, nogil=True)
def best_fit_decreasing(counts: Int64s, capacity: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Pack `counts[l]` items of every length l into bins of `capacity`.

    Args:
        counts: int64[capacity + 1], items per length in tokens; counts[0] is 0.

    Returns:
        The events in the order in which they happen, EVENT[...]; the groups of bins that had the same events,
        GROUP[...], side by side from bin 0 on; and the number of bins.
    """
    shelves = empty_shelves(capacity)
    lengths = np.flatnonzero(counts)[::-1].copy()
    events, groups, _, bins = fill(lengths, counts, shelves, np.empty(1024, GROUP), 0, 0)
    return events, _all_groups(shelves, groups), bins
