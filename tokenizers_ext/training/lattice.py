"""All ways to cut words into pieces, and what a unigram model says of them (Kudo 2018, "Subword Regularization:
Improving Neural Network Translation Models with Multiple Subword Candidates", section 3.2).

The pieces that begin at one place of a word are prefixes of one another. So a place holds only the longest of them and
a piece the next shorter one; a byte of text takes four bytes, and dropping pieces only moves these links:

    pieces     a  ab  abcd  b  bc ...        at the "a" of "abcde": abcd -> ab -> a
    parents    -  a   ab    -  b

The first 256 pieces are the bytes, so every word can be cut.
"""

from typing import NamedTuple

import numba
import numpy as np

from seqmill.tokenizers_ext.training.substrings import Substrings, Words
from seqmill.tokenizers_ext.training.word_counts import LONGEST_WORD

BYTE_PIECES = 256
NO_PIECE = -1
STEP_BITS = 256  # probabilities of long words are held as value * 2 ** (STEP_BITS * steps): they leave float64's range
STEP = 2.0**STEP_BITS
LEAST = 2.0**-STEP_BITS


class Pieces(NamedTuple):
    """Bytes first, then longer pieces in lexicographic order."""

    parents: np.ndarray  # int32[pieces]: the longest shorter piece that it begins with, or NO_PIECE
    lengths: np.ndarray  # int32[pieces], bytes
    places: np.ndarray  # int64[pieces]: where one occurrence of it begins; of no meaning for the bytes


class Lattice(NamedTuple):
    """Words, and the pieces that begin at each of their places."""

    words: Words
    longest: np.ndarray  # int32[n]: the longest piece that begins at a place
    pieces: Pieces


def lattice_of(words: Words, suffixes: np.ndarray, substrings: Substrings) -> Lattice:
    """The lattice of all bytes and the given substrings of `words`."""
    bytes_ = np.arange(BYTE_PIECES)
    lengths = np.concatenate([np.ones(BYTE_PIECES, np.int32), substrings.lengths])
    places = np.concatenate([bytes_, suffixes[substrings.first]])
    parents = np.full(len(lengths), NO_PIECE, np.int32)
    longest = words.data.astype(np.int32)
    held = longest[suffixes]
    _link(substrings.first, substrings.last, held, parents)
    longest[suffixes] = held
    return Lattice(words, longest, Pieces(parents, lengths, places))


def without(lattice: Lattice, kept: np.ndarray) -> Lattice:
    """The same words with the pieces `kept`, bool[pieces], the bytes among them; `lattice.longest` is changed."""
    numbers = _numbers_of_kept(lattice.pieces.parents, kept)
    _renumber(numbers, lattice.longest)
    parents = lattice.pieces.parents[kept]
    _renumber(numbers, parents)
    return Lattice(lattice.words, lattice.longest, Pieces(parents, *(column[kept] for column in lattice.pieces[1:])))


def expected_counts(lattice: Lattice, scores: np.ndarray) -> tuple[np.ndarray, float]:
    """The E step: how often every piece occurs in a cut of all words, on average over all cuts by their probability.

    Args:
        scores: float64[pieces], log-probabilities in nats, above -500.

    Returns:
        float64[pieces], and the log-likelihood of all words in nats.
    """
    expected = np.zeros(len(scores))
    return expected, _expected_counts(*_unpacked(lattice), np.exp(scores), expected)


def best_cut_counts(lattice: Lattice, scores: np.ndarray) -> np.ndarray:
    """How often every piece occurs in the likeliest cuts of all words, float64[pieces]."""
    counts = np.zeros(len(scores))
    _best_cut_counts(*_unpacked(lattice), scores, counts)
    return counts


def losses(lattice: Lattice, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What log-likelihood is lost, about, when a piece is dropped: float64[pieces], nats; infinite for the bytes.

    Every occurrence of the piece becomes its likeliest cut into other pieces (Kudo 2018, section 3.2, step 2b), whose
    probabilities rise with their counts. A piece that no likeliest cut contains is no loss.

    Args:
        counts: float64[pieces], as `best_cut_counts` gives them.
    """
    found = np.full(len(scores), np.inf)
    _losses(lattice.words.data, lattice.longest, *lattice.pieces, scores, counts, found)
    return found


def _unpacked(lattice: Lattice) -> tuple[np.ndarray, ...]:
    """Kernels take arrays: a field read in a loop counts references every time."""
    words, pieces = lattice.words, lattice.pieces
    return words.offsets, words.counts, lattice.longest, pieces.parents, pieces.lengths


@numba.njit(nogil=True, cache=True)
def _link(first: np.ndarray, last: np.ndarray, held: np.ndarray, parents: np.ndarray) -> None:
    """Give every suffix the longest piece that it begins with. Ranges lie within one another or apart, and come in
    the order of their first suffix, the widest first: what a range finds at its start is its parent."""
    for k in range(len(first)):
        parents[BYTE_PIECES + k] = held[first[k]]
        held[first[k] : last[k]] = BYTE_PIECES + k


@numba.njit(nogil=True, cache=True)
def _numbers_of_kept(parents: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """int32[pieces]: the new number of a piece or, if it is dropped, of the longest that is kept and that it begins
    with."""
    numbers = np.empty(len(kept), np.int32)
    found = 0
    for piece in range(len(kept)):
        numbers[piece] = found if kept[piece] else numbers[parents[piece]]
        found += kept[piece]
    return numbers


@numba.njit(nogil=True, cache=True)
def _renumber(numbers: np.ndarray, pieces: np.ndarray) -> None:
    for i in range(len(pieces)):
        if pieces[i] != NO_PIECE:
            pieces[i] = numbers[pieces[i]]


@numba.njit(nogil=True, cache=True)
def _expected_counts(
    offsets: np.ndarray,
    weights: np.ndarray,
    longest: np.ndarray,
    parents: np.ndarray,
    lengths: np.ndarray,
    probabilities: np.ndarray,
    expected: np.ndarray,
) -> float:
    """Forward, then backward: with f(p) the probability of all cuts of the first p bytes, a cut that passes q came
    there by the piece from p to q with probability f(p) * probability / f(q)."""
    value, steps = np.empty(LONGEST_WORD + 1), np.empty(LONGEST_WORD + 1, np.int64)
    passed = np.empty(LONGEST_WORD + 1)
    likelihood = 0.0
    for word in range(len(offsets) - 1):
        start, size = offsets[word], offsets[word + 1] - offsets[word]
        _forward(start, size, longest, parents, lengths, probabilities, value, steps)
        likelihood += weights[word] * (np.log(value[size]) + steps[size] * (STEP_BITS * np.log(2.0)))
        passed[size] = weights[word]
        for at in range(size - 1, -1, -1):
            here = 0.0
            piece = longest[start + at]
            while piece != NO_PIECE:
                stop = at + lengths[piece]
                share = value[at] * probabilities[piece] / value[stop]
                if steps[at] != steps[stop]:
                    share *= STEP ** (steps[at] - steps[stop])
                share *= passed[stop]
                expected[piece] += share
                here += share
                piece = parents[piece]
            passed[at] = here
    return likelihood


@numba.njit(nogil=True, cache=True)
def _forward(
    start: int,
    size: int,
    longest: np.ndarray,
    parents: np.ndarray,
    lengths: np.ndarray,
    probabilities: np.ndarray,
    value: np.ndarray,
    steps: np.ndarray,
) -> None:
    """The probability of all cuts of the first p bytes, as value[p] * STEP ** steps[p], for every p."""
    value[: size + 1] = 0.0
    value[0], steps[0] = 1.0, 0
    for at in range(size):
        if value[at] < LEAST:
            value[at] *= STEP
            steps[at] -= 1
        here, step = value[at], steps[at]
        piece = longest[start + at]
        while piece != NO_PIECE:
            stop, more = at + lengths[piece], here * probabilities[piece]
            if value[stop] == 0.0:
                value[stop], steps[stop] = more, step
            elif step == steps[stop]:
                value[stop] += more
            elif step < steps[stop]:
                value[stop] += more * STEP ** (step - steps[stop])
            else:
                value[stop] = value[stop] * STEP ** (steps[stop] - step) + more
                steps[stop] = step
            piece = parents[piece]


@numba.njit(nogil=True, cache=True)
def _best_cut_counts(
    offsets: np.ndarray,
    weights: np.ndarray,
    longest: np.ndarray,
    parents: np.ndarray,
    lengths: np.ndarray,
    scores: np.ndarray,
    counts: np.ndarray,
) -> None:
    score, last = np.empty(LONGEST_WORD + 1), np.empty(LONGEST_WORD + 1, np.int32)
    for word in range(len(offsets) - 1):
        start, size = offsets[word], offsets[word + 1] - offsets[word]
        _best_cut(start, size, np.int64(NO_PIECE), longest, parents, lengths, scores, score, last)
        at = size
        while at > 0:
            counts[last[at]] += weights[word]
            at -= lengths[last[at]]


@numba.njit(nogil=True, cache=True)
def _best_cut(
    start: int,
    size: int,
    left_out: int,
    longest: np.ndarray,
    parents: np.ndarray,
    lengths: np.ndarray,
    scores: np.ndarray,
    score: np.ndarray,
    last: np.ndarray,
) -> None:
    """Viterbi without one piece: score[p] of the likeliest cut of the first p bytes, and its last piece. Among equals
    the longer last piece, as in `tokenizers`."""
    score[: size + 1] = -np.inf
    score[0] = 0.0
    for at in range(size):
        piece = longest[start + at]
        while piece != NO_PIECE:
            stop = at + lengths[piece]
            if stop <= size and piece != left_out and score[at] + scores[piece] > score[stop]:
                score[stop] = score[at] + scores[piece]
                last[stop] = piece
            piece = parents[piece]


@numba.njit(nogil=True, cache=True)
def _losses(
    data: np.ndarray,
    longest: np.ndarray,
    parents: np.ndarray,
    lengths: np.ndarray,
    places: np.ndarray,
    scores: np.ndarray,
    counts: np.ndarray,
    found: np.ndarray,
) -> None:
    score, last = np.empty(LONGEST_WORD + 1), np.empty(LONGEST_WORD + 1, np.int32)
    total = counts.sum()
    for piece in range(BYTE_PIECES, len(found)):
        count = counts[piece]
        if count == 0:
            found[piece] = 0.0
            continue
        _best_cut(
            places[piece], np.int64(lengths[piece]), np.int64(piece), longest, parents, lengths, scores, score, last
        )
        others, gained, at = 0, 0.0, lengths[piece]
        while at > 0:
            gained += np.log(counts[last[at]] + count)
            others += 1
            at -= lengths[last[at]]
        found[piece] = count * (np.log(count / total) - gained + others * np.log(total + count * (others - 1)))
