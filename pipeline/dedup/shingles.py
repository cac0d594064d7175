"""From text to shingles: one pass over UTF-8 bytes that hashes units (words or characters), and runs of n units.

What a unit is, the tables of `characters` say. A shingle is a run of `ngram` units. A document with fewer units than
that is cut into its characters instead, white space left out, and a document with fewer characters than that has one
shingle of all of them. Example with ngram 2: "The cat, the CAT!" -> the|cat, cat|the, the|cat; "Cat!" -> c|a, a|t, t|!.

Text streams through a buffer of units, so the memory does not grow with the length of a document.
"""

from functools import cache

import numba
import numpy as np

from seqmill.pipeline.dedup.characters import ALONE, DIGIT, POINT, SKIP, SPACE, UNSETTLED, WORD, ZERO, character_tables

BLOCK = 16  # bytes looked at together
BUFFER = 4096  # units on their way from text to shingles
WORDS = np.int64(0)  # the mode of `runs_of` whose units are words

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
def decode(data: np.ndarray, at: int) -> tuple[np.int64, int]:
    """The code point at byte `at` of valid UTF-8, and the index of the next one."""
    place = np.uint64(at)  # an unsigned index is used as it is; a signed one is tested for counting from the end
    first = np.int64(data[place])
    if first < 0x80:
        return first, at + 1
    second = np.int64(data[place + np.uint64(1)]) & 0x3F
    if first < 0xE0:
        return (first & 0x1F) << 6 | second, at + 2
    third = np.int64(data[place + np.uint64(2)]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, at + 3
    fourth = np.int64(data[place + np.uint64(3)]) & 0x3F
    return (first & 0x07) << 18 | second << 12 | third << 6 | fourth, at + 4


@numba.njit(nogil=True, cache=True, inline="always")
def _single(code: np.int64) -> np.uint64:
    """The hash of a unit of one character."""
    return mix((_WORD_SEED ^ np.uint64(code)) * _GOLDEN)


@numba.njit(nogil=True, cache=True)
def hash_words(
    data: np.ndarray, start: int, stop: int, kind: np.ndarray, folded: np.ndarray, words: np.ndarray
) -> tuple[int, int]:
    """Write the hash of each word of data[start:stop] into `words` until it is full.

    Returns:
        how many there are, and the byte to go on from: `stop`, or just behind a word.
    """
    count = 0
    word = _WORD_SEED
    inside = False
    number = 0  # of the number being read: 0 none, 1 before its decimal point, 2 behind it
    at = start
    while at < stop and count < len(words):
        begin = at
        place, end = np.uint64(at), np.uint64(stop)
        while place < end and data[place] < 0x80 and kind[data[place]] == WORD:  # most of most texts, without the rest
            word = (word ^ np.uint64(folded[data[place]])) * _GOLDEN
            word ^= word >> np.uint64(29)
            place += np.uint64(1)
        at = np.int64(place)  # type: ignore[assignment]
        if at > begin:
            inside = True
            number = 0
            if at == stop:
                break
        code, following = decode(data, at)
        what = kind[np.uint64(code)]
        if what == WORD:
            word = (word ^ np.uint64(folded[np.uint64(code)])) * _GOLDEN
            word ^= word >> np.uint64(29)
            inside = True
            number = 0
        elif what == DIGIT:
            if number == 0:
                word = (word ^ np.uint64(ZERO)) * _GOLDEN
                word ^= word >> np.uint64(29)
                inside = True
                number = 1
        elif what == SKIP:
            pass
        elif what == POINT and number == 1 and following < stop and kind[decode(data, following)[0]] == DIGIT:
            number = 2
        else:
            number = 0
            if inside:  # the word ends before this character, which is looked at again
                words[count] = mix(word)
                count += 1
                word = _WORD_SEED
                inside = False
                if what == ALONE:
                    continue
            elif what == ALONE:
                words[count] = _single(folded[code])
                count += 1
        at = following
    if inside and at == stop:
        words[count] = mix(word)
        count += 1
    return count, at


@numba.njit(nogil=True, cache=True)
def hash_characters(
    data: np.ndarray,
    start: int,
    stop: int,
    kind: np.ndarray,
    folded: np.ndarray,
    spaces: bool,
    inner: bool,
    characters: np.ndarray,
) -> tuple[int, int]:
    """Write the hash of each character of data[start:stop] into `characters` until it is full.

    Args:
        spaces: a run of white space between two characters counts as one space; else it counts as nothing.
        inner: characters came before `start`, so that white space at the start counts.

    Returns:
        how many there are, and the byte to go on from.
    """
    count = 0
    pending = False
    at = start
    while at < stop and count + 1 < len(characters):
        code, at = decode(data, at)
        what = kind[code]
        if what == SPACE:
            pending = spaces
        elif what != SKIP:
            if pending and (inner or count):
                characters[count] = _single(np.int64(0x20))
                count += 1
            pending = False
            characters[count] = _single(folded[code])
            count += 1
    if pending and at < stop:  # full after white space: the next call must see it again
        at -= 1
        while kind[decode(data, at)[0]] != SPACE or (data[at] & 0xC0) == 0x80:
            at -= 1
    return count, at


@numba.njit(nogil=True, cache=True)
def next_shingles(
    data: np.ndarray,
    at: int,
    stop: int,
    kind: np.ndarray,
    folded: np.ndarray,
    mode: int,
    ngram: int,
    units: np.ndarray,
    carried: int,
    shingles: np.ndarray,
) -> tuple[int, int, int]:
    """Hash the next shingles of a document.

    The runs are a rolling polynomial in the unit hashes modulo 2**64, mixed at the end, so a run costs one step.

    Args:
        at, stop: bytes of the document not read yet.
        mode: 0 words, 1 characters with spaces, 2 characters without.
        units: uint64[ngram + BUFFER]; its first `carried` entries are the last units read before.
        shingles: uint64[ngram + BUFFER], written.

    Returns:
        how many shingles were written, the next `at`, and the next `carried`.
    """
    if mode == 0:
        fresh, at = hash_words(data, at, stop, kind, folded, units[carried:])
    else:
        fresh, at = hash_characters(data, at, stop, kind, folded, mode == 1, carried > 0, units[carried:])
    count = carried + fresh
    if count < ngram:
        return 0, at, count
    leaving = np.uint64(1)  # golden ** ngram: the weight of the unit that leaves the window
    rolling = np.uint64(0)
    for k in range(ngram):
        leaving *= _GOLDEN
        rolling = rolling * _GOLDEN + units[k]
    shingles[0] = mix(rolling)
    for k in range(ngram, count):
        rolling = rolling * _GOLDEN + units[k] - units[k - ngram] * leaving
        shingles[k - ngram + 1] = mix(rolling)
    units[: ngram - 1] = units[count - ngram + 1 : count].copy()
    return count - ngram + 1, at, ngram - 1


@numba.njit(nogil=True, cache=True)
def whole_shingle(units: np.ndarray, count: int) -> np.uint64:
    """The one shingle of a document that is shorter than a shingle."""
    rolling = np.uint64(0)
    for k in range(count):
        rolling = rolling * _GOLDEN + units[k]
    return mix(rolling)


@numba.njit(nogil=True, cache=True)
def runs_of(
    data: np.ndarray,
    start: int,
    stop: int,
    kind: np.ndarray,
    folded: np.ndarray,
    mode: int,
    ngram: int,
    units: np.ndarray,
    block: np.ndarray,
    out: np.ndarray,
) -> tuple[int, np.int64]:
    """Write the hashes of all runs of `ngram` units of one document into `out` uint64[>= bytes + 1].

    Returns:
        how many there are (with repeats), and the units left in `units`: all of the document's when there is no run.
    """
    at, carried, total = start, np.int64(0), 0  # a literal is a type of its own, and so compiled for
    while at < stop:
        count, at, carried = next_shingles(data, at, stop, kind, folded, mode, ngram, units, carried, block)
        out[total : total + count] = block[:count]
        total += count
    return total, carried


@numba.njit(nogil=True, cache=True)
def shingles_of(
    data: np.ndarray,
    start: int,
    stop: int,
    kind: np.ndarray,
    folded: np.ndarray,
    spaced: bool,
    ngram: int,
    units: np.ndarray,
    block: np.ndarray,
    out: np.ndarray,
) -> int:
    """Write all shingles of one document into `out` uint64[>= bytes + 1]; returns how many (with repeats)."""
    for mode in (1 if spaced else 0, 2):
        total, carried = runs_of(data, start, stop, kind, folded, mode, ngram, units, block, out)
        if total:
            return total
    if carried:
        out[0] = whole_shingle(units, carried)
        return 1
    return 0


@numba.njit(nogil=True, cache=True)
def shingle_sets(
    data: np.ndarray, offsets: np.ndarray, kind: np.ndarray, folded: np.ndarray, spaced: bool, ngram: int
) -> tuple[np.ndarray, np.ndarray]:
    """The set of shingles of every document, sorted: offsets int64[documents + 1] into hashes uint64[...].

    Args:
        data: uint8[...], UTF-8 in NFC.
        offsets: int64[documents + 1] into `data`.
        kind, folded: from `character_tables`.
        spaced: units are characters, and white space between them counts.
        ngram: units per shingle.
    """
    documents = len(offsets) - 1
    longest = 0
    for d in range(documents):
        longest = max(longest, offsets[d + 1] - offsets[d])
    units = np.empty(ngram + BUFFER, np.uint64)
    block = np.empty(ngram + BUFFER, np.uint64)
    shingles = np.empty(longest + 1, np.uint64)
    hashes = np.empty(offsets[documents] - offsets[0] + documents, np.uint64)
    ends = np.zeros(documents + 1, np.int64)
    for d in range(documents):
        count = shingles_of(data, offsets[d], offsets[d + 1], kind, folded, spaced, ngram, units, block, shingles)
        distinct = np.unique(shingles[:count])
        ends[d + 1] = ends[d] + len(distinct)
        hashes[ends[d] : ends[d + 1]] = distinct
    return ends, hashes[: ends[documents]].copy()


@numba.njit(nogil=True, cache=True)
def may_not_be_nfc(data: np.ndarray, offsets: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """bool[documents]: whether a document fails the quick check for NFC: it has an unsettled character, or marks that
    are not in the order of their combining classes.

    Args:
        classes: uint8[0x110000], from `combining_classes`.
    """
    found = np.zeros(len(offsets) - 1, np.bool_)
    for d in range(len(found)):
        at, stop = offsets[d], offsets[d + 1]
        last = 0
        while at < stop and not found[d]:
            behind = min(at + BLOCK, stop)
            together = np.uint8(0)
            for k in range(at, behind):  # vectorises: ASCII goes a block at a time
                together |= data[k]
            if together < 0x80:
                at, last = behind, 0
            while at < behind:
                code, at = decode(data, at)
                class_ = int(classes[np.uint64(code)]) if code >= 0x80 else 0
                if class_ == UNSETTLED or 0 < class_ < last:
                    found[d] = True
                    break
                last = class_
    return found


@cache
def may_be_space() -> np.ndarray:
    """bool[256]: whether a character that begins with this byte of UTF-8 may be white space."""
    spaces = np.flatnonzero(character_tables()[0] == SPACE)
    table = np.zeros(256, np.bool_)
    table[[chr(code).encode()[0] for code in spaces]] = True
    return table


@numba.njit(nogil=True, cache=True)
def collapse_white_space(
    data: np.ndarray, offsets: np.ndarray, kind: np.ndarray, may_be_space: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Every document with runs of white space made one space and the ends stripped: the key of exact duplicates.

    Without a branch per byte of ASCII: each byte is written, and stays unless it is white space after white space.
    """
    documents = len(offsets) - 1
    collapsed = np.empty(offsets[documents] - offsets[0] + 1, np.uint8)
    ends = np.zeros(documents + 1, np.int64)
    out = 0
    for d in range(documents):
        begin = out
        after_space = True  # white space at the start goes
        at, stop = offsets[d], offsets[d + 1]
        while at < stop:
            byte = data[np.uint64(at)]
            is_space = may_be_space[byte]
            following = at + 1
            if is_space and byte >= 0x80 and kind[decode(data, at)[0]] != SPACE:
                is_space = False
            elif is_space and byte >= 0x80:
                following = decode(data, at)[1]
            collapsed[np.uint64(out)] = np.uint8(0x20) if is_space else byte
            out += int(not (is_space and after_space))
            after_space = is_space
            at = following
        out -= int(out > begin and after_space)
        ends[d + 1] = out
    return ends, collapsed[:out]
