"""Merges that were learned before, made in their order: what a BPE encoder does, over a whole text at once.

A merge joins ids that exist before it, so the pairs that it gives rise to belong to later merges: one pass over the
ranks makes them all. The places of every rank are kept as a list through the slots of the text, in ascending order; a
place whose pair vanishes is taken out of its list at once.
"""

from typing import NamedTuple

import numba
import numpy as np

from seqmill.tokenizers_ext.merging.text import Text, left_of, right_of

NONE = -1
NO_KEY = np.uint64(2**64 - 1)  # ids have 31 bits


class Ranks(NamedTuple):
    """An open table from pairs to the merges that join them."""

    keys: np.ndarray  # uint64[slots]: left id << 32 | right id, or NO_KEY
    ranks: np.ndarray  # int32[slots]
    merges: int


class Lists(NamedTuple):
    """Slots by the rank of the pair that begins there; NONE ends a list on both sides."""

    first: np.ndarray  # int32[merges]
    last: np.ndarray  # int32[merges]
    before: np.ndarray  # int32[n]
    behind: np.ndarray  # int32[n]


def ranks_of(left: np.ndarray, right: np.ndarray) -> Ranks:
    """The table of merges (left[k], right[k]); where two join the same pair, the first counts.

    Args:
        left: int32[merges], in the order of the merges.
        right: int32[merges], as left.
    """
    slots = 1 << (4 * len(left)).bit_length()  # mostly empty: nearly all pairs of a text are not in it
    table = Ranks(np.full(slots, NO_KEY), np.full(slots, NONE, np.int32), len(left))
    _fill(table, left, right)
    return table


def apply_merges(text: Text, ranks: Ranks, first_new: int) -> None:
    """Make the k-th merge wherever it applies, as first_new + k, lowest k first; `text` is changed, its weights are not
    asked for.

    Args:
        ranks: of merges whose ids lie below first_new + k.
    """
    n = len(text.symbols)
    ends = np.full((2, ranks.merges), NONE, np.int32)
    lists = Lists(ends[0], ends[1], np.empty(n, np.int32), np.empty(n, np.int32))
    _apply(text, ranks, lists, first_new, np.empty(n // 2, np.int32))


@numba.njit(nogil=True, cache=True)
def _fill(table: Ranks, left: np.ndarray, right: np.ndarray) -> None:
    keys, ranks, _ = table
    for k in range(len(left)):
        slot = _slot_of(keys, left[k], right[k])
        if ranks[slot] == NONE:
            keys[slot] = _key(left[k], right[k])
            ranks[slot] = k


@numba.njit(nogil=True, cache=True, inline="always")
def _key(left: int, right: int) -> np.uint64:
    return np.uint64(left) << np.uint64(32) | np.uint64(right)


@numba.njit(nogil=True, cache=True, inline="always")
def _slot_of(keys: np.ndarray, left: int, right: int) -> np.uint64:
    """Where the pair is, or where it belongs."""
    mask, key = np.uint64(len(keys) - 1), _key(left, right)
    slot = (key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & mask
    while keys[slot] != key and keys[slot] != NO_KEY:
        slot = (slot + np.uint64(1)) & mask
    return slot


@numba.njit(nogil=True, cache=True)
def _apply(text: Text, ranks: Ranks, lists: Lists, first_new: int, joined: np.ndarray) -> None:
    symbols, spans, segments, _, rank_at = text
    keys, numbers, merges = ranks
    first, last, before, behind = lists
    at = 0
    while at < len(symbols):
        rank_at[at] = NONE
        right = right_of(spans, segments, at)
        if right >= 0:
            _append(at, numbers[_slot_of(keys, symbols[at], symbols[right])], rank_at, first, last, before, behind)
        at += spans[at]
    for rank in range(merges):
        new, count = first_new + rank, 0
        at = first[rank]
        while at != NONE:
            right = at + spans[at]
            _take_out(left_of(spans, segments, at), rank_at, first, last, before, behind)
            _take_out(right, rank_at, first, last, before, behind)
            rank_at[at] = NONE
            end = right + spans[right]
            symbols[at] = new
            spans[at] = spans[end - 1] = end - at
            joined[count] = at
            count += 1
            at = behind[at]
        for k in range(count):
            at = joined[k]
            left, right = left_of(spans, segments, at), right_of(spans, segments, at)
            if left >= 0 and symbols[left] != new:  # else the pair was noted as the right one of the new token there
                _append(left, numbers[_slot_of(keys, symbols[left], new)], rank_at, first, last, before, behind)
            if right >= 0:
                _append(at, numbers[_slot_of(keys, new, symbols[right])], rank_at, first, last, before, behind)


@numba.njit(nogil=True, cache=True, inline="always")
def _append(
    at: int,
    rank: int,
    rank_at: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    before: np.ndarray,
    behind: np.ndarray,
) -> None:
    """Put slot `at` behind all others of the rank; NONE is no rank."""
    if rank == NONE:
        return
    rank_at[at] = rank
    before[at], behind[at] = last[rank], NONE
    if last[rank] == NONE:
        first[rank] = at
    else:
        behind[last[rank]] = at
    last[rank] = at


@numba.njit(nogil=True, cache=True, inline="always")
def _take_out(
    at: int, rank_at: np.ndarray, first: np.ndarray, last: np.ndarray, before: np.ndarray, behind: np.ndarray
) -> None:
    """Take slot `at`, if it is one, out of the list that it is in, if it is in one."""
    if at < 0 or rank_at[at] == NONE:
        return
    rank = rank_at[at]
    if before[at] == NONE:
        first[rank] = behind[at]
    else:
        behind[before[at]] = behind[at]
    if behind[at] == NONE:
        last[rank] = before[at]
    else:
        before[behind[at]] = before[at]
    rank_at[at] = NONE
