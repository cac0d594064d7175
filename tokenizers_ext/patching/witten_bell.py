"""From counts of n-grams to the entropy of the next byte behind every context that was seen often enough.

The model is the interpolated one of Witten and Bell (method C of Bell, Cleary and Witten, "Text Compression", 1990; as
interpolation in Chen and Goodman 1998, section 2.4). Behind a context c, seen C times and followed by T different
bytes, of which b came n(b) times,

    p(b | c) = (n(b) + T p(b | c')) / (C + T)        c' is c without its first byte; behind "" it is p = 1 / 256

which sums to 1 over the 256 bytes for every c. The model uses the longest context that was seen `min_count` times.
A context occurs at least as often as any longer one that it ends or begins, so with a context all of its parts are
there too.

Entropies follow without a loop over 256 bytes. With l = T / (C + T), q = p(. | c') and H' its entropy, the bytes that
never followed c have p = l q, and so

    H = sum over b seen of -p ln p   +   l (H' - sum over b seen of -q ln q)   -   l ln l (1 - sum over b seen of q)
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from seqmill.tokenizers_ext.patching.config import HIGHEST_ENTROPY, NgramConfig
from seqmill.tokenizers_ext.patching.ngrams import Int64s, Run, UInt64s, add_up
from seqmill.tokenizers_ext.patching.scorer import FILL, STEPS_PER_NAT, Scorer, key_of, make_slots

RANGE_ROWS = 1 << 20  # rows of all runs that are added up at a time, about
_PAIRS = 1 << 16
Float64s = npt.NDArray[np.float64]
UInt16s = npt.NDArray[np.uint16]


def build_scorer(runs: Sequence[Run], config: NgramConfig) -> Scorer:
    """Add up counts and store the entropies behind the frequent contexts.

    Contexts of three bytes and more share `config.table_bytes`: if those seen `config.min_count` times are too many,
    the count asked of them is raised to the lowest that leaves few enough. Memory: the table twice, and about 50 bytes
    for each of `RANGE_ROWS` rows, or of those of the most frequent pair of bytes.

    Args:
        runs: of events of `config.order`; mapped files will do.

    Returns:
        The same scorer for any order and division of the runs.
    """
    width = config.order - 1
    singles, pairs, rows = _survey(runs, width)
    probabilities, entropies = _short_contexts(singles, pairs)
    seen = pairs.sum(axis=1)
    short = _spread(entropies, seen, config.min_count)
    capacity = int(config.slots * FILL)
    least, found = config.min_count, [_Contexts.empty(0)]
    for run in _ranges(runs, rows, width):
        room = _Contexts.empty(len(run.events) * (width - 2))
        n = _long_contexts(*run, width, probabilities, entropies, config.min_count, least, short, *room)
        found.append(room.only(slice(n)))
        if sum(len(contexts.keys) for contexts in found) > 2 * capacity:
            least, kept = _most_frequent(found, least, capacity)
            found = [kept]
    least, kept = _most_frequent(found, least, capacity)
    return Scorer(config.order, config.min_count, least, short, make_slots(kept.keys, kept.steps))


class _Contexts(NamedTuple):
    """Contexts of three bytes and more."""

    keys: UInt64s
    counts: UInt64s  # how often each was seen
    steps: UInt16s  # the entropy behind it

    @classmethod
    def empty(cls, size: int) -> "_Contexts":
        return cls(np.empty(size, np.uint64), np.empty(size, np.uint64), np.empty(size, np.uint16))

    def only(self, chosen: Any) -> "_Contexts":
        return _Contexts(*(column[chosen].copy() for column in self))


def _most_frequent(found: Sequence[_Contexts], least: int, capacity: int) -> tuple[int, _Contexts]:
    """The lowest count, `least` or more, that at most `capacity` contexts have, and these contexts. For a part of all
    contexts it is not above that for all: so raising it early loses nothing that would be kept."""
    contexts = _Contexts(*(np.concatenate(columns) for columns in zip(*found, strict=True)))
    if len(contexts.keys) > capacity:
        first_left_out = len(contexts.keys) - capacity - 1
        least = max(least, int(np.partition(contexts.counts, first_left_out)[first_left_out]) + 1)
    return least, contexts.only(contexts.counts >= least)


def to_steps(entropy: Float64s) -> UInt16s:
    """Entropies in nats, rounded to the steps that are stored."""
    return np.rint(np.asarray(entropy) * STEPS_PER_NAT).astype(np.uint16)


def _survey(runs: Sequence[Run], width: int) -> tuple[UInt64s, UInt64s, Int64s]:
    """How often each byte came, uint64[256]; each byte behind each byte, uint64[256, 256]; and how many rows of the
    runs have each pair of bytes as the end of their context, int64[65536]."""
    singles, pairs = np.zeros(256, np.uint64), np.zeros((256, 256), np.uint64)
    rows = np.zeros(_PAIRS, np.int64)
    for run in runs:
        _count_short(*run, width, singles, pairs, rows)
    return singles, pairs, rows


@numba.njit(nogil=True, cache=True)
def _count_short(events: UInt64s, counts: UInt64s, width: int, singles: UInt64s, pairs: UInt64s, rows: Int64s) -> None:
    latest, latest_two = np.uint64(8 * (width + 1)), np.uint64(8 * width)
    for i in range(len(events)):
        event = events[i]
        byte = event & np.uint64(255)
        singles[byte] += counts[i]
        if event >> np.uint64(8) & np.uint64(255):
            pairs[event >> latest, byte] += counts[i]
        rows[event >> latest_two] += 1


def _short_contexts(singles: UInt64s, pairs: UInt64s) -> tuple[Float64s, Float64s]:
    """p(. | one byte) and their entropies, float64[256, 256] and [257]; the last entropy is that behind ""."""
    alone = _interpolate(singles[None], np.full((1, 256), 1 / 256))
    behind = _interpolate(pairs, alone)
    both = np.concatenate([behind, alone])
    return behind, -(both * np.log(both)).sum(axis=1)


def _interpolate(counts: UInt64s, shorter: Float64s) -> Float64s:
    """The formula of the module for rows of counts; where nothing was counted it is the shorter context's."""
    kinds = (counts > 0).sum(axis=1, keepdims=True)
    total = counts.sum(axis=1, keepdims=True)
    estimate = (counts + kinds * shorter) / np.maximum(total + kinds, 1)
    return np.where(total > 0, estimate, shorter)


def _spread(entropies: Float64s, seen: UInt64s, min_count: int) -> UInt16s:
    """The entropies behind contexts of up to two bytes as steps uint16[65536 + 256 + 1]: pairs (the later byte
    counts 256), single bytes, and "". Contexts that are rare get the entropy of the shorter one."""
    singles = np.where(seen >= min_count, entropies[:256], entropies[256])
    return to_steps(np.concatenate([np.repeat(singles, 256), singles, entropies[256:]]))


def _ranges(runs: Sequence[Run], rows: Int64s, width: int) -> Iterator[Run]:
    """The sum of all runs in ranges of about `RANGE_ROWS` rows that do not divide contexts of two bytes."""
    group = np.cumsum(rows) // RANGE_ROWS
    edges = np.flatnonzero(np.diff(group, prepend=-1)).astype(np.uint64)  # first pair of each range
    below = [np.searchsorted(run.events, edges[1:] << np.uint64(8 * width)) for run in runs]
    cuts = [np.concatenate([[0], cut, [len(run.events)]]) for cut, run in zip(below, runs, strict=True)]
    for k in range(len(edges)):
        pieces = [slice(cut[k], cut[k + 1]) for cut in cuts]
        held = [Run(run.events[s], run.counts[s]) for run, s in zip(runs, pieces, strict=True) if s.stop > s.start]
        if held:
            yield add_up(held)


@numba.njit(nogil=True, cache=True)
def _long_contexts(
    events: UInt64s,
    counts: UInt64s,
    width: int,
    behind_one: Float64s,
    entropy_behind_one: Float64s,
    least_short: int,
    least_long: int,
    short: UInt16s,
    keys: UInt64s,
    totals: UInt64s,
    steps: UInt16s,
) -> int:
    """Walk the tree of contexts of two bytes and more; returns how many entries of three and more were written.

    A context of k bytes is the range of events that agree in their first k; level k holds the open one. The bytes that
    followed it are counted from the events whose own context is that long.

    Args:
        least_short, least_long: how often contexts of two bytes and of more must have been seen.
        short: receives the entropies behind two bytes.
        keys, totals, steps: receive key, count and entropy of longer contexts.
    """
    n, written = len(events), 0
    ends = np.zeros(width + 1, np.int64)  # of the open context of each level
    p = np.zeros((width + 1, 256))
    h = np.zeros(width + 1)
    count = np.zeros(256, np.uint64)
    followers = np.empty(256, np.int64)
    i = 0
    while i < n:
        first = 2  # level whose context ended
        while ends[first] > i:
            first += 1
        for level in range(first, width + 1):
            end = ends[level - 1] if level > 2 else n
            prefix = np.uint64(8 * (width - level) + 16)
            kinds, total, j = 0, np.uint64(0), i
            while j < end and events[j] >> prefix == events[i] >> prefix:
                if events[j] >> np.uint64(8) & np.uint64(255) >= np.uint64(level):
                    byte = np.int64(events[j] & np.uint64(255))
                    if count[byte] == 0:
                        followers[kinds] = byte
                        kinds += 1
                    count[byte] += counts[j]
                    total += counts[j]
                j += 1
            ends[level:] = j
            if level == 2:
                latest = np.int64(events[i] >> np.uint64(8 * (width + 1)))
                p[1], h[1] = behind_one[latest], entropy_behind_one[latest]
            least = np.uint64(least_short if level == 2 else least_long)
            if total >= least:
                h[level] = _entropy(count, followers[:kinds], total, p[level - 1], h[level - 1])
                step = np.uint16(np.rint(h[level] * STEPS_PER_NAT))
                context = events[i] >> np.uint64(16)
                if level == 2:
                    short[context >> np.uint64(8 * (width - 2))] = step
                else:
                    keys[written] = key_of(context, level, width)
                    totals[written] = total
                    steps[written] = step
                    written += 1
            goes_on = level < width and total >= np.uint64(least_long)  # longer contexts are rarer still
            if goes_on:
                parts = total + np.float64(kinds)
                share = kinds / parts
                for value in range(256):
                    p[level, value] = share * p[level - 1, value] + count[value] / parts
            for follower in followers[:kinds]:
                count[follower] = 0
            if not goes_on:
                break
        i = ends[width]
    return written


@numba.njit(nogil=True, cache=True)
def _entropy(count: UInt64s, followers: Int64s, total: float, q: Float64s, entropy_of_q: float) -> float:
    """The formula of the module's docstring, in nats."""
    parts = total + np.float64(len(followers))
    share = len(followers) / parts
    seen, entropy, unseen = 0.0, 0.0, entropy_of_q
    for byte in followers:
        x = q[byte]
        y = count[byte] / parts + share * x
        entropy -= y * np.log(y)
        unseen += x * np.log(x)
        seen += x
    entropy += share * max(unseen, 0.0)
    if seen < 1.0:
        entropy -= share * np.log(share) * (1.0 - seen)
    return min(entropy, HIGHEST_ENTROPY)
