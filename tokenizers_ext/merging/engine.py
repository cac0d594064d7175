"""Byte-pair merging by a heap of pairs: every merge costs the occurrences it changes, not the length of the text.

One loop serves three objectives:

- frequency: merge the pair that occurs most often (BPE: Sennrich et al. 2016, "Neural Machine Translation of Rare Words
  with Subword Units", section 3.2). Overlapping occurrences count, as in `tokenizers`: "aaa" holds "aa" twice.
- likelihood: merge the pair that raises the log-likelihood of the text under its own unigram model most. With counts
  c, N tokens in all, n disjoint occurrences of the pair and f(x) = x ln x, the likelihood is sum f(c) - f(N), and the
  merge changes it by exactly
      f(c_a - n) + f(c_b - n) + f(n) - f(c_a) - f(c_b) - f(N - n) + f(N)
  or, for a pair of equal ids, f(c_a - 2n) + f(n) - f(c_a) - f(N - n) + f(N).
- rank: apply merges that were learned before, in their order.

Ties go to the pair of lower ids, so nothing depends on the order of the text.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from seqmill.errors import UserError
from seqmill.tokenizers_ext.merging.heap import ABSENT, Heap, order_all, pop, push, rise, sink
from seqmill.tokenizers_ext.merging.text import NO_PAIR, Pairs, Text, left_of, note_positions, number_pairs, right_of

OBJECTIVES = {"frequency": 0, "likelihood": 1}
FREQUENCY, LIKELIHOOD, RANK = range(3)
EXACT_COUNTS = 2**53  # scores are float64

PAIRS, POSITIONS, IN_HEAP, MERGES, TOKENS = range(5)  # places in `used`


@dataclass(frozen=True)
class Merges:
    """Learned merges in the order in which they were made; the k-th makes id first_new + k."""

    left: np.ndarray  # int32[merges]
    right: np.ndarray  # int32[merges]
    counts: np.ndarray  # int64[merges]: weighted occurrences that were joined

    def __len__(self) -> int:
        return len(self.left)


class Symbols(NamedTuple):
    """Arrays over ids."""

    counts: np.ndarray  # int64[ids]: weighted occurrences
    of_left: np.ndarray  # int32[ids]: the last pair made with this id at its left, for objective likelihood
    of_right: np.ndarray  # int32[ids]: the last pair made with this id at its right
    places: np.ndarray  # int32[2, ids]: scratch, occurrences and then numbers of the pairs of one merge
    met: np.ndarray  # int32[ids]: scratch, ids met beside the token of one merge


class Chains(NamedTuple):
    """The pairs that share an id, linked from the last made to the first."""

    left: np.ndarray  # int32[pairs]
    right: np.ndarray  # int32[pairs]


def learn_merges(
    text: Text, first_new: int, most: int, objective: str = "frequency", min_count: int = 1, longest: int | None = None
) -> Merges:
    """Merge pairs until `most` merges are made or no pair is worth it; `text` is changed.

    Args:
        first_new: the id of the first merge, above all ids of the text.
        most: merges wanted.
        objective: "frequency" or "likelihood".
        min_count: a pair that occurs less often is not merged.
        longest: slots that a token may span; unlimited by default.

    Raises:
        UserError: the weighted text has 2**53 tokens or more, which counts here would not hold exactly.
    """
    merges = np.zeros((3, most), np.int64)
    made = _run(text, first_new, most, OBJECTIVES[objective], min_count, longest or len(text.symbols) + 1, merges, None)
    return Merges(merges[0, :made].astype(np.int32), merges[1, :made].astype(np.int32), merges[2, :made].copy())


def apply_merges(text: Text, left: np.ndarray, right: np.ndarray, first_new: int) -> None:
    """Make the k-th merge (left[k], right[k]) -> first_new + k wherever it applies, lowest k first; `text` is changed.

    Args:
        left: int32[merges], ids below first_new + k.
        right: int32[merges], as left.
    """
    keys = left.astype(np.uint64) << np.uint64(32) | right.astype(np.uint64)
    order = np.argsort(keys)
    _run(text, first_new, len(left), RANK, 1, len(text.symbols) + 1, np.zeros((3, 1), np.int64), (keys[order], order))


def _run(
    text: Text,
    first_new: int,
    most: int,
    objective: int,
    min_count: int,
    longest: int,
    merges: np.ndarray,
    ranks: tuple[np.ndarray, np.ndarray] | None,
) -> int:
    symbols = _symbols(text, first_new + most)
    total = int(symbols.counts.sum())
    if total >= EXACT_COUNTS:
        raise UserError(f"the text has {total} tokens, counts are exact below {EXACT_COUNTS}: train on a sample")
    keys, sizes = number_pairs(text)
    pairs = Pairs(keys, np.zeros(len(keys), np.int64), np.cumsum(sizes) - sizes, sizes)
    positions = np.empty(int(sizes.sum()), np.int32)
    note_positions(text, pairs, positions)
    used = np.array([len(keys), len(positions), 0, 0, total], np.int64)
    ranked = ranks or (np.empty(0, np.uint64), np.empty(0, np.int64))
    pairs, heap, chains, positions = _with_room(pairs, None, None, positions, used, 1 << 10)
    rules = (objective, min_count, longest)
    _enter(0, used[PAIRS], text, pairs, positions, symbols, chains, heap, rules, ranked, used)
    while True:
        needed = _merge_on(text, pairs, positions, symbols, chains, heap, first_new, most, rules, ranked, used, merges)
        if not needed:
            return int(used[MERGES])
        pairs, heap, chains, positions = _with_room(pairs, heap, chains, positions, used, int(needed))


def _symbols(text: Text, ids: int) -> Symbols:
    counts = np.zeros(ids, np.int64)
    _count_symbols(text, counts)
    none = np.full((2, ids), NO_PAIR, np.int32)
    return Symbols(counts, none[0], none[1], np.zeros((2, ids), np.int32), np.empty(ids, np.int32))


@numba.njit(nogil=True, cache=True)
def _count_symbols(text: Text, counts: np.ndarray) -> None:
    symbols, spans, segments, weights, _ = text
    at = 0
    while at < len(symbols):
        counts[symbols[at]] += weights[segments[at]]
        at += spans[at]


def _with_room(
    pairs: Pairs, heap: Heap | None, chains: Chains | None, positions: np.ndarray, used: np.ndarray, more: int
) -> tuple[Pairs, Heap, Chains, np.ndarray]:
    """The same arrays with room for `more` pairs and positions, and half as much again as there is."""
    length = int(used[PAIRS]) * 3 // 2 + more
    old = heap or Heap(pairs.keys, *(np.empty(0, kind) for kind in (np.float64, np.int32, np.int32)))
    old_chains = chains or Chains(np.empty(0, np.int32), np.empty(0, np.int32))
    larger = Pairs(*(_resized(array, length) for array in pairs))
    new = Heap(larger.keys, *(_resized(array, length) for array in old[1:]))
    room = _resized(positions, int(used[POSITIONS]) * 3 // 2 + more)
    return larger, new, Chains(*(_resized(array, length) for array in old_chains)), room


def _resized(array: np.ndarray, length: int) -> np.ndarray:
    if len(array) >= length:
        return array
    longer = np.empty(length, array.dtype)
    longer[: len(array)] = array
    return longer


@numba.njit(nogil=True, cache=True)
def _merge_on(
    text: Text,
    pairs: Pairs,
    positions: np.ndarray,
    symbols: Symbols,
    chains: Chains,
    heap: Heap,
    first_new: int,
    most: int,
    rules: tuple[int, int, int],
    ranked: tuple[np.ndarray, np.ndarray],
    used: np.ndarray,
    merges: np.ndarray,
) -> int:
    """Merge until all is done (returns 0) or the arrays are full (returns how many places the next merge may need)."""
    objective = rules[0]
    while used[IN_HEAP] > 0 and (used[MERGES] < most or objective == RANK):
        pair = heap.order[0]
        if not _is_best(pair, text, pairs, positions, symbols, heap, rules, used):
            continue
        if objective == LIKELIHOOD and heap.scores[pair] <= 0:
            break
        needed = 2 * pairs.sizes[pair]
        if used[PAIRS] + needed > len(pairs.keys) or used[POSITIONS] + needed > len(positions):
            return needed
        used[IN_HEAP] = pop(heap, used[IN_HEAP])
        left, right = np.int64(pairs.keys[pair] >> np.uint64(32)), np.int64(pairs.keys[pair] & np.uint64(0xFFFFFFFF))
        new = first_new + (np.int64(-heap.scores[pair]) if objective == RANK else used[MERGES])
        joined, weight = _join(pair, new, text, pairs, positions)
        before = used[PAIRS]
        _note_new_pairs(pairs.first[pair], joined, new, text, pairs, positions, symbols, used)
        symbols.counts[left] -= weight
        symbols.counts[right] -= weight
        symbols.counts[new] += weight
        used[TOKENS] -= weight
        if objective != RANK:
            merges[0, used[MERGES]], merges[1, used[MERGES]], merges[2, used[MERGES]] = left, right, weight
        used[MERGES] += 1
        _enter(before, used[PAIRS], text, pairs, positions, symbols, chains, heap, rules, ranked, used)
        if objective == LIKELIHOOD:
            _rescore_chain(symbols.of_left, chains.left, left, text, pairs, positions, symbols, heap, used)
            _rescore_chain(symbols.of_right, chains.right, left, text, pairs, positions, symbols, heap, used)
            if left != right:
                _rescore_chain(symbols.of_left, chains.left, right, text, pairs, positions, symbols, heap, used)
                _rescore_chain(symbols.of_right, chains.right, right, text, pairs, positions, symbols, heap, used)
    return 0


@numba.njit(nogil=True, cache=True)
def _is_best(
    pair: int,
    text: Text,
    pairs: Pairs,
    positions: np.ndarray,
    symbols: Symbols,
    heap: Heap,
    rules: tuple[int, int, int],
    used: np.ndarray,
) -> bool:
    """Whether the top of the heap has its present score; if not, it is moved to where it belongs, or out.

    Scores in the heap are never too low: counts only fall, and what may raise a likelihood is re-scored at once.
    """
    objective, min_count, _ = rules
    if pairs.counts[pair] < min_count:
        used[IN_HEAP] = pop(heap, used[IN_HEAP])
        return False
    if objective == RANK:
        return True
    score = np.float64(pairs.counts[pair])
    if objective == LIKELIHOOD:
        score = _gain(pair, text, pairs, positions, symbols, used)
    if score < heap.scores[pair]:
        heap.scores[pair] = score
        sink(heap, 0, used[IN_HEAP])
        return False
    return True


@numba.njit(nogil=True, cache=True)
def _join(pair: int, new: int, text: Text, pairs: Pairs, positions: np.ndarray) -> tuple[int, int]:
    """Replace every occurrence of a pair, from left to right without overlap, and take the pairs that vanish out of
    their counts. The slots of the new tokens are left where the pair's positions were; returns how many there are and
    how often they occur."""
    symbols, spans, segments, weights, pair_at = text
    counts, first = pairs.counts, pairs.first[pair]
    joined, weight = 0, 0
    for k in range(first, first + pairs.sizes[pair]):
        at = positions[k]
        if pair_at[at] != pair:
            continue
        occurs = weights[segments[at]]
        right = at + spans[at]
        left = left_of(spans, segments, at)
        if left >= 0:
            _forget(left, occurs, pair_at, counts)
        _forget(at, occurs, pair_at, counts)
        _forget(right, occurs, pair_at, counts)
        end = right + spans[right]
        symbols[at] = new
        spans[at] = spans[end - 1] = end - at
        positions[first + joined] = at
        joined += 1
        weight += occurs
    return joined, weight


@numba.njit(nogil=True, cache=True, inline="always")
def _forget(at: int, occurs: int, pair_at: np.ndarray, counts: np.ndarray) -> None:
    """The pair that begins at slot `at` is there no more."""
    if pair_at[at] >= 0:
        counts[pair_at[at]] -= occurs
        pair_at[at] = NO_PAIR


@numba.njit(nogil=True, cache=True)
def _note_new_pairs(
    first: int,
    joined: int,
    new: int,
    text: Text,
    pairs: Pairs,
    positions: np.ndarray,
    symbols: Symbols,
    used: np.ndarray,
) -> None:
    """Number the pairs around the tokens whose slots are positions[first : first + joined], and note where they are.

    A pair of two new tokens is that of the left one with its right neighbour, and noted once.
    """
    ids, spans, segments, weights, pair_at = text
    keys, counts, starts, sizes = pairs
    places, met = symbols.places, symbols.met
    for side in range(2):
        kinds = 0
        for k in range(first, first + joined):
            beside = _beside(ids, spans, segments, positions[k], side, new)
            if beside >= 0:
                other = ids[beside]
                if places[side, other] == 0:
                    met[kinds] = other
                    kinds += 1
                places[side, other] += 1
        for pair in range(used[PAIRS], used[PAIRS] + kinds):
            other = met[pair - used[PAIRS]]
            left, right = (np.uint64(new), np.uint64(other)) if side else (np.uint64(other), np.uint64(new))
            keys[pair] = left << np.uint64(32) | right
            counts[pair] = sizes[pair] = 0
            starts[pair] = used[POSITIONS]
            used[POSITIONS] += places[side, other]
            places[side, other] = pair
        for k in range(first, first + joined):
            beside = _beside(ids, spans, segments, positions[k], side, new)
            if beside >= 0:
                pair = places[side, ids[beside]]
                at = positions[k] if side else beside
                positions[starts[pair] + sizes[pair]] = at
                sizes[pair] += 1
                counts[pair] += weights[segments[at]]
                pair_at[at] = pair
        for k in range(kinds):
            places[side, met[k]] = 0
        used[PAIRS] += kinds


@numba.njit(nogil=True, cache=True, inline="always")
def _beside(ids: np.ndarray, spans: np.ndarray, segments: np.ndarray, at: int, side: int, new: int) -> int:
    """The token to the left (side 0) or right (side 1) of the one at slot `at`; -1 for none, and for a new token at the
    left, which has noted this pair as its right one."""
    if side:
        return right_of(spans, segments, at)
    left = left_of(spans, segments, at)
    return -1 if left >= 0 and ids[left] == new else left


@numba.njit(nogil=True, cache=True)
def _enter(
    start: int,
    stop: int,
    text: Text,
    pairs: Pairs,
    positions: np.ndarray,
    symbols: Symbols,
    chains: Chains,
    heap: Heap,
    rules: tuple[int, int, int],
    ranked: tuple[np.ndarray, np.ndarray],
    used: np.ndarray,
) -> None:
    """Score the pairs from number `start` up to `stop` and put those into the heap that may be merged."""
    objective, min_count, longest = rules
    keys, scores, place, _ = heap
    counts, first, spans = pairs.counts, pairs.first, text.spans
    for pair in range(start, stop):
        place[pair] = ABSENT
        if counts[pair] < min_count:
            continue
        at = positions[first[pair]]
        if spans[at] + spans[at + spans[at]] > longest:
            continue
        if objective == FREQUENCY:
            scores[pair] = counts[pair]
        elif objective == LIKELIHOOD:
            scores[pair] = _gain(pair, text, pairs, positions, symbols, used)
            left, right = keys[pair] >> np.uint64(32), keys[pair] & np.uint64(0xFFFFFFFF)
            chains.left[pair], symbols.of_left[left] = symbols.of_left[left], pair
            chains.right[pair], symbols.of_right[right] = symbols.of_right[right], pair
        else:
            rank = np.searchsorted(ranked[0], keys[pair])
            if rank == len(ranked[0]) or ranked[0][rank] != keys[pair]:
                continue
            scores[pair] = -np.float64(ranked[1][rank])
        if start > 0:
            used[IN_HEAP] = push(heap, pair, used[IN_HEAP])
        else:
            heap.order[used[IN_HEAP]] = pair
            place[pair] = used[IN_HEAP]
            used[IN_HEAP] += 1
    if start == 0:  # the first pairs are many: ordered at once, not one by one
        order_all(heap, used[IN_HEAP])


@numba.njit(nogil=True, cache=True)
def _rescore_chain(
    heads: np.ndarray,
    chain: np.ndarray,
    id_: int,
    text: Text,
    pairs: Pairs,
    positions: np.ndarray,
    symbols: Symbols,
    heap: Heap,
    used: np.ndarray,
) -> None:
    """Give every pair with `id_` at one side its present score, and take those that left the heap off the chain."""
    scores, place, keys = heap.scores, heap.place, heap.keys
    pair_counts, id_counts, total = pairs.counts, symbols.counts, used[TOKENS]
    before = NO_PAIR
    pair = heads[id_]
    while pair != NO_PAIR:
        following = chain[pair]
        if place[pair] == ABSENT:
            if before == NO_PAIR:
                heads[id_] = following
            else:
                chain[before] = following
        else:
            left, right = np.int64(keys[pair] >> np.uint64(32)), np.int64(keys[pair] & np.uint64(0xFFFFFFFF))
            if left != right:
                score = _gain_of_two(pair_counts[pair], id_counts[left], id_counts[right], total)
            else:
                score = _gain(pair, text, pairs, positions, symbols, used)
            if score > scores[pair]:  # lower ones are found at the top of the heap
                scores[pair] = score
                rise(heap, place[pair])
            before = pair
        pair = following


@numba.njit(nogil=True, cache=True)
def _gain(pair: int, text: Text, pairs: Pairs, positions: np.ndarray, symbols: Symbols, used: np.ndarray) -> float:
    """How much the merge raises the log-likelihood of the text, in nats; the formula is at the top of the module."""
    left, right = np.int64(pairs.keys[pair] >> np.uint64(32)), np.int64(pairs.keys[pair] & np.uint64(0xFFFFFFFF))
    if left == right:
        n = _disjoint(pair, text, pairs, positions)
        return _raise(n, used[TOKENS]) - _fall(symbols.counts[left], 2 * n)
    return _gain_of_two(pairs.counts[pair], symbols.counts[left], symbols.counts[right], used[TOKENS])


@numba.njit(nogil=True, cache=True, inline="always")
def _gain_of_two(n: int, left: int, right: int, total: int) -> float:
    return _raise(n, total) - _fall(left, n) - _fall(right, n)


@numba.njit(nogil=True, cache=True, inline="always")
def _raise(n: int, total: int) -> float:
    return n * np.log(np.float64(n)) + _fall(total, n)


@numba.njit(nogil=True, cache=True, inline="always")
def _fall(x: int, n: int) -> float:
    """x ln x - (x - n) ln (x - n), without the difference of two large numbers."""
    if n == x:
        return x * np.log(np.float64(x))
    return n * np.log(np.float64(x)) - (x - n) * np.log1p(-n / x)


@numba.njit(nogil=True, cache=True)
def _disjoint(pair: int, text: Text, pairs: Pairs, positions: np.ndarray) -> int:
    """Weighted occurrences of a pair of equal ids without overlap: "aaa" has one "aa", "aaaa" two."""
    _, spans, segments, weights, pair_at = text
    total, free = 0, 0
    for k in range(pairs.first[pair], pairs.first[pair] + pairs.sizes[pair]):
        at = positions[k]
        if pair_at[at] == pair and at >= free:
            total += weights[segments[at]]
            free = at + 2 * spans[at]
    return total
