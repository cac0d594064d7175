"""How much of a document repeats itself: lines, paragraphs, and runs of n words.

Lines are compared without the white space around them, and blank ones do not count; a paragraph is a run of lines
between blank ones. Equal means equal 64-bit hashes.
"""

import numba
import numpy as np

from seqmill.pipeline.dedup.characters import ALONE, SPACE, WORD
from seqmill.pipeline.dedup.shingles import decode, mix
from seqmill.pipeline.filters.characters import KIND
from seqmill.pipeline.filters.words import _MULTIPLIER, _SEED, extend_hash

(
    LINES,
    DUPLICATE_LINES,
    DUPLICATE_LINE_CHARACTERS,
    PARAGRAPHS,
    DUPLICATE_PARAGRAPHS,
    DUPLICATE_PARAGRAPH_CHARACTERS,
    PUNCTUATED_LINES,
    SHORT_LINES,
    LINE_ENDS,
) = range(9)
LINE_MEASURES = 9

FIRST_TOP, LAST_TOP, LAST_DUPLICATE = 2, 4, 10  # n of the n-grams: top 2 to 4, duplicate 5 to 10
_LINE_END = 0x0A


@numba.njit(nogil=True, cache=True)
def first_equal(hashes: np.ndarray, at: np.ndarray, count: int, table: np.ndarray, first: np.ndarray) -> None:
    """For each of the places at[:count], in rising order, write into first[place] the first place with its hash.

    Args:
        table: int64[a power of two of at least 2 * count or more]: scratch, as much of it as needed.
    """
    size = 4
    while size < 2 * count:
        size *= 2
    table[:size] = -1
    mask = size - 1
    for k in range(count):
        place = at[k]
        slot = np.int64(hashes[place] & np.uint64(mask))
        while table[slot] >= 0 and hashes[table[slot]] != hashes[place]:
            slot = (slot + 1) & mask
        if table[slot] < 0:
            table[slot] = place
        first[place] = table[slot]


@numba.njit(nogil=True, cache=True)
def _room(offsets: np.ndarray) -> tuple[int, int]:
    """The size in bytes of the longest document, plus one, and the size of a table for as many places."""
    longest = 1
    for d in range(len(offsets) - 1):
        longest = max(longest, offsets[d + 1] - offsets[d] + 1)
    size = 4
    while size < 2 * longest:
        size *= 2
    return longest, size


@numba.njit(nogil=True, cache=True)
def _repeated(hashes: np.ndarray, sizes: np.ndarray, count: int, every: np.ndarray, table: np.ndarray) -> np.ndarray:
    """How many of the first `count` items occurred before, and the sum of their sizes: int64[2]."""
    result = np.zeros(2, np.int64)
    first = np.empty(count, np.int64)
    first_equal(hashes, every, count, table, first)
    for k in range(count):
        if first[k] != k:
            result[0] += 1
            result[1] += sizes[k]
    return result


@numba.njit(nogil=True, cache=True)
def measure_lines(
    data: np.ndarray, offsets: np.ndarray, flags: np.ndarray, marks: np.ndarray, short_line: int
) -> np.ndarray:
    """int64[documents, LINE_MEASURES].

    Args:
        marks: sorted code points; a line that ends in one is punctuated.
        short_line: a line with at most so many characters is short.
    """
    counts = np.zeros((len(offsets) - 1, LINE_MEASURES), np.int64)
    lines_most = 1
    for d in range(len(offsets) - 1):
        ends = 2
        for k in range(offsets[d], offsets[d + 1]):
            ends += data[k] == _LINE_END
        lines_most = max(lines_most, ends)
    _, table_size = _room(np.array([0, lines_most]))
    table = np.empty(table_size, np.int64)
    every = np.arange(lines_most)
    line_hash = np.empty(lines_most, np.uint64)
    line_size = np.empty(lines_most, np.int64)
    paragraph_hash = np.empty(lines_most, np.uint64)
    paragraph_size = np.empty(lines_most, np.int64)
    for d in range(len(offsets) - 1):
        count = counts[d]
        at, stop = offsets[d], offsets[d + 1]
        lines, paragraphs = 0, 0
        in_paragraph = False
        value, trimmed = _SEED, _SEED  # hash of the line so far, and up to its last character that is no white space
        size, trimmed_size = 0, 0
        last = np.int64(0)
        while at <= stop:
            if at < stop:
                code, at = decode(data, at)
                count[LINE_ENDS] += code == _LINE_END
            else:
                code = np.int64(_LINE_END)
                at += 1
            if code != _LINE_END:
                if (flags[code] & KIND) != SPACE:
                    value = extend_hash(value, code)
                    size += 1
                    trimmed, trimmed_size, last = value, size, code
                elif size:
                    value = extend_hash(value, code)
                    size += 1
                continue
            if trimmed_size:
                line_hash[lines] = mix(trimmed)
                line_size[lines] = trimmed_size
                place = np.searchsorted(marks, last)
                count[PUNCTUATED_LINES] += place < len(marks) and marks[place] == last
                count[SHORT_LINES] += trimmed_size <= short_line
                if in_paragraph:
                    paragraph_size[paragraphs - 1] += trimmed_size + 1
                    paragraph_hash[paragraphs - 1] = mix(
                        paragraph_hash[paragraphs - 1] * _MULTIPLIER + line_hash[lines]
                    )
                else:
                    paragraph_size[paragraphs] = trimmed_size
                    paragraph_hash[paragraphs] = line_hash[lines]
                    paragraphs += 1
                lines += 1
            in_paragraph = trimmed_size > 0
            value, trimmed, size, trimmed_size = _SEED, _SEED, 0, 0
        count[LINES] = lines
        count[PARAGRAPHS] = paragraphs
        count[DUPLICATE_LINES:PARAGRAPHS] = _repeated(line_hash, line_size, lines, every, table)
        repeated = _repeated(paragraph_hash, paragraph_size, paragraphs, every, table)
        count[DUPLICATE_PARAGRAPHS:PUNCTUATED_LINES] = repeated
    return counts


@numba.njit(nogil=True, cache=True)
def _list_words(
    data: np.ndarray, start: int, stop: int, flags: np.ndarray, hashes: np.ndarray, ends: np.ndarray
) -> int:
    """Write the hash of every word, and the characters of all words before it and up to it; returns how many."""
    count, length = 0, 0
    word = _SEED
    at = start
    ends[0] = 0
    while at < stop:
        code, at = decode(data, at)
        kind = flags[code] & KIND
        if kind == WORD:
            word = extend_hash(word, code)
            length += 1
            continue
        if length:
            hashes[count] = mix(word)
            ends[count + 1] = ends[count] + length
            count += 1
            word, length = _SEED, 0
        if kind == ALONE:
            hashes[count] = mix(extend_hash(_SEED, code))
            ends[count + 1] = ends[count] + 1
            count += 1
    if length:
        hashes[count] = mix(word)
        ends[count + 1] = ends[count] + length
        count += 1
    return count


@numba.njit(nogil=True, cache=True)
def measure_ngrams(data: np.ndarray, offsets: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """int64[documents, 9]: characters in the most frequent n-gram for n of 2 to 4, in duplicate ones for n of 5 to 10.

    The most frequent n-gram counts with one space between its words, once for each occurrence; it must occur twice, and
    of several the one that begins first is taken. Duplicate n-grams are found from left to right: one that
    was met before counts with the characters of its words, and the search goes on behind it.

    An n-gram can only be repeated where the (n-1)-grams at its place and at the next one are: from n = 3 on few places
    are left to look at, so nine sizes cost about as much as two.
    """
    documents = len(offsets) - 1
    result = np.zeros((documents, LAST_DUPLICATE - FIRST_TOP + 1), np.int64)
    longest, table_size = _room(offsets)
    table = np.empty(table_size, np.int64)
    words = np.empty(longest, np.uint64)
    ends = np.empty(longest + 1, np.int64)
    grams = np.empty(longest, np.uint64)  # hash of the n-gram that begins at a word
    places = np.empty(longest, np.int64)  # words where an n-gram can be repeated
    first = np.empty(longest, np.int64)
    occurs = np.zeros(longest, np.int64)  # at the first place of an n-gram: how often
    repeated = np.zeros(longest, np.bool_)  # at a word: whether its n-gram occurs elsewhere
    met = np.zeros(longest, np.bool_)
    for d in range(documents):
        count = _list_words(data, offsets[d], offsets[d + 1], flags, words, ends)
        alive = count
        for p in range(count):
            grams[p] = words[p]
            places[p] = p
            repeated[p] = True
        for n in range(FIRST_TOP, LAST_DUPLICATE + 1):
            chosen = 0
            for k in range(alive):
                p = places[k]
                if p + n <= count and repeated[p] and repeated[p + 1]:
                    first[chosen] = p  # scratch until the old places are cleared
                    chosen += 1
            for k in range(alive):
                repeated[places[k]] = False
            for k in range(chosen):
                p = first[k]
                places[k] = p
                grams[p] = grams[p] * _MULTIPLIER + words[p + n - 1]
            alive = chosen
            if alive == 0:
                break
            first_equal(grams, places, alive, table, first)
            for k in range(alive):
                occurs[places[k]] = 0
                met[places[k]] = False
            for k in range(alive):
                occurs[first[places[k]]] += 1
            best, best_place = 1, -1
            characters, following = 0, 0
            for k in range(alive):
                p = places[k]
                often = occurs[first[p]]
                repeated[p] = often > 1
                if n <= LAST_TOP:
                    if often > best:
                        best, best_place = often, p
                elif often > 1 and p >= following:
                    if met[first[p]]:
                        characters += ends[p + n] - ends[p]
                        following = p + n
                    met[first[p]] = True
            if best_place >= 0:
                characters = best * (ends[best_place + n] - ends[best_place] + n - 1)
            result[d, n - FIRST_TOP] = characters
        for k in range(alive):
            repeated[places[k]] = False
    return result
