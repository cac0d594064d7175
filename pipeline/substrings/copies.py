"""Copies among the occurrences of one gram: which windows start at an earlier place too, decided by bytes."""

import numba
import numpy as np

from seqmill.pipeline.substrings.anchors import BASE
from seqmill.pipeline.substrings.places import byte_at, equal_bytes
from seqmill.pipeline.substrings.rows import with_room

START, WINDOWS, SOURCE, OCCURRENCES = range(4)  # columns of copy rows


@numba.njit(nogil=True, cache=True, inline="always")
def _window_hash(address: np.uint64, min_bytes: int) -> np.uint64:
    """Sum of byte[i] * BASE ** i."""
    hash_ = np.uint64(0)
    for at in range(min_bytes - 1, -1, -1):
        hash_ = hash_ * BASE + np.uint64(byte_at(address + np.uint64(at)))
    return hash_


@numba.njit(nogil=True, cache=True)
def find_copies(
    bounds: np.ndarray,
    addresses: np.ndarray,
    places: np.ndarray,
    nearest: np.ndarray,
    farthest: np.ndarray,
    min_bytes: int,
) -> np.ndarray:
    """The windows of anchors that are copies of a window of an earlier anchor with the same gram.

    At one distance, in order of place, every window is looked up in a table of those met before: a new one enters it,
    a known one is a copy, and so are the windows before it for as long as the bytes stay the same. The rest of the
    look-ups skip those. Hashes only choose where to look; windows that share a hash by chance lie side by side.

    Args:
        bounds: int64[groups + 1]; the anchors bounds[g] to bounds[g + 1] share a gram and ascend in place.
        addresses, places: uint64[anchors], int64[anchors]: of each gram's first byte.
        nearest, farthest: uint16[anchors]: the distances of the windows that have this anchor.

    Returns:
        int64[copies, 4]: place of the first window, number of windows, earlier place of the same bytes, and how many
        occurrences of the content there are: the first and its copies.
    """
    largest = 1
    for group in range(len(bounds) - 1):
        largest = max(largest, bounds[group + 1] - bounds[group])
    size = 2
    while size < 2 * largest:
        size *= 2
    slots = np.empty(size, np.int64)
    stamps = np.zeros(size, np.int64)  # a slot is taken if it bears the stamp of this group and distance
    hashes = np.empty(largest, np.uint64)
    hashed = np.empty(largest, np.int64)  # the distance that hashes[i] is of
    done = np.empty(largest, np.int64)  # windows up to this distance are copies
    copies = np.empty(largest, np.int64)  # of windows of this anchor
    leaving = np.uint64(1)  # BASE ** min_bytes: the weight of the byte that leaves, once the others moved up
    for _ in range(min_bytes):
        leaving *= BASE
    rows = np.empty((1024, 4), np.int64)
    count = 0
    stamp = 0
    for group in range(len(bounds) - 1):
        first, members = bounds[group], bounds[group + 1] - bounds[group]
        size = 2
        while size < 2 * members:
            size *= 2
        ring = np.uint64(size - 1)
        first_row = count
        low, high = np.int64(nearest[first]), np.int64(farthest[first])
        for member in range(members):
            hashed[member], done[member], copies[member] = -2, -1, 0
            low = min(low, np.int64(nearest[first + member]))
            high = max(high, np.int64(farthest[first + member]))
        for distance in range(low, high + 1):
            stamp += 1
            for member in range(members):
                anchor = first + member
                if distance <= done[member] or distance < nearest[anchor] or distance > farthest[anchor]:
                    continue
                window = addresses[anchor] - np.uint64(distance)
                if hashed[member] == distance - 1:
                    left = np.uint64(byte_at(window + np.uint64(min_bytes)))
                    hashes[member] = hashes[member] * BASE + np.uint64(byte_at(window)) - left * leaving
                else:
                    hashes[member] = _window_hash(window, min_bytes)
                hashed[member] = distance
                slot = ((hashes[member] * BASE) >> np.uint64(24)) & ring
                while stamps[slot] == stamp:
                    other = slots[slot]
                    if hashes[other] == hashes[member] and equal_bytes(
                        window, addresses[first + other] - np.uint64(distance), min_bytes
                    ):
                        break
                    slot = (slot + np.uint64(1)) & ring
                if stamps[slot] != stamp:
                    stamps[slot], slots[slot] = stamp, member
                    continue
                source = first + slots[slot]
                farther = distance
                limit = min(np.int64(farthest[anchor]), np.int64(farthest[source]))
                while farther < limit and byte_at(addresses[anchor] - np.uint64(farther + 1)) == byte_at(
                    addresses[source] - np.uint64(farther + 1)
                ):
                    farther += 1
                done[member] = farther
                copies[slots[slot]] += 1
                rows = with_room(rows, count)
                rows[count, START] = places[anchor] - farther
                rows[count, WINDOWS] = farther - distance + 1
                rows[count, SOURCE] = places[source] - farther
                rows[count, OCCURRENCES] = slots[slot]
                count += 1
        for row in range(first_row, count):
            rows[row, OCCURRENCES] = copies[rows[row, OCCURRENCES]] + 1
    return rows[:count]
