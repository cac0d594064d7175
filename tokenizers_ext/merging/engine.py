"""Byte-pair merging by a heap of pairs: every merge costs the occurrences it changes, not the length of the text.

One loop serves two objectives:

- frequency: merge the pair that occurs most often (BPE: Sennrich et al. 2016, "Neural Machine Translation of Rare Words
  with Subword Units", section 3.2). Overlapping occurrences count, as in `tokenizers`: "aaa" holds "aa" twice.
- likelihood: merge the pair that raises the log-likelihood of the text under its own unigram model most. With counts
  c, N tokens in all, n disjoint occurrences of the pair and f(x) = x ln x, the likelihood is sum f(c) - f(N), and the
  merge changes it by exactly
      f(c_a - n) + f(c_b - n) + f(n) - f(c_a) - f(c_b) - f(N - n) + f(N)
  or, for a pair of equal ids, f(c_a - 2n) + f(n) - f(c_a) - f(N - n) + f(N).

Ties go to the pair of lower ids, so nothing depends on the order of the text.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from seqmill.errors import UserError
from seqmill.tokenizers_ext.merging.heap import ABSENT, Heap, pop, push, rise, sink
from seqmill.tokenizers_ext.merging.text import (
    NO_PAIR,
    Pairs,
    Text,
    left_of,
    longer,
    note_positions,
    number_pairs,
    right_of,
)

OBJECTIVES = {"frequency": 0, "likelihood": 1}
FREQUENCY, LIKELIHOOD = range(2)
EXACT_COUNTS = 2**53  # scores are float64
LEAST_ROOM = 1 << 10  # pairs, and positions, for which there is room beyond those of the text

PAIRS, POSITIONS, IN_HEAP, MERGES, TOKENS, FLOOR = range(6)  # places in `used`
STEP = 4  # the floor falls to this part of itself


@dataclass(frozen=True)
class Merges:
    """Learned merges in the order in which they were made; the k-th makes id first_new + k."""

    left: np.ndarray  # int32[merges]
    right: np.ndarray  # int32[merges]
    counts: np.ndarray  # int64[merges]: weighted occurrences that were joined

    def __len__(self) -> int:
        return len(self.left)


class Rules(NamedTuple):
    """What may be merged; the arguments of `learn_merges`."""

    first_new: int
    most: int
    objective: int
    min_count: int
    longest: int


class Symbols(NamedTuple):
    """Arrays over ids; those for objective likelihood are empty under the other."""

    counts: np.ndarray  # int64[ids]: weighted occurrences, for likelihood
    of_left: np.ndarray  # int32[ids]: the last pair made with this id at its left, for likelihood
    of_right: np.ndarray  # int32[ids]: the last pair made with this id at its right, for likelihood
    places: np.ndarray  # int32[ids]: scratch, occurrences and then numbers of the pairs of one merge
    met: np.ndarray  # int32[ids]: scratch, ids met beside the token of one merge


class Chains(NamedTuple):
    """The pairs that share an id, linked from the last made to the first."""

    left: np.ndarray  # int32[pairs]
    right: np.ndarray  # int32[pairs]


class State(NamedTuple):
    """All that merging changes."""

    text: Text
    pairs: Pairs
    positions: np.ndarray  # int32[...]: slots where pairs begin
    symbols: Symbols
    chains: Chains
    heap: Heap
    used: np.ndarray  # int64[6]: how much of the arrays is in use, weighted TOKENS, and the FLOOR


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
    rules = Rules(first_new, most, OBJECTIVES[objective], min_count, longest or len(text.symbols) + 1)
    merges = np.zeros((3, most), np.int64)
    state = _begin(text, rules)
    while needed := _merge_on(state, rules, merges):
        state = _with_room(state, int(needed))
    made = int(state.used[MERGES])
    return Merges(merges[0, :made].astype(np.int32), merges[1, :made].astype(np.int32), merges[2, :made].copy())


def _begin(text: Text, rules: Rules) -> State:
    """Count the pairs of a text; none is in the heap yet."""
    keys, sizes, found = number_pairs(text)
    ends = np.cumsum(sizes[:found])
    first = np.empty(len(keys), np.int64)
    first[:found] = ends - sizes[:found]
    pairs = Pairs(keys, np.zeros(len(keys), np.int64), first, sizes)
    positions = np.empty(int(ends[-1]) if found else 0, np.int32)
    tokens = int(note_positions(text, pairs, positions))
    if tokens >= EXACT_COUNTS:
        raise UserError(f"the text has {tokens} tokens, counts are exact below {EXACT_COUNTS}: train on a sample")
    floor = rules.min_count
    if rules.objective == FREQUENCY:
        floor = max(floor, int(pairs.counts[:found].max(initial=0)) + 1)
    used = np.array([found, len(positions), 0, 0, tokens, floor], np.int64)
    none = [np.empty(0, np.int32)] * 2
    heap = Heap(keys, np.empty(0, np.float64), *none)
    state = _with_room(State(text, pairs, positions, _symbols(text, rules), Chains(*none), heap, used), LEAST_ROOM)
    state.heap.place[:found] = ABSENT
    if rules.objective == LIKELIHOOD:
        _enter(0, state, rules)
    return state


def _symbols(text: Text, rules: Rules) -> Symbols:
    ids = rules.first_new + rules.most
    known = ids if rules.objective == LIKELIHOOD else 0
    counts = np.zeros(known, np.int64)
    if known:
        _count_symbols(text, counts)
    none = np.full((2, known), NO_PAIR, np.int32)
    return Symbols(counts, none[0], none[1], np.zeros(ids, np.int32), np.empty(ids, np.int32))


@numba.njit(nogil=True, cache=True)
def _count_symbols(text: Text, counts: np.ndarray) -> None:
    symbols, spans, segments, weights, _ = text
    at = 0
    while at < len(symbols):
        counts[symbols[at]] += weights[segments[at]]
        at += spans[at]


def _with_room(state: State, more: int) -> State:
    """The same arrays with room for `more` pairs and positions, and half as much again as there is."""
    places, pairs = (int(state.used[what]) * 3 // 2 + more for what in (POSITIONS, PAIRS))
    pairs = max(pairs, len(state.pairs.keys))
    larger = Pairs(*(longer(array, pairs) for array in state.pairs))
    heap = Heap(larger.keys, *(longer(array, pairs) for array in state.heap[1:]))
    chains = Chains(*(longer(array, pairs) for array in state.chains))
    return state._replace(pairs=larger, heap=heap, chains=chains, positions=longer(state.positions, places))


@numba.njit(nogil=True, cache=True)
def _merge_on(state: State, rules: Rules, merges: np.ndarray) -> int:
    """Merge until all is done (returns 0) or the arrays are full (returns how many places the next merge may need)."""
    _, pairs, positions, symbols, chains, heap, used = state
    while used[MERGES] < rules.most:
        if used[IN_HEAP] == 0 or heap.scores[heap.order[0]] < used[FLOOR]:
            if used[FLOOR] > rules.min_count:
                used[FLOOR] = max(used[FLOOR] // STEP, rules.min_count)
                _enter(np.int64(0), state, rules)
                continue
            if used[IN_HEAP] == 0:
                break
        pair = np.int64(heap.order[0])
        if not _is_best(pair, state, rules):
            continue
        if rules.objective == LIKELIHOOD and heap.scores[pair] <= 0:
            break
        needed = 2 * pairs.sizes[pair]
        if used[PAIRS] + needed > len(pairs.keys) or used[POSITIONS] + needed > len(positions):
            return needed
        used[IN_HEAP] = pop(heap, used[IN_HEAP])
        left, right = np.int64(pairs.keys[pair] >> np.uint64(32)), np.int64(pairs.keys[pair] & np.uint64(0xFFFFFFFF))
        new = rules.first_new + used[MERGES]
        joined, weight = _join(pair, new, state)
        before = used[PAIRS]
        _note_new_pairs(pairs.first[pair], joined, new, state)
        merges[0, used[MERGES]], merges[1, used[MERGES]], merges[2, used[MERGES]] = left, right, weight
        used[TOKENS] -= weight
        used[MERGES] += 1
        if rules.objective == LIKELIHOOD:
            symbols.counts[left] -= weight
            symbols.counts[right] -= weight
            symbols.counts[new] += weight
        _enter(before, state, rules)
        if rules.objective == LIKELIHOOD:
            _rescore_chain(symbols.of_left, chains.left, left, state)
            _rescore_chain(symbols.of_right, chains.right, left, state)
            if left != right:
                _rescore_chain(symbols.of_left, chains.left, right, state)
                _rescore_chain(symbols.of_right, chains.right, right, state)
    return 0


@numba.njit(nogil=True, cache=True)
def _is_best(pair: int, state: State, rules: Rules) -> bool:
    """Whether the top of the heap has its present score; if not, it is moved to where it belongs, or out.

    Scores in the heap are never too low: counts only fall, and what may raise a likelihood is re-scored at once.
    """
    heap, used, count = state.heap, state.used, state.pairs.counts[pair]
    if count < rules.min_count:
        used[IN_HEAP] = pop(heap, used[IN_HEAP])
        return False
    score = np.float64(count) if rules.objective == FREQUENCY else _gain(pair, state)
    if score < heap.scores[pair]:
        heap.scores[pair] = score
        sink(heap, np.int64(0), used[IN_HEAP])
        return False
    return True


@numba.njit(nogil=True, cache=True)
def _join(pair: int, new: int, state: State) -> tuple[int, int]:
    """Replace every occurrence of a pair, from left to right without overlap, and take the pairs that vanish out of
    their counts. The slots of the new tokens are left where the pair's positions were; returns how many there are and
    how often they occur."""
    symbols, spans, segments, weights, pair_at = state.text
    _, counts, starts, sizes = state.pairs
    positions = state.positions
    first = starts[pair]
    joined, weight = 0, 0
    for k in range(first, first + sizes[pair]):
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
def _note_new_pairs(first: int, joined: int, new: int, state: State) -> None:
    """Number the pairs around the tokens whose slots are positions[first : first + joined], and note where they are.

    A pair of two new tokens is that of the left one with its right neighbour, and noted once.
    """
    ids, spans, segments, weights, pair_at = state.text
    keys, counts, starts, sizes = state.pairs
    positions, places, met = state.positions, state.symbols.places, state.symbols.met
    place, used = state.heap.place, state.used
    for side in range(2):
        kinds = 0
        for k in range(first, first + joined):
            beside = _beside(ids, spans, segments, positions[k], side, new)
            if beside >= 0:
                other = ids[beside]
                if places[other] == 0:
                    met[kinds] = other
                    kinds += 1
                places[other] += 1
        for pair in range(used[PAIRS], used[PAIRS] + kinds):
            other = met[pair - used[PAIRS]]
            left, right = (np.uint64(new), np.uint64(other)) if side else (np.uint64(other), np.uint64(new))
            keys[pair] = left << np.uint64(32) | right
            counts[pair] = sizes[pair] = 0
            place[pair] = ABSENT
            starts[pair] = used[POSITIONS]
            used[POSITIONS] += places[other]
            places[other] = pair
        for k in range(first, first + joined):
            beside = _beside(ids, spans, segments, positions[k], side, new)
            if beside >= 0:
                pair = places[ids[beside]]
                at = positions[k] if side else beside
                positions[starts[pair] + sizes[pair]] = at
                sizes[pair] += 1
                counts[pair] += weights[segments[at]]
                pair_at[at] = pair
        for k in range(kinds):
            places[met[k]] = 0
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
def _enter(start: int, state: State, rules: Rules) -> None:
    """Score the pairs from number `start` on that wait outside of the heap and put in those that may be merged.

    By frequency, those below the floor go on waiting until all above it are merged: most are never asked for. Counts
    only fall, so one that waits can never be the best before.
    """
    _, spans, _, _, _ = state.text
    _, counts, first, _ = state.pairs
    positions, symbols, chains, heap, used = state.positions, state.symbols, state.chains, state.heap, state.used
    keys, scores, place, _ = heap
    least = used[FLOOR]
    for pair in range(start, used[PAIRS]):
        if counts[pair] < least or place[pair] != ABSENT:
            continue
        at = positions[first[pair]]
        if spans[at] + spans[at + spans[at]] > rules.longest:
            continue
        scores[pair] = counts[pair]
        if rules.objective == LIKELIHOOD:
            scores[pair] = _gain(pair, state)
            left, right = keys[pair] >> np.uint64(32), keys[pair] & np.uint64(0xFFFFFFFF)
            chains.left[pair], symbols.of_left[left] = symbols.of_left[left], pair
            chains.right[pair], symbols.of_right[right] = symbols.of_right[right], pair
        used[IN_HEAP] = push(heap, pair, used[IN_HEAP])


@numba.njit(nogil=True, cache=True)
def _rescore_chain(heads: np.ndarray, chain: np.ndarray, id_: int, state: State) -> None:
    """Give every pair with `id_` at one side its present score, and take those that left the heap off the chain."""
    heap = state.heap
    keys, scores, place, _ = heap
    pair_counts, id_counts, total = state.pairs.counts, state.symbols.counts, state.used[TOKENS]
    before = np.int64(NO_PAIR)
    pair = np.int64(heads[id_])
    while pair != NO_PAIR:
        following = np.int64(chain[pair])
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
                score = _gain(pair, state)
            if score > scores[pair]:  # lower ones are found at the top of the heap
                scores[pair] = score
                rise(heap, np.int64(place[pair]))
            before = pair
        pair = following


@numba.njit(nogil=True, cache=True)
def _gain(pair: int, state: State) -> float:
    """How much the merge raises the log-likelihood of the text, in nats; the formula is at the top of the module."""
    key, counts, tokens = state.pairs.keys[pair], state.symbols.counts, state.used[TOKENS]
    left, right = np.int64(key >> np.uint64(32)), np.int64(key & np.uint64(0xFFFFFFFF))
    if left == right:
        n = _disjoint(pair, state)
        return _raise(n, tokens) - _fall(counts[left], 2 * n)
    return _gain_of_two(state.pairs.counts[pair], counts[left], counts[right], tokens)


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
def _disjoint(pair: int, state: State) -> int:
    """Weighted occurrences of a pair of equal ids without overlap: "aaa" has one "aa", "aaaa" two."""
    _, spans, segments, weights, pair_at = state.text
    _, _, starts, sizes = state.pairs
    positions = state.positions
    total, free = 0, 0
    for k in range(starts[pair], starts[pair] + sizes[pair]):
        at = positions[k]
        if pair_at[at] == pair and at >= free:
            total += weights[segments[at]]
            free = at + 2 * spans[at]
    return total
