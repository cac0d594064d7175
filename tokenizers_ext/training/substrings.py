"""All substrings of words that occur often, from sorted suffixes.

Sorted suffixes that begin alike lie together, so a substring is a range of them and a length (Abouelhoda, Kurtz and
Ohlebusch 2004, "Replacing suffix trees with enhanced suffix arrays", section 3). Suffixes end with their word:

    suffixes of "ab" and "abc", sorted      ab  abc  b  bc  c
    "ab" is [0, 2), "abc" [1, 2), "b" [2, 4), "bc" [3, 4), "c" [4, 5)

A substring that is always followed, or always preceded, by the same character is left out: the longer one occurs as
often. Substrings are whole characters: they begin at a byte that begins a character and end before one, or with the
word.
"""

from typing import NamedTuple

import numba
import numpy as np

from seqmill.errors import UserError

KEY_BYTES = 7  # of a suffix in its first key; the eighth byte says how many of them there are
MOST_BYTES = 2**31  # of distinct words: ranks of two suffixes share a key


class Words(NamedTuple):
    """Distinct words in lexicographic order."""

    data: np.ndarray  # uint8[n]
    offsets: np.ndarray  # int64[words + 1]
    counts: np.ndarray  # int64[words]: how often each occurs


class Substrings(NamedTuple):
    """Substrings in lexicographic order, so that one follows those that it begins with."""

    first: np.ndarray  # int64[k]: the range of sorted suffixes that begin with it
    last: np.ndarray  # int64[k]: and its end, exclusive
    lengths: np.ndarray  # int32[k], bytes
    counts: np.ndarray  # int64[k]: weighted occurrences, overlapping ones too


def sorted_suffixes(words: Words, longest: int) -> np.ndarray:
    """Where characters begin, int64[characters], in the order of what follows to the end of the word: of more than
    `longest` bytes of it, at least.

    By doubling (Manber and Myers 1993, "Suffix arrays", section 3): ranks by `width` bytes, of a suffix and of that
    `width` bytes further on, give ranks by twice as many.

    Raises:
        UserError: the words have 2**31 bytes or more.
    """
    if len(words.data) >= MOST_BYTES:
        raise UserError(
            f"the distinct words have {len(words.data)} bytes, {MOST_BYTES - 1} can be sorted: lower memory_mb"
        )
    keys = np.empty(len(words.data), np.uint64)
    _first_keys(words.data, words.offsets, keys)
    width = KEY_BYTES
    while True:
        order = np.argsort(keys)
        if width > longest:
            return order[~_is_inside(words.data[order])]
        keys = _next_keys(words.offsets, _ranks(keys, order), width)
        width *= 2


def frequent_substrings(words: Words, suffixes: np.ndarray, longest: int, min_count: int, most: int) -> Substrings:
    """Substrings of two bytes or more that occur `min_count` times or more; of these the `most` that cover most bytes.

    Args:
        suffixes: as `sorted_suffixes` gives them.
        longest: bytes, as given there.
    """
    if not len(suffixes):
        return _room(0)
    shared, reach, turns = _neighbours(words.data, words.offsets, suffixes, longest)
    below = np.zeros(len(suffixes) + 1, np.int64)
    np.cumsum(words.counts[np.searchsorted(words.offsets, suffixes, side="right") - 1], out=below[1:])
    known = (words.data, suffixes, shared, reach, turns, below, longest, min_count)
    found = _room(_each_substring(*known, _room(0)))
    _each_substring(*known, found)
    if len(found.first) > most:
        covered = found.counts.astype(np.float64) * found.lengths
        chosen = np.lexsort((found.lengths, found.first, -covered))[:most]
        found = Substrings(*(column[chosen] for column in found))
    in_order = np.lexsort((found.lengths, found.first))
    return Substrings(*(column[in_order] for column in found))


def _room(size: int) -> Substrings:
    return Substrings(*(np.empty(size, kind) for kind in (np.int64, np.int64, np.int32, np.int64)))


def _is_inside(data: np.ndarray) -> np.ndarray:
    """Whether bytes are continuation bytes of UTF-8, inside of a character."""
    return (data & 0xC0) == 0x80


@numba.njit(nogil=True, cache=True)
def _first_keys(data: np.ndarray, offsets: np.ndarray, keys: np.ndarray) -> None:
    for word in range(len(offsets) - 1):
        stop = offsets[word + 1]
        for at in range(offsets[word], stop):
            held = min(KEY_BYTES, stop - at)
            key = np.uint64(0)
            for k in range(KEY_BYTES):
                key = key << np.uint64(8) | (np.uint64(data[at + k]) if k < held else np.uint64(0))
            keys[at] = key << np.uint64(8) | np.uint64(held)


@numba.njit(nogil=True, cache=True)
def _ranks(keys: np.ndarray, order: np.ndarray) -> np.ndarray:
    """int64[n]: how many different keys are below that of each suffix."""
    ranks = np.empty(len(keys), np.int64)
    rank = 0
    for i in range(len(order)):
        if i > 0 and keys[order[i]] != keys[order[i - 1]]:
            rank += 1
        ranks[order[i]] = rank
    return ranks


@numba.njit(nogil=True, cache=True)
def _next_keys(offsets: np.ndarray, ranks: np.ndarray, width: int) -> np.ndarray:
    keys = np.empty(len(ranks), np.uint64)
    for word in range(len(offsets) - 1):
        stop = offsets[word + 1]
        for at in range(offsets[word], stop):
            further = ranks[at + width] + 1 if at + width < stop else 0
            keys[at] = np.uint64(ranks[at]) << np.uint64(32) | np.uint64(further)
    return keys


@numba.njit(nogil=True, cache=True)
def _neighbours(
    data: np.ndarray, offsets: np.ndarray, suffixes: np.ndarray, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each suffix has in common with its neighbours in the order.

    Returns:
        int32[n + 1], the bytes it shares with the one before, at most `longest`, 0 at both ends; int32[n], the bytes to
        the end of its word; int64[n], from which suffix on all have the character before them that this one has: i + 1
        where suffix i is a whole word, which has none.
    """
    n = len(suffixes)
    room = np.zeros(len(data), np.int32)
    left = np.zeros(len(data), np.uint32)
    for word in range(len(offsets) - 1):
        begin, stop = offsets[word], offsets[word + 1]
        for at in range(begin, stop):
            room[at] = stop - at
            if at > begin:
                first = data[at - 1] & 0xC0 != 0x80 or at - 1 == begin
                character = np.uint32(1) if first else left[at - 1]  # the 1 tells a NUL byte from the start of a word
                left[at] = character << np.uint32(8) | np.uint32(data[at - 1])
    shared = np.zeros(n + 1, np.int32)
    reach = np.empty(n, np.int32)
    turns = np.empty(n, np.int64)
    for i in range(n):
        at = suffixes[i]
        reach[i] = room[at]
        turns[i] = i if left[at] else i + 1
        if i > 0:
            other, most = suffixes[i - 1], min(reach[i], reach[i - 1], longest)
            same = 0
            while same < most and data[at + same] == data[other + same]:
                same += 1
            shared[i] = same
            if left[at] and left[at] == left[other]:
                turns[i] = turns[i - 1]
    return shared, reach, turns


@numba.njit(nogil=True, cache=True)
def _each_substring(
    data: np.ndarray,
    suffixes: np.ndarray,
    shared: np.ndarray,
    reach: np.ndarray,
    turns: np.ndarray,
    below: np.ndarray,
    longest: int,
    min_count: int,
    found: Substrings,
) -> int:
    """Write the substrings that the module's head describes and return how many there are; where `found` has no room
    they are only counted.

    A stack holds what the present suffix begins with: lengths, the longest on top, and the first suffix of each. What
    is longer than the next suffix shares ends there.
    """
    firsts, lasts, lengths, counts = found
    length, since = np.zeros(longest + 2, np.int32), np.zeros(longest + 2, np.int64)
    top, size = 0, 0
    for i in range(len(shared)):
        first = i
        while length[top] > shared[i]:
            first, whole = since[top], length[top]
            top -= 1
            inner = max(shared[i], length[top])
            while inner < whole < reach[first] and data[suffixes[first] + whole] & 0xC0 == 0x80:
                whole -= 1
            count = below[i] - below[first]
            if whole <= max(inner, 1) or count < min_count or turns[i - 1] <= first:
                continue
            if len(firsts):
                firsts[size], lasts[size], lengths[size], counts[size] = first, i, whole, count
            size += 1
        if length[top] < shared[i]:
            top += 1
            length[top], since[top] = shared[i], first
        if i < len(reach) and length[top] < min(longest, reach[i]):
            top += 1
            length[top], since[top] = min(longest, reach[i]), i
    return size
