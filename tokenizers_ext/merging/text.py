"""The text that merging works on: tokens in flat arrays, cut into segments that no merge crosses.

Every token stands at its first slot. A merge joins two neighbours by writing the new id at the first slot of the left
one and the joint span at its first and last slot, so both neighbours are found without pointers:

    slot      0   1   2   3   4          the token after slot s begins at s + span[s],
    symbol    t   h   e   -   x          the one before it at s - span[s - 1]
    merged    th  .   e   -   x
    span      2   2   1   1   1
"""

from typing import NamedTuple

import numba
import numpy as np

NO_PAIR = -1
MOST_KINDS = 1 << 16  # kinds of pairs that a text is thought to have at first: all pairs of bytes

# Kernels unpack the tuples below before they loop: reading a field inside a loop counts references every time.


class Text(NamedTuple):
    """Tokens under merging; n slots, one for every token at the start."""

    symbols: np.ndarray  # int32[n]: the id of the token that begins here
    spans: np.ndarray  # int32[n]: slots of a token, at its first and last slot
    segments: np.ndarray  # int32[n]: ascending; merges stay within one segment
    weights: np.ndarray  # int64[segments]: how often the segment occurs
    pair_at: np.ndarray  # int32[n]: number of the pair that begins here, or NO_PAIR


class Pairs(NamedTuple):
    """Neighbouring tokens; all of one pair arise at once, so its positions lie together in ascending order."""

    keys: np.ndarray  # uint64[pairs]: left id << 32 | right id
    counts: np.ndarray  # int64[pairs]: weighted occurrences that are left, overlapping ones too ("aaa" has two "aa")
    first: np.ndarray  # int64[pairs]: where its positions begin
    sizes: np.ndarray  # int64[pairs]: how many positions were noted; those that are gone have another pair_at


def text_of(symbols: np.ndarray, segments: np.ndarray, weights: np.ndarray) -> Text:
    """A text of one slot a token; `symbols` is copied.

    Args:
        symbols: integers[n], the ids.
        segments: integers[n], ascending from 0 or more.
        weights: int64[segments].
    """
    n = len(symbols)
    pair_at = np.full(n, NO_PAIR, np.int32)
    return Text(symbols.astype(np.int32), np.ones(n, np.int32), segments.astype(np.int32), weights, pair_at)


def remaining(text: Text, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens as they are now.

    Args:
        starts: int64[rows + 1], slots where rows begin, and the end.

    Returns:
        ids int32[tokens], and int64[rows + 1] offsets of the rows into them.
    """
    ids = np.empty(len(text.symbols), np.int32)
    offsets = np.zeros(len(starts), np.int64)
    found = _remaining(text, starts, ids, offsets)
    return ids[:found].copy(), offsets


@numba.njit(nogil=True, cache=True)
def _remaining(text: Text, starts: np.ndarray, ids: np.ndarray, offsets: np.ndarray) -> int:
    symbols, spans, _, _, _ = text
    found = 0
    for row in range(len(starts) - 1):
        at = starts[row]
        while at < starts[row + 1]:
            ids[found] = symbols[at]
            found += 1
            at += spans[at]
        offsets[row + 1] = found
    return found


@numba.njit(nogil=True, cache=True, inline="always")
def left_of(spans: np.ndarray, segments: np.ndarray, at: int) -> int:
    """The token before the one at slot `at`, in the same segment; -1 when there is none."""
    if at == 0 or segments[at - 1] != segments[at]:
        return -1
    return at - spans[at - 1]


@numba.njit(nogil=True, cache=True, inline="always")
def right_of(spans: np.ndarray, segments: np.ndarray, at: int) -> int:
    """The token behind the one at slot `at`, in the same segment; -1 when there is none."""
    following = at + spans[at]
    if following == len(segments) or segments[following] != segments[at]:
        return -1
    return following


@numba.njit(nogil=True, cache=True)
def number_pairs(text: Text) -> tuple[np.ndarray, np.ndarray]:
    """Number the pairs of a text in the order of their first occurrence and write `pair_at`.

    Returns:
        keys uint64[pairs] and sizes int64[pairs].
    """
    symbols, spans, segments, _, pair_at = text
    capacity = 1 << 8
    while capacity < min(len(symbols), MOST_KINDS):
        capacity *= 2
    slots = np.full(2 * capacity, -1, np.int32)
    keys = np.empty(capacity, np.uint64)
    sizes = np.zeros(capacity, np.int64)
    found, following = 0, 0
    while following < len(symbols):
        at, following = following, following + spans[following]
        pair_at[at] = NO_PAIR
        if following == len(symbols) or segments[following] != segments[at]:
            continue
        if found == capacity:
            capacity *= 4
            keys, sizes = _longer(keys, capacity), _longer(sizes, capacity)
            slots = np.full(2 * capacity, -1, np.int32)
            for pair in range(found):
                slots[_slot_of(slots, keys, keys[pair])] = pair
        key = np.uint64(symbols[at]) << np.uint64(32) | np.uint64(symbols[following])
        slot = _slot_of(slots, keys, key)
        if slots[slot] < 0:
            slots[slot] = found
            keys[found] = key
            sizes[found] = 0
            found += 1
        pair_at[at] = slots[slot]
        sizes[slots[slot]] += 1
    return keys[:found], sizes[:found]


@numba.njit(nogil=True, cache=True, inline="always")
def _slot_of(slots: np.ndarray, keys: np.ndarray, key: int) -> int:
    """Where `key` is, or where it belongs, in an open table."""
    mask = np.uint64(len(slots) - 1)
    slot = (key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & mask
    while slots[slot] >= 0 and keys[slots[slot]] != key:
        slot = (slot + np.uint64(1)) & mask
    return int(slot)


@numba.njit(nogil=True, cache=True)
def _longer(array: np.ndarray, length: int) -> np.ndarray:
    longer = np.empty(length, array.dtype)
    longer[: len(array)] = array
    return longer


@numba.njit(nogil=True, cache=True)
def note_positions(text: Text, pairs: Pairs, positions: np.ndarray) -> None:
    """Write the positions and counts of the pairs that `number_pairs` found; `first` holds where each begins."""
    symbols, spans, segments, weights, pair_at = text
    _, counts, first, sizes = pairs
    sizes[:] = 0
    at = 0
    while at < len(symbols):
        pair = pair_at[at]
        if pair >= 0:
            positions[first[pair] + sizes[pair]] = at
            sizes[pair] += 1
            counts[pair] += weights[segments[at]]
        at += spans[at]
