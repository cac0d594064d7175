"""Anchors: the least gram of every window, by one pass over the bytes (winnowing, Schleimer et al. 2003, section 3).

    min_bytes 8: grams of 4 bytes, 5 in a window
    text       t h e   c a t   s a t
    hash       7 3 9 2 8 6 1 5             of the gram that starts here
    windows    0-3: anchor at 3 or 6...    a run of windows that share one anchor is one row

Text of a short period is the one case in which anchors crowd: a run of spaces has an anchor at each of them. There the
windows equal those one period before, which a comparison with the last anchor shows; such a row goes to the repeats
instead of the exchange, and all repeats of a run are one row.
"""

import numba
import numpy as np

from seqmill.pipeline.substrings.rows import with_room

BASE = np.uint64(0x9E3779B97F4A7C15)  # odd; of the polynomial hashes, modulo 2**64
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_SPREAD = np.uint64(0x94D049BB133111EB)
_HIGHEST = np.uint64(2**64 - 1)

KEY, PLACE, FIRST, LAST, DOCUMENT = range(5)  # columns of anchor rows; FIRST and LAST are window starts
ANCHOR_FIELDS = 5


def gram_bytes(min_bytes: int) -> int:
    """The length of a gram: half a window."""
    return (min_bytes + 1) // 2


@numba.njit(nogil=True, cache=True, inline="always")
def _mixed(hash_: np.uint64) -> np.uint64:
    """A one-to-one map that makes the order of hashes independent of the bytes."""
    hash_ = (hash_ ^ (hash_ >> np.uint64(32))) * _MIX
    return hash_ ^ (hash_ >> np.uint64(29))


@numba.njit(nogil=True, cache=True, inline="always")
def _least_from(hashes: np.ndarray, place: int, least: np.ndarray, least_place: np.ndarray) -> None:
    """The least hash of hashes[k:], for every k, and its position when the first hash is of `place`."""
    best, best_place = hashes[-1], place + len(hashes) - 1
    for k in range(len(hashes) - 1, -1, -1):
        first = hashes[k] <= best
        best, best_place = (hashes[k], place + k) if first else (best, best_place)
        least[k], least_place[k] = best, best_place


@numba.njit(nogil=True, cache=True)
def least_grams(data: np.ndarray, positions: np.ndarray, min_bytes: int, gram: int) -> np.ndarray:
    """The anchors of all windows of a batch of documents, in order.

    The grams of a document go by in blocks as long as a window has grams. A window reaches from one block into the
    next: its least gram is the least of the rest of the one or of the beginning of the other. That costs a few
    operations a byte for any text, and no branch that depends on it.

    Args:
        data: uint8[...]: the bytes that positions count.
        positions: int64[documents + 1]: document d is data[positions[d]:positions[d + 1]].

    Returns:
        int64[anchors, 5]: a key that is equal for equal grams (uint64 bits, spread evenly), the gram's position, the
        first and the last window that have this anchor, the start of the document.
    """
    block = min_bytes - gram + 1  # grams in a window
    hashes = np.empty(block, np.uint64)
    least = np.empty(block, np.uint64)
    least_place = np.empty(block, np.int64)
    leaving = np.uint64(1)  # BASE ** gram: the weight of the byte that leaves
    for _ in range(gram):
        leaving *= BASE
    rows = np.empty((1024, ANCHOR_FIELDS), np.int64)
    count = 0
    for document in range(len(positions) - 1):
        start, stop = positions[document], positions[document + 1]
        if stop - start < min_bytes:
            continue
        rolling = np.uint64(0)
        for at in range(start, start + gram):
            rolling = rolling * BASE + np.uint64(data[at])
        for k in range(block):  # the grams of the first window
            hashes[k] = _mixed(rolling)
            if start + gram + k < stop:
                arriving, left = np.uint64(data[start + gram + k]), np.uint64(data[start + k])
                rolling = rolling * BASE + arriving - left * leaving
        anchor = np.int64(-1)
        for window in range(start, stop - min_bytes + 1, block):
            _least_from(hashes, window, least, least_place)
            ahead, ahead_place = _HIGHEST, np.int64(-1)  # the least gram of the next block so far
            for k in range(min(block, stop - min_bytes + 1 - window)):
                behind = least[k] <= ahead  # the first among equals
                place = least_place[k] if behind else ahead_place
                if place != anchor:
                    if anchor >= 0:
                        rows[count - 1, LAST] = window + k - 1
                    anchor = place
                    rows = with_room(rows, count)
                    # anchors are least hashes, so low ones: multiplied again, they spread over all ranges
                    rows[count, KEY] = np.int64((least[k] if behind else ahead) * _SPREAD)
                    rows[count, PLACE], rows[count, FIRST], rows[count, DOCUMENT] = anchor, window + k, start
                    count += 1
                at = window + block + k
                hash_ = _mixed(rolling)
                hashes[k] = hash_
                closer = hash_ < ahead
                ahead, ahead_place = (hash_, np.int64(at)) if closer else (ahead, ahead_place)
                if at + gram < stop:
                    rolling = rolling * BASE + np.uint64(data[at + gram]) - np.uint64(data[at]) * leaving
        rows[count - 1, LAST] = stop - min_bytes
    return rows[:count]


@numba.njit(nogil=True, cache=True)
def take_repeats(data: np.ndarray, rows: np.ndarray, min_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Tell the anchors whose windows all equal those at the last anchor, one period before, from the others.

    Returns:
        bool[anchors]: the anchors that need the exchange.
        int64[repeats, 3]: first window, number of windows, the place of the same bytes one period before.
    """
    needed = np.ones(len(rows), np.bool_)
    repeats = np.empty((16, 3), np.int64)
    count = 0
    period, since, until = np.int64(0), np.int64(0), np.int64(0)  # data[i] == data[i - period] for since <= i < until
    for row in range(1, len(rows)):
        first, stop = rows[row, FIRST], rows[row, LAST] + min_bytes
        apart = rows[row, PLACE] - rows[row - 1, PLACE]
        same = rows[row, KEY] == rows[row - 1, KEY] and rows[row, DOCUMENT] == rows[row - 1, DOCUMENT]
        if not same or first - apart < rows[row, DOCUMENT]:
            continue
        if apart != period or first < since or first > until:
            period, since, until = apart, first, first
        while until < stop and data[until] == data[until - period]:
            until += 1
        if until < stop:
            continue
        needed[row] = False
        windows = rows[row, LAST] - first + 1
        if (
            count
            and repeats[count - 1, 0] + repeats[count - 1, 1] == first
            and repeats[count - 1, 2] == (repeats[count - 1, 0] - apart)
        ):
            repeats[count - 1, 1] += windows
        else:
            repeats = with_room(repeats, count)
            repeats[count, 0], repeats[count, 1], repeats[count, 2] = first, windows, first - apart
            count += 1
    return needed, repeats[:count]
