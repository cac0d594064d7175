"""The C4 rules: lines dropped from documents, and documents removed, in one pass (Raffel et al. 2020, section 2.2).

A line loses the white space around it and meets the rules in this order: long word, no terminal mark, few words, lorem
ipsum, javascript, curly bracket, policy. The first that fires drops the line, or removes the document (lorem ipsum,
curly bracket). Lines that stay are joined by line feeds. Texts are searched for without regard to ASCII case.
"""

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.pipeline.dedup.characters import SPACE
from seqmill.pipeline.dedup.shingles import decode
from seqmill.pipeline.documents import utf8_buffers
from seqmill.pipeline.filters.characters import KIND, code_points, flag_table
from seqmill.pipeline.filters.config import C4Rules

LINE_REASONS = ("long word", "no terminal mark", "few words", "javascript", "policy")
LONG_WORD, NO_TERMINAL_MARK, FEW_WORDS, JAVASCRIPT, POLICY = range(5)
KEPT, LOREM_IPSUM, CURLY_BRACKET = 0, 1, 2  # outcomes of a document

CITATIONS = r"\[\d*\]|\[edit\]|\[citation needed\]"
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_NEEDLE_LOREM, _NEEDLE_JAVASCRIPT, _NEEDLE_POLICY = 1, 2, 4  # bits of what a line holds
_LINE_END, _DOT, _CURLY = 0x0A, 0x2E, 0x7B


def cut_citations(text: pa.Array) -> pa.Array:
    """`text` without citation marks; `text` itself if no document has one."""
    has = pc.match_substring_regex(text, CITATIONS)
    if not pc.any(has).as_py():
        return text
    return pc.replace_with_mask(text, has, pc.replace_substring_regex(text.filter(has), CITATIONS, ""))


def clean_lines(text: pa.Array, rules: C4Rules) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    """Apply the rules to every document.

    Returns:
        The texts that remain, of removed documents whatever was kept until then; outcome int64[documents]; sentences
        int64[documents] in the lines kept; dropped int64[documents, len(LINE_REASONS)]: bytes of lines by reason, with
        the white space around them and without their line feeds.
    """
    offsets, data = utf8_buffers(text)
    needles, needle_ends, bits = _needles(rules)
    ends, kept, outcome, sentences, dropped = _clean_lines(
        data,
        offsets,
        flag_table(),
        code_points(rules.terminal_marks),
        rules.min_line_words,
        rules.max_word_length or np.iinfo(np.int64).max,
        needles,
        needle_ends,
        bits,
        rules.curly_bracket,
    )
    cleaned = pa.LargeStringArray.from_buffers(len(text), pa.py_buffer(ends), pa.py_buffer(kept))
    return cleaned, outcome, sentences, dropped


def _needles(rules: C4Rules) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The texts to search, as bytes one behind the other, their ends int64[n + 1], and their bits."""
    wanted = [("lorem ipsum", _NEEDLE_LOREM)] if rules.lorem_ipsum else []
    wanted += [("javascript", _NEEDLE_JAVASCRIPT)] if rules.javascript else []
    wanted += [(policy, _NEEDLE_POLICY) for policy in POLICIES] if rules.policy else []
    joined = "".join(needle for needle, _ in wanted).encode()
    ends = np.cumsum([0, *(len(needle) for needle, _ in wanted)])
    return np.frombuffer(joined, np.uint8), ends, np.array([bit for _, bit in wanted], np.int64)


@numba.njit(nogil=True, cache=True, inline="always")
def _small(byte: np.uint8) -> np.uint8:
    return byte + np.uint8(32) if np.uint8(0x41) <= byte <= np.uint8(0x5A) else byte


@numba.njit(nogil=True, cache=True)
def _search(
    data: np.ndarray, start: int, stop: int, needles: np.ndarray, ends: np.ndarray, bits: np.ndarray, begins: np.ndarray
) -> int:
    """The bits of all needles in data[start:stop]; `begins` bool[256] holds their first bytes."""
    found = 0
    for at in range(start, stop):
        byte = _small(data[at])
        if not begins[byte]:
            continue
        for k in range(len(bits)):
            length = ends[k + 1] - ends[k]
            if needles[ends[k]] != byte or at + length > stop:
                continue
            same = 1
            while same < length and _small(data[at + same]) == needles[ends[k] + same]:
                same += 1
            if same == length:
                found |= bits[k]
    return found


@numba.njit(nogil=True, cache=True)
def _count_sentences(data: np.ndarray, start: int, stop: int) -> int:
    """Sentences of a stripped line, at least one: it is cut behind one of .!? and closing quotes or brackets where
    white space follows and then no small ASCII letter ("e.g. this" is not cut)."""
    sentences = 1
    ended, spaced = False, False
    for at in range(start, stop):
        byte = data[at]
        if byte in (0x20, 0x09):
            spaced = ended
        elif spaced:
            sentences += not (0x61 <= byte <= 0x7A)
            ended, spaced = byte in (0x2E, 0x21, 0x3F), False
        elif byte in (0x2E, 0x21, 0x3F):
            ended = True
        elif byte not in (0x22, 0x27, 0x29, 0x5D):
            ended = False
    return sentences


@numba.njit(nogil=True, cache=True)
def _scan_line(data: np.ndarray, start: int, stop: int, flags: np.ndarray) -> tuple[int, int, int, int, np.int64, bool]:
    """Where the line without white space around it begins and ends, its pieces between white space, the characters of
    the longest, its last character, and whether it holds "{"."""
    first, last = stop, stop
    pieces, length, longest = 0, 0, 0
    final = np.int64(0)
    curly = False
    at = start
    while at < stop:
        before = at
        code, at = decode(data, at)
        if (flags[code] & KIND) == SPACE:
            length = 0
            continue
        if first == stop:
            first = before
        pieces += length == 0
        length += 1
        longest = max(longest, length)
        last, final = at, code
        curly |= code == _CURLY
    return first, last, pieces, longest, final, curly


@numba.njit(nogil=True, cache=True)
def _clean_lines(
    data: np.ndarray,
    offsets: np.ndarray,
    flags: np.ndarray,
    marks: np.ndarray,
    min_words: int,
    max_word: int,
    needles: np.ndarray,
    needle_ends: np.ndarray,
    bits: np.ndarray,
    curly_bracket: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    documents = len(offsets) - 1
    kept = np.empty(offsets[documents] - offsets[0] + 1, np.uint8)
    ends = np.zeros(documents + 1, np.int64)
    outcome = np.zeros(documents, np.int64)
    sentences = np.zeros(documents, np.int64)
    dropped = np.zeros((documents, len(LINE_REASONS)), np.int64)
    begins = np.zeros(256, np.bool_)
    for k in range(len(bits)):
        begins[needles[needle_ends[k]]] = True
    out = 0
    for d in range(documents):
        begin = out
        start = offsets[d]
        while start < offsets[d + 1] and outcome[d] == KEPT:
            stop = start
            while stop < offsets[d + 1] and data[stop] != _LINE_END:
                stop += 1
            first, last, pieces, longest, final, curly = _scan_line(data, start, stop, flags)
            size = stop - start
            start = stop + 1
            if pieces == 0:
                continue
            if longest > max_word:
                dropped[d, LONG_WORD] += size
                continue
            if len(marks):
                place = np.searchsorted(marks, final)
                ellipsis = last - first >= 3 and data[last - 1] == _DOT == data[last - 2] == data[last - 3]
                if place == len(marks) or marks[place] != final or ellipsis:
                    dropped[d, NO_TERMINAL_MARK] += size
                    continue
            if pieces < min_words:
                dropped[d, FEW_WORDS] += size
                continue
            found = _search(data, first, last, needles, needle_ends, bits, begins)
            if found & _NEEDLE_LOREM:
                outcome[d] = LOREM_IPSUM
            elif found & _NEEDLE_JAVASCRIPT:
                dropped[d, JAVASCRIPT] += size
            elif curly and curly_bracket:
                outcome[d] = CURLY_BRACKET
            elif found & _NEEDLE_POLICY:
                dropped[d, POLICY] += size
            else:
                sentences[d] += _count_sentences(data, first, last)
                if out > begin:
                    kept[out] = _LINE_END
                    out += 1
                kept[out : out + last - first] = data[first:last]
                out += last - first
        ends[d + 1] = out
    return ends, kept[:out], outcome, sentences, dropped
