"""Where text is cut into pre-tokens, the units that no ordinary BPE merge crosses.

The rules are those of widely used tokenizers, written as kernels over bytes; `PATTERNS` holds the same rules as regular
expressions for `tokenizers`, which is their definition. Which characters are letters, numbers and white space is
asked from the regular expressions of `tokenizers` itself, so that both always follow the same Unicode version.
"""

from functools import cache

import numba
import numpy as np
from tokenizers import Regex, pre_tokenizers

from seqmill.errors import UserError
from seqmill.tokenizers_ext.patterns import (
    CL100K_PATTERN,
    GPT2_PATTERN,
    QWEN2_PATTERN,
    SUPERWORD_PATTERN,
    WORD_PATTERN,
)

PATTERNS = {
    "gpt2": GPT2_PATTERN,
    "cl100k": CL100K_PATTERN,
    "qwen2": QWEN2_PATTERN,
    "word": WORD_PATTERN,
    "superword": SUPERWORD_PATTERN,
}
RULES = {name: number for number, name in enumerate(PATTERNS)}
GPT2, CL100K, QWEN2, WORD, SUPERWORD = range(5)

OTHER, LETTER, NUMBER, SPACE, NOT_ASCII = range(5)
CODE_POINTS = 0x110000
LAST_ASSIGNED = 0x40000  # beyond plane 3 there are neither letters nor numbers nor white space
CHUNK = 0x800  # code points asked at a time: surrogates fill whole chunks, and short texts are cut faster

LONG_S = "\u017f"  # without regard to case this is an s, the only such sign beyond ASCII in the contractions


def pre_token_ends(offsets: np.ndarray, data: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Where every pre-token of every document ends.

    Args:
        offsets: int64[documents + 1] into data.
        data: uint8[bytes], UTF-8; a byte that is no UTF-8 counts as a sign of its own.
        rule: a key of `PATTERNS`.

    Returns:
        ends int64[pre-tokens], positions in data, ascending; and how many pre-tokens lie before each document,
        int64[documents + 1].

    Raises:
        UserError: no such rule.
    """
    ends = np.empty(offsets[-1] - offsets[0], np.int64)  # pages that are not written take no memory
    per_document = np.zeros(len(offsets), np.int64)
    found = _all_ends(offsets, data, rule_number(rule), character_classes(), ends, per_document)
    return ends[:found].copy(), per_document


def rule_number(rule: str) -> int:
    """The number by which kernels know a rule.

    Raises:
        UserError: no such rule.
    """
    if rule not in RULES:
        raise UserError(f"split = {rule!r}: choose one of {', '.join(PATTERNS)}")
    return RULES[rule]


@cache
def character_classes() -> np.ndarray:
    """uint8[0x110100]: OTHER, LETTER, NUMBER or SPACE for every code point, as the regular expressions of `tokenizers`
    see it; and, behind them, the same for every byte, where all that is not ASCII is NOT_ASCII."""
    table = np.zeros(CODE_POINTS + 256, np.uint8)
    for number, outside in ((LETTER, r"\P{L}+"), (NUMBER, r"\P{N}+"), (SPACE, r"\S+")):
        splitter = pre_tokenizers.Split(Regex(outside), "removed")
        for first in range(0, LAST_ASSIGNED, CHUNK):
            text = "".join(map(chr, range(first, first + CHUNK)))
            text = text if not 0xD800 <= first < 0xE000 else ""  # no text holds surrogates
            for _, (start, stop) in splitter.pre_tokenize_str(text):
                table[first + start : first + stop] = number
    table[CODE_POINTS:] = np.where(np.arange(256) < 0x80, table[:256], NOT_ASCII)
    return table


@numba.njit(nogil=True, cache=True)
def _all_ends(
    offsets: np.ndarray, data: np.ndarray, rule: int, classes: np.ndarray, ends: np.ndarray, per_document: np.ndarray
) -> int:
    found = 0
    for d in range(len(offsets) - 1):
        at, stop = offsets[d], offsets[d + 1]
        while at < stop:
            at = pre_token_end(data, at, stop, rule, classes)
            ends[found] = at
            found += 1
        per_document[d + 1] = found
    return found


@numba.njit(nogil=True, cache=True, inline="always")
def pre_token_end(data: np.ndarray, at: int, stop: int, rule: int, classes: np.ndarray) -> int:
    """The end of the pre-token that begins at data[at], in a document that ends at `stop` > `at`."""
    end = _plain_end(data, at, stop, rule, classes)
    return end if end > at else _ruled_end(data, at, stop, rule, classes)


@numba.njit(nogil=True, cache=True)
def _ruled_end(data: np.ndarray, at: int, stop: int, rule: int, classes: np.ndarray) -> int:
    if rule in (GPT2, SUPERWORD):
        return _gpt2_end(data, at, stop, rule == SUPERWORD, classes)
    if rule == WORD:
        return _word_end(data, at, stop, classes)
    return _cl100k_end(data, at, stop, 3 if rule == CL100K else 1, classes)


@numba.njit(nogil=True, cache=True, inline="always")
def _plain_end(data: np.ndarray, at: int, stop: int, rule: int, classes: np.ndarray) -> int:
    """The end of what most pre-tokens are: a run of ASCII letters (under GPT2 also of numbers or signs) with a space
    before it or none, and an ASCII character of another class right behind. `at` for all others: rules tell those."""
    one, table = np.uint64(1), np.uint64(CODE_POINTS)
    here, last = np.uint64(at), np.uint64(stop)  # unsigned indices are not tested for counting from the end
    begin = here + one if data[here] == ord(" ") and here + one < last else here
    kind = classes[table + data[begin]]
    plain = kind == LETTER if rule != GPT2 else kind < SPACE
    if not plain or rule > QWEN2 or data[here] == ord("'"):
        return at
    end = begin + one
    while end < last and classes[table + data[end]] == kind:
        end += one
    if end < last and data[end] >= 0x80:
        return at
    return np.int64(end)  # type: ignore[return-value]


@numba.njit(nogil=True, cache=True, inline="always")
def class_at(data: np.ndarray, at: int, stop: int, classes: np.ndarray) -> tuple[int, int]:
    """The class of the character at data[at] and its length in bytes."""
    lead = data[np.uint64(at)]
    if lead < 0x80:
        return int(classes[lead]), 1
    return _class_of_several(data, at, stop, classes)


@numba.njit(nogil=True, cache=True)
def _class_of_several(data: np.ndarray, at: int, stop: int, classes: np.ndarray) -> tuple[int, int]:
    lead = np.int64(data[at])
    size = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    if lead < 0xC2 or lead > 0xF4 or at + size > stop:
        return OTHER, 1
    code = lead & (0x7F >> size)
    for k in range(1, size):
        following = np.int64(data[at + k])
        if following & 0xC0 != 0x80:
            return OTHER, 1
        code = code << 6 | (following & 0x3F)
    if code > 0x10FFFF:
        return OTHER, 1
    return int(classes[code]), size


@numba.njit(nogil=True, cache=True, inline="always")
def _run_end(data: np.ndarray, at: int, stop: int, wanted: int, classes: np.ndarray) -> int:
    """The end of the run of characters of one class from data[at] on; `at` itself when there is none."""
    while at < stop:
        lead = data[np.uint64(at)]  # an unsigned index is not tested for counting from the end
        if lead < 0x80:
            if classes[lead] != wanted:
                break
            at += 1
        else:
            class_, size = _class_of_several(data, at, stop, classes)
            if class_ != wanted:
                break
            at += size
    return at


@numba.njit(nogil=True, cache=True)
def _space_end(data: np.ndarray, begin: int, stop: int, classes: np.ndarray) -> int:
    r"""`\s+(?!\S)|\s+`: white space up to the end of the document, or all but the last character of several."""
    at = last = begin
    while at < stop:
        class_, size = class_at(data, at, stop, classes)
        if class_ != SPACE:
            return at if last == begin else last
        last = at
        at += size
    return at


@numba.njit(nogil=True, cache=True)
def _contraction_end(data: np.ndarray, at: int, stop: int, any_case: bool) -> int:
    """The end of 's 't 're 've 'm 'll 'd behind the apostrophe at data[at]; `at` when there is none."""
    if at + 1 >= stop:
        return at
    first = data[at + 1] | 0x20 if any_case else data[at + 1]
    if first == ord("s") or first == ord("t") or first == ord("m") or first == ord("d"):
        return at + 2
    if at + 2 >= stop:
        return at
    second = data[at + 2] | 0x20 if any_case else data[at + 2]
    if (second == ord("e") and (first == ord("r") or first == ord("v"))) or first == second == ord("l"):
        return at + 3
    if any_case and data[at + 1] == 0xC5 and data[at + 2] == 0xBF:  # LONG_S
        return at + 3
    return at


@numba.njit(nogil=True, cache=True)
def _gpt2_end(data: np.ndarray, at: int, stop: int, joins_words: bool, classes: np.ndarray) -> int:
    if data[at] == ord("'"):
        end = _contraction_end(data, at, stop, False)
        if end > at:
            return end
    class_, size = class_at(data, at, stop, classes)
    start = at
    if data[at] == ord(" ") and at + 1 < stop:
        class_, size = class_at(data, at + 1, stop, classes)
        start = at + 1
    if class_ == SPACE:
        return _space_end(data, at, stop, classes)
    end = _run_end(data, start + size, stop, class_, classes)
    while joins_words and class_ == LETTER and end + 1 < stop and data[end] == ord(" "):
        longer = _run_end(data, end + 1, stop, LETTER, classes)
        if longer == end + 1:
            break
        end = longer
    return end


@numba.njit(nogil=True, cache=True)
def _word_end(data: np.ndarray, at: int, stop: int, classes: np.ndarray) -> int:
    class_, size = class_at(data, at, stop, classes)
    if data[at] == ord(" ") and at + 1 < stop:
        class_, size = class_at(data, at + 1, stop, classes)
        size += 1
    if class_ == SPACE:
        return _space_end(data, at, stop, classes)
    end = at + size
    while end < stop:
        class_, size = class_at(data, end, stop, classes)
        if class_ == SPACE:
            break
        end += size
    return end


@numba.njit(nogil=True, cache=True)
def _cl100k_end(data: np.ndarray, at: int, stop: int, most_digits: int, classes: np.ndarray) -> int:
    lead = data[at]
    if lead == ord("'"):
        end = _contraction_end(data, at, stop, True)
        if end > at:
            return end
    class_, size = class_at(data, at, stop, classes)
    if class_ == LETTER:
        return _run_end(data, at + size, stop, LETTER, classes)
    if class_ == NUMBER:
        return _digits_end(data, at + size, stop, most_digits - 1, classes)
    if at + size < stop and not _ends_line(lead):
        following, following_size = class_at(data, at + size, stop, classes)
        if following == LETTER:
            return _run_end(data, at + size + following_size, stop, LETTER, classes)
        if lead == ord(" ") and following == OTHER:
            class_, size = OTHER, size + following_size
    if class_ == OTHER:
        end = _run_end(data, at + size, stop, OTHER, classes)
        while end < stop and _ends_line(data[end]):
            end += 1
        return end
    last_line = _last_line_end(data, at, stop, classes)
    return last_line if last_line > at else _space_end(data, at, stop, classes)


@numba.njit(nogil=True, cache=True, inline="always")
def _ends_line(byte: int) -> bool:
    return byte == ord("\n") or byte == ord("\r")


@numba.njit(nogil=True, cache=True)
def _digits_end(data: np.ndarray, at: int, stop: int, most: int, classes: np.ndarray) -> int:
    for _ in range(most):
        if at >= stop:
            break
        class_, size = class_at(data, at, stop, classes)
        if class_ != NUMBER:
            break
        at += size
    return at


@numba.njit(nogil=True, cache=True)
def _last_line_end(data: np.ndarray, at: int, stop: int, classes: np.ndarray) -> int:
    r"""`\s*[\r\n]+`: behind the last line end of the white space at data[at]; `at` when it holds none."""
    found = at
    while at < stop:
        class_, size = class_at(data, at, stop, classes)
        if class_ != SPACE:
            break
        at += size
        if _ends_line(data[at - size]):
            found = at
    return found
