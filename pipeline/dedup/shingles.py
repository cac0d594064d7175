"""From text to shingles: one pass over UTF-8 bytes that hashes words, and runs of n words, as it goes.

A word is a maximal run of letters, marks, digits and underscores in lower case, or one character of a script written
without spaces. A shingle is a run of `ngram` words; a document with fewer words has one shingle of all of them; a
document without any word has none. Example with ngram 2: "The cat, the CAT!" -> the|cat, cat|the, the|cat.
"""

import numba
import numpy as np

from seqmill.pipeline.dedup.characters import ALONE, SPACE, WORD

# Odd 64-bit constants: the golden ratio, and the multipliers of the splitmix64 finaliser (Steele, Lea, Flood 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_WORD_SEED = np.uint64(0x243F6A8885A308D3)


@numba.njit(nogil=True, cache=True, inline="always")
def mix(x: np.uint64) -> np.uint64:
    """Splitmix64's finaliser: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@numba.njit(nogil=True, cache=True, inline="always")
def _decode(data: np.ndarray, at: int) -> tuple[np.int64, int]:
    """The code point at byte `at` of valid UTF-8, and the index of the next one."""
    first = np.int64(data[at])
    if first < 0x80:
        return first, at + 1
    if first < 0xE0:
        return (first & 0x1F) << 6 | np.int64(data[at + 1]) & 0x3F, at + 2
    middle = np.int64(data[at + 1]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | middle << 6 | np.int64(data[at + 2]) & 0x3F, at + 3
    tail = (np.int64(data[at + 2]) & 0x3F) << 6 | np.int64(data[at + 3]) & 0x3F
    return (first & 0x07) << 18 | middle << 12 | tail, at + 4


@numba.njit(nogil=True, cache=True)
def hash_words(data: np.ndarray, start: int, stop: int, kind: np.ndarray, lower: np.ndarray, words: np.ndarray) -> int:
    """Write the hash of every word of data[start:stop] into `words` uint64[>= bytes]; returns how many there are."""
    count = 0
    word = _WORD_SEED
    inside = False
    at = start
    while at < stop:
        code, at = _decode(data, at)
        what = kind[code]
        if what == WORD:
            word = (word ^ np.uint64(lower[code])) * _GOLDEN
            word ^= word >> np.uint64(29)
            inside = True
            continue
        if inside:
            words[count] = mix(word)
            count += 1
            word = _WORD_SEED
            inside = False
        if what == ALONE:
            words[count] = mix((_WORD_SEED ^ np.uint64(code)) * _GOLDEN)
            count += 1
    if inside:
        words[count] = mix(word)
        count += 1
    return count


@numba.njit(nogil=True, cache=True)
def hash_shingles(words: np.ndarray, count: int, ngram: int, shingles: np.ndarray) -> int:
    """Write the hash of every run of `ngram` of the first `count` words into `shingles`; returns how many there are.

    The runs are a rolling polynomial in the word hashes modulo 2**64, mixed at the end, so a run costs one step.
    """
    if count == 0:
        return 0
    width = min(ngram, count)
    leaving = np.uint64(1)  # golden ** width: the weight of the word that leaves the window
    rolling = np.uint64(0)
    for k in range(width):
        leaving *= _GOLDEN
        rolling = rolling * _GOLDEN + words[k]
    shingles[0] = mix(rolling)
    for k in range(width, count):
        rolling = rolling * _GOLDEN + words[k] - words[k - width] * leaving
        shingles[k - width + 1] = mix(rolling)
    return count - width + 1


@numba.njit(nogil=True, cache=True)
def shingle_sets(
    data: np.ndarray, offsets: np.ndarray, kind: np.ndarray, lower: np.ndarray, ngram: int
) -> tuple[np.ndarray, np.ndarray]:
    """The set of shingles of every document, sorted: offsets int64[documents + 1] into hashes uint64[...]."""
    documents = len(offsets) - 1
    longest = 0
    for d in range(documents):
        longest = max(longest, offsets[d + 1] - offsets[d])
    words = np.empty(longest + 1, np.uint64)
    shingles = np.empty(longest + 1, np.uint64)
    hashes = np.empty(offsets[documents] - offsets[0], np.uint64)
    ends = np.zeros(documents + 1, np.int64)
    for d in range(documents):
        count = hash_words(data, offsets[d], offsets[d + 1], kind, lower, words)
        runs = hash_shingles(words, count, ngram, shingles)
        distinct = np.unique(shingles[:runs])
        ends[d + 1] = ends[d] + len(distinct)
        hashes[ends[d] : ends[d + 1]] = distinct
    return ends, hashes[: ends[documents]].copy()


@numba.njit(nogil=True, cache=True)
def collapse_white_space(data: np.ndarray, offsets: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every document with runs of white space made one space and the ends stripped: the key of exact duplicates."""
    documents = len(offsets) - 1
    collapsed = np.empty(offsets[documents] - offsets[0] + documents, np.uint8)
    ends = np.zeros(documents + 1, np.int64)
    out = 0
    for d in range(documents):
        begin = out
        pending = False  # white space seen since the last character that was copied
        at = offsets[d]
        while at < offsets[d + 1]:
            code, following = _decode(data, at)
            if kind[code] == SPACE:
                pending = True
            else:
                if pending and out > begin:
                    collapsed[out] = 0x20
                    out += 1
                pending = False
                for k in range(at, following):
                    collapsed[out] = data[k]
                    out += 1
            at = following
        ends[d + 1] = out
    return ends, collapsed[:out]
