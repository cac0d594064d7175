"""Where tokens may not be merged: the borders that a rule draws through rows of ids.

A rule cuts bytes, but ids mostly tell where: behind " the" nothing but more letters goes on, and "," begins anew
whatever follows. What an id tells is worked out once for a tokenizer and a rule, as its outline; where outlines do not
tell, the bytes of the row are cut.
"""

import numba
import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import Encoder
from seqmill.tokenizers_ext.splitting import (
    GPT2,
    LETTER,
    PATTERNS,
    SPACE,
    SUPERWORD,
    WORD,
    character_classes,
    class_at,
    pre_token_end,
    rule_number,
)
from seqmill.tokenizers_ext.token_bytes import TokenBytes, bytes_of_ids

NO_RULE = -1
UNTOLD = 0  # no kind; as an answer: look at the bytes
GOES_ON, BEGINS = 1, 2
MIXED, BROKEN = -1, -2  # characters of several kinds; bytes that are no whole character
MOST_KNOWN = 8
BLOCK = 8  # bytes copied at a time; most ids have fewer
_known: dict[tuple[str, str], np.ndarray] = {}  # fingerprint, rule -> outlines that were asked last


def segments_of(ids: np.ndarray, row_offsets: np.ndarray, encoder: Encoder, rule: str) -> np.ndarray:
    """Number the stretches of tokens that a rule keeps apart: int32[tokens], ascending over all rows.

    A row is a stretch of its own, and so is every id without bytes: they are special. Rule "none" knows no other
    border; the others are keys of `splitting.PATTERNS`, and a token begins a stretch when a pre-token of the row's
    bytes begins within it.

    Args:
        ids: unsigned integers[tokens].
        row_offsets: int64[rows + 1] into ids.
        encoder: the tokenizer of the ids.
        rule: "none", or how bytes are cut.

    Raises:
        UserError: no such rule.
    """
    if rule != "none" and rule not in PATTERNS:
        raise UserError(f"rule = {rule!r}: choose one of none, {', '.join(PATTERNS)}")
    pieces = bytes_of_ids(encoder)
    begins = np.zeros(len(ids) + 1, bool)
    begins[row_offsets] = True
    if rule != "none":
        outlines = _outlines_of(encoder.fingerprint, pieces, rule)
        _mark_rows(ids, row_offsets, *pieces, outlines, rule_number(rule), character_classes(), begins)
    segments = np.empty(len(ids), np.int32)
    _number(ids, pieces[0], begins, segments)
    return segments


def flat_rows(ids: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all rows one after the other, and int64[rows + 1] offsets into them, from 0."""
    offsets = ids.offsets.to_numpy().astype(np.int64)
    return ids.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


@numba.njit(nogil=True, cache=True)
def _number(ids: np.ndarray, piece_offsets: np.ndarray, begins: np.ndarray, segments: np.ndarray) -> None:
    """Count up at every token that begins a stretch, and before and behind every id without bytes."""
    number, alone = -1, False
    for t in range(len(ids)):
        id_ = np.uint64(ids[t])
        was_alone, alone = alone, piece_offsets[id_ + np.uint64(1)] == piece_offsets[id_]
        number += begins[t] or alone or was_alone
        segments[t] = number


def _outlines_of(fingerprint: str, pieces: TokenBytes, rule: str) -> np.ndarray:
    """uint8[vocab_size], see `outline`."""
    if (fingerprint, rule) not in _known:
        while len(_known) >= MOST_KNOWN:
            _known.pop(next(iter(_known)), None)
        outlines = np.empty(len(pieces[0]) - 1, np.uint8)
        _outline_all(*pieces, rule_number(rule), character_classes(), outlines)
        _known[fingerprint, rule] = outlines
    return _known[fingerprint, rule]


@numba.njit(nogil=True, cache=True)
def _outline_all(offsets: np.ndarray, data: np.ndarray, rule: int, classes: np.ndarray, outlines: np.ndarray) -> None:
    for k in range(len(outlines)):
        outlines[k] = outline(data, offsets[k], offsets[k + 1], rule, classes)


@numba.njit(nogil=True, cache=True)
def outline(data: np.ndarray, start: int, stop: int, rule: int, classes: np.ndarray) -> int:
    """What the bytes of an id tell of pre-tokens, whatever stands around them: four numbers of two bits.

    The lowest is the kind of the run that a pre-token is which begins with this id: 1 for letters, 2 for numbers, 3 for
    other signs, all 1 under rule WORD; UNTOLD if it may be another thing. The next three answer what this id does
    behind a run of each kind: it GOES_ON to its end and may go on behind it, or a pre-token BEGINS with it, or UNTOLD.
    Under GPT2 " the" has 1 | BEGINS << 2 | BEGINS << 4 | BEGINS << 6, "ing" the same with GOES_ON << 2.

    Characters that are cut by the border of an id are not told of, so what is told holds in every row: a character is
    known from its own bytes, and a run of whole characters does not end within one.
    """
    if rule == SUPERWORD or start == stop:
        return UNTOLD
    lead, size = _kind_at(data, start, stop, rule, classes)
    if lead == BROKEN:
        return UNTOLD
    spaced = data[start] == ord(" ")
    at = start + size if spaced else start
    kind = MIXED if at == stop else _kind_at(data, at, stop, rule, classes)[0]
    while at < stop and kind > UNTOLD:
        found, size = _kind_at(data, at, stop, rule, classes)
        if found != kind:
            kind = MIXED
        at += size
    told = UNTOLD
    if kind > UNTOLD and (kind == LETTER or rule == GPT2) and not (rule == GPT2 and data[start] == ord("'")):
        told = kind
    for behind in range(1, 4):
        answer = BEGINS if lead != behind else GOES_ON if kind == lead else UNTOLD
        told |= answer << 2 * behind
    return told


@numba.njit(nogil=True, cache=True)
def _kind_at(data: np.ndarray, at: int, stop: int, rule: int, classes: np.ndarray) -> tuple[int, int]:
    """The kind of the character at data[at], UNTOLD for white space, and its length in bytes."""
    class_, size = class_at(data, at, stop, classes)
    if data[at] >= 0x80 and size == 1:
        return BROKEN, 1
    if class_ == SPACE:
        return UNTOLD, size
    if rule == WORD:
        return 1, size
    return class_ if class_ else 3, size  # OTHER is 0


@numba.njit(nogil=True, cache=True)
def _mark_rows(
    ids: np.ndarray,
    row_offsets: np.ndarray,
    piece_offsets: np.ndarray,
    pieces: np.ndarray,
    outlines: np.ndarray,
    rule: int,
    classes: np.ndarray,
    begins: np.ndarray,
) -> None:
    """Mark the tokens in which a pre-token begins."""
    text = np.empty(0, np.uint8)
    for row in range(len(row_offsets) - 1):
        first, last = row_offsets[row], row_offsets[row + 1]
        size = np.int64(0)  # of one type: for a 0 all that it is given to would be compiled once more
        for t in range(first, last):
            id_ = np.uint64(ids[np.uint64(t)])
            size += piece_offsets[id_ + np.uint64(1)] - piece_offsets[id_]
        if size + BLOCK > len(text):
            text = np.empty(2 * size + BLOCK, np.uint8)
        _write(ids, first, last, piece_offsets, pieces, text)
        _mark(ids, first, last, piece_offsets, text, size, outlines, rule, classes, begins)


@numba.njit(nogil=True, cache=True)
def _write(
    ids: np.ndarray, first: int, last: int, piece_offsets: np.ndarray, pieces: np.ndarray, text: np.ndarray
) -> None:
    """Put the bytes of ids[first:last] side by side; up to BLOCK bytes behind them are overwritten."""
    at, whole_blocks = np.uint64(0), len(pieces) - BLOCK
    for t in range(first, last):
        id_ = np.uint64(ids[np.uint64(t)])
        start, stop = piece_offsets[id_], piece_offsets[id_ + np.uint64(1)]
        source, size, done = np.uint64(start), np.uint64(stop - start), np.uint64(0)
        if start <= whole_blocks:
            for k in range(BLOCK):  # a number of bytes known in advance is copied without a loop
                text[at + np.uint64(k)] = pieces[source + np.uint64(k)]
            done = np.uint64(BLOCK)
        while done < size:
            text[at + done] = pieces[source + done]
            done += np.uint64(1)
        at += size


@numba.njit(nogil=True, cache=True)
def _mark(
    ids: np.ndarray,
    first: int,
    last: int,
    piece_offsets: np.ndarray,
    text: np.ndarray,
    size: int,
    outlines: np.ndarray,
    rule: int,
    classes: np.ndarray,
    begins: np.ndarray,
) -> None:
    """Mark the tokens ids[first:last], whose bytes are text[:size], in which a pre-token begins.

    At the top of the loop one begins at byte `at`, in the token t, which begins at byte `start`.
    """
    one, t, end_of_row = np.uint64(1), np.uint64(first), np.uint64(last)
    start = at = np.int64(0)
    while t < end_of_row:
        begins[t] = True
        kind = outlines[np.uint64(ids[t])] & 3 if at == start else UNTOLD
        if kind != UNTOLD:
            here, behind = t, start
            answer = GOES_ON
            while answer == GOES_ON:
                id_ = np.uint64(ids[here])
                behind += piece_offsets[id_ + one] - piece_offsets[id_]
                here += one
                answer = outlines[np.uint64(ids[here])] >> 2 * kind & 3 if here < end_of_row else BEGINS
            if answer == BEGINS:
                t, start = here, behind
                at = start
                continue
        at = pre_token_end(text, at, size, rule, classes)
        while t < end_of_row:
            id_ = np.uint64(ids[t])
            stop = start + piece_offsets[id_ + one] - piece_offsets[id_]
            if stop > at:
                break
            start = stop
            t += one
