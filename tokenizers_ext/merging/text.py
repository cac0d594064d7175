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
    segments = segments.astype(np.int32, copy=False)
    return Text(symbols.astype(np.int32), np.ones(n, np.int32), segments, weights, pair_at)


def remaining(text: Text, starts: np.ndarray, kind: type[np.integer] = np.int32) -> tuple[np.ndarray, np.ndarray]:
    """The tokens as they are now.

    Args:
        starts: int64[rows + 1], slots where rows begin, and the end.
        kind: type of the ids returned, which holds them all.

    Returns:
        ids kind[tokens], and int64[rows + 1] offsets of the rows into them.
    """
    ids = np.empty(len(text.symbols), kind)
    offsets = np.zeros(len(starts), np.int64)
    found = _remaining(text, starts, ids, offsets)
    return ids[:found], offsets


@numba.njit(nogil=True, cache=True)
def _remaining(text: Text, starts: np.ndarray, ids: np.ndarray, offsets: np.ndarray) -> int:
    symbols, spans, _, _, _ = text
    found = 0
    for row in range(len(starts) - 1):
        at, stop = starts[row], starts[row + 1]
        while at < stop:
            slot = np.uint64(at)
            ids[np.uint64(found)] = symbols[slot]
            found += 1
            at += spans[slot]
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


def number_pairs(text: Text) -> tuple[np.ndarray, np.ndarray, int]:
    """Number the pairs of a text in the order of their first occurrence and write `pair_at`.

    Returns:
        keys uint64[room] and sizes int64[room], of which the first `pairs` are in use; and `pairs`.
    """
    room = 1 << 8
    while room < min(len(text.symbols), MOST_KINDS):
        room *= 2
    keys, sizes = np.empty(room, np.uint64), np.empty(room, np.int64)
    slots = np.full(2 * room, NO_PAIR, np.int32)
    at, pairs = _number_on(text, slots, keys, sizes, 0, 0)
    while at < len(text.symbols):
        room *= 4
        keys, sizes = longer(keys, room), longer(sizes, room)
        slots = np.full(2 * room, NO_PAIR, np.int32)
        _fill_slots(slots, keys, pairs)
        at, pairs = _number_on(text, slots, keys, sizes, at, pairs)
    return keys, sizes, pairs


@numba.njit(nogil=True, cache=True)
def _number_on(
    text: Text, slots: np.ndarray, keys: np.ndarray, sizes: np.ndarray, at: int, pairs: int
) -> tuple[np.int64, int]:
    """Number pairs from the token at slot `at` on until the text ends or `keys` is full; returns where it stopped."""
    symbols, spans, segments, _, pair_at = text
    room, last = len(keys), np.uint64(len(symbols))
    here = np.uint64(at)  # unsigned indices are not tested for counting from the end
    while here < last:
        following = here + np.uint64(spans[here])
        pair = np.int64(NO_PAIR)
        if following < last and segments[following] == segments[here]:
            key = np.uint64(symbols[here]) << np.uint64(32) | np.uint64(symbols[following])
            slot = _slot_of(slots, keys, key)
            pair = np.int64(slots[slot])
            if pair == NO_PAIR:
                if pairs == room:
                    break
                pair = np.int64(pairs)
                slots[slot] = pair
                keys[pair] = key
                sizes[pair] = 0
                pairs += 1
            sizes[np.uint64(pair)] += 1
        pair_at[here] = pair
        here = following
    return np.int64(here), pairs


@numba.njit(nogil=True, cache=True)
def _fill_slots(slots: np.ndarray, keys: np.ndarray, pairs: int) -> None:
    for pair in range(pairs):
        slots[_slot_of(slots, keys, keys[pair])] = pair


@numba.njit(nogil=True, cache=True, inline="always")
def _slot_of(slots: np.ndarray, keys: np.ndarray, key: np.uint64) -> np.uint64:
    """Where the number of `key` is, or where it belongs, in an open table; `keys` is by number."""
    mask = np.uint64(len(slots) - 1)
    slot = (key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & mask
    while slots[slot] != NO_PAIR and keys[np.uint64(slots[slot])] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


def longer(array: np.ndarray, length: int) -> np.ndarray:
    """The same array with room for `length` items, or itself if it has that."""
    if len(array) >= length:
        return array
    room = np.empty(length, array.dtype)
    room[: len(array)] = array
    return room


@numba.njit(nogil=True, cache=True)
def note_positions(text: Text, pairs: Pairs, positions: np.ndarray) -> int:
    """Write the positions and counts of the pairs that `number_pairs` found; `first` holds where each begins. Returns
    how many tokens there are, weighted."""
    symbols, spans, segments, weights, pair_at = text
    _, counts, first, sizes = pairs
    sizes[:] = 0
    tokens = 0
    here, last = np.uint64(0), np.uint64(len(symbols))
    while here < last:
        occurs = weights[np.uint64(segments[here])]
        tokens += occurs
        if pair_at[here] >= 0:
            pair = np.uint64(pair_at[here])
            positions[np.uint64(first[pair] + sizes[pair])] = here
            sizes[pair] += 1
            counts[pair] += occurs
        here += np.uint64(spans[here])
    return tokens
