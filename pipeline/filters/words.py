"""Words, symbols and lines of every document, counted in one pass over its UTF-8.

A word is a maximal run of letters, marks, digits and underscores, or one character of a script without spaces. A piece
is a maximal run without white space. A symbol is a maximal run of one other character: "?!!" has two. Lines end at
line feeds; blank ones do not count. Example: "Wait... #no-1\\n- x" has 4 words (Wait, no, 1, x), 4 pieces, 4 symbols
(..., #, -, -), 1 hash, 1 ellipsis and 2 lines, one of them a bullet.
"""

from collections.abc import Sequence

import numba
import numpy as np

from seqmill.pipeline.dedup.characters import ALONE, SPACE, WORD
from seqmill.pipeline.dedup.shingles import decode, mix
from seqmill.pipeline.filters.characters import KIND, LETTER

(
    CHARACTERS,
    WORDS,
    WORD_CHARACTERS,
    ALPHABETIC_WORDS,
    PIECES,
    ALPHABETIC_PIECES,
    SYMBOLS,
    HASHES,
    ELLIPSES,
    LINES,
    BULLET_LINES,
    ELLIPSIS_LINES,
    STOP_WORDS,
) = range(13)
MEASURES = 13

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # the golden ratio, odd
_SEED = np.uint64(0x243F6A8885A308D3)
_HASH, _DOT, _DASH, _BULLET, _ELLIPSIS = 0x23, 0x2E, 0x2D, 0x2022, 0x2026
_LINE_END = 0x0A


@numba.njit(nogil=True, cache=True, inline="always")
def extend_hash(value: np.uint64, code: np.int64) -> np.uint64:
    """The hash of a text from that of all but its last character; `mix` it at the end."""
    value = (value ^ np.uint64(code)) * _MULTIPLIER
    return value ^ (value >> np.uint64(29))


@numba.njit(nogil=True, cache=True)
def hash_text(codes: np.ndarray) -> np.uint64:
    """The hash of a word or line of these code points."""
    value = _SEED
    for code in codes:
        value = extend_hash(value, code)
    return mix(value)


def stop_word_hashes(words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes uint64[n] of the words in small letters, capitalised and in capitals, and int64[n], which word each is."""
    forms = {form: index for index, word in enumerate(words) for form in (word.lower(), word.title(), word.upper())}
    hashes = [hash_text(np.array([ord(c) for c in form], np.int64)) for form in forms]
    return np.array(hashes, np.uint64), np.array(list(forms.values()), np.int64)


@numba.njit(nogil=True, cache=True)
def measure_words(
    data: np.ndarray, offsets: np.ndarray, flags: np.ndarray, stop_hashes: np.ndarray, stop_indices: np.ndarray
) -> np.ndarray:
    """int64[documents, MEASURES]; STOP_WORDS counts different ones."""
    counts = np.zeros((len(offsets) - 1, MEASURES), np.int64)
    found = np.zeros(len(stop_hashes) + 1, np.bool_)
    sieve = np.uint64(0)  # bit h % 64 is set for every stop word with hash h: spares most words the search
    for h in stop_hashes:
        sieve |= np.uint64(1) << (h & np.uint64(63))
    for d in range(len(offsets) - 1):
        count = counts[d]
        found[:] = False
        at, stop = offsets[d], offsets[d + 1]
        word, length, word_letter = _SEED, 0, False
        in_piece, piece_letter = False, False
        in_line, bullet, ellipsis = False, False, False
        dots, before = 0, -1
        characters = 0
        while at <= stop:
            if at < stop:
                code, at = decode(data, at)
                characters += 1
            else:
                code = _LINE_END  # closes what is open
                at += 1
            flag = flags[code]
            kind = flag & KIND
            if kind == WORD:
                word = extend_hash(word, code)
                length += 1
                word_letter |= (flag & LETTER) != 0
            elif length:
                count[WORDS] += 1
                count[WORD_CHARACTERS] += length
                count[ALPHABETIC_WORDS] += word_letter
                word = mix(word)
                if (sieve >> (word & np.uint64(63))) & np.uint64(1):
                    for k in range(len(stop_hashes)):
                        if stop_hashes[k] == word:
                            found[stop_indices[k]] = True
                word, length, word_letter = _SEED, 0, False
            if kind == SPACE:
                if in_piece:
                    count[PIECES] += 1
                    count[ALPHABETIC_PIECES] += piece_letter
                    in_piece, piece_letter = False, False
                if code == _LINE_END:
                    count[LINES] += in_line
                    count[BULLET_LINES] += in_line and bullet
                    count[ELLIPSIS_LINES] += in_line and ellipsis
                    in_line, ellipsis = False, False
                dots = 0
            else:
                if kind == ALONE:
                    count[WORDS] += 1
                    count[WORD_CHARACTERS] += 1
                    count[ALPHABETIC_WORDS] += (flag & LETTER) != 0
                elif kind != WORD:
                    count[SYMBOLS] += code != before
                    count[HASHES] += code == _HASH
                dots = dots + 1 if code == _DOT else 0
                count[ELLIPSES] += code == _ELLIPSIS or (dots > 0 and dots % 3 == 0)
                ellipsis = code == _ELLIPSIS or dots >= 3
                if not in_line:
                    bullet = code in (_BULLET, _DASH)
                in_line = True
                in_piece = True
                piece_letter |= (flag & LETTER) != 0
            before = code
        count[CHARACTERS] = characters
        count[STOP_WORDS] = found.sum()
    return counts
