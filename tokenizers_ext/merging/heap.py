"""A binary heap of pair numbers whose scores may change while they are in it.

The best pair has the highest score and, among equals, the lowest key: ties do not depend on the order of insertion.
`place` says where each pair stands, so that a changed score moves one pair and leaves no stale entry behind.
"""

from typing import NamedTuple

import numba
import numpy as np

ABSENT = -1


class Heap(NamedTuple):
    """Arrays over pair numbers, and the heap itself."""

    keys: np.ndarray  # uint64[pairs]
    scores: np.ndarray  # float64[pairs]
    place: np.ndarray  # int32[pairs]: position in `order`, or ABSENT
    order: np.ndarray  # int32[pairs]: the heap; its length is kept by the caller


@numba.njit(nogil=True, cache=True, inline="always")
def _better(keys: np.ndarray, scores: np.ndarray, one: int, other: int) -> bool:
    return scores[one] > scores[other] or (scores[one] == scores[other] and keys[one] < keys[other])


@numba.njit(nogil=True, cache=True)
def rise(heap: Heap, at: int) -> None:
    """Move the pair at position `at` up to where it belongs."""
    keys, scores, place, order = heap
    pair = order[at]
    while at > 0:
        parent = (at - 1) // 2
        above = order[parent]
        if not _better(keys, scores, pair, above):
            break
        order[at] = above
        place[above] = at
        at = parent
    order[at] = pair
    place[pair] = at


@numba.njit(nogil=True, cache=True)
def sink(heap: Heap, at: int, length: int) -> None:
    """Move the pair at position `at` down to where it belongs."""
    keys, scores, place, order = heap
    pair = order[at]
    while 2 * at + 1 < length:
        child = 2 * at + 1
        if child + 1 < length and _better(keys, scores, order[child + 1], order[child]):
            child += 1
        below = order[child]
        if not _better(keys, scores, below, pair):
            break
        order[at] = below
        place[below] = at
        at = child
    order[at] = pair
    place[pair] = at


@numba.njit(nogil=True, cache=True)
def push(heap: Heap, pair: int, length: int) -> int:
    """Put a pair in; returns the new length."""
    heap.order[length] = pair
    rise(heap, length)
    return length + 1


@numba.njit(nogil=True, cache=True)
def pop(heap: Heap, length: int) -> int:
    """Take the best pair out; returns the new length."""
    heap.place[heap.order[0]] = ABSENT
    length -= 1
    if length:
        heap.order[0] = heap.order[length]
        sink(heap, np.int64(0), length)
    return length
