"""Cutting text into the fewest strings of a dictionary, instead of the longest one first.

    strings a, b, c, d, abc, bcd         "abcd"    longest first: abc d; fewest: also 2, a bcd
    strings a, b, c, d, e, ab, bcde      "abcde"   longest first: ab c d e, 4 windows; fewest: a bcde, 2

A shortest path from the document's start to its end, an edge for every string that stands at a place (PathPiece:
Schmidt et al. 2024, "Tokenization Is More Than Compression"). Of equally short paths the one is taken whose last string
is longest, then the last but one, and so on: so the cut is the same everywhere.
"""

from collections.abc import Callable

import numba
import numpy as np

from seqmill.compress.dictionary import LONGEST_STRING
from seqmill.compress.matching import longest_matches
from seqmill.compress.trie import BASE_MASK, BASE_SHIFT, BYTE_MASK, ID_BITS, ID_MASK, STRING_SHIFT, Trie
from seqmill.errors import UserError

STRETCH = 1 << 20  # bytes of text
REACH = LONGEST_STRING + 1  # places that a string reaches beyond the one where it begins, and that one
NEVER = np.uint32(0xFFFFFFFF)

Parse = Callable[..., tuple[np.ndarray, np.ndarray]]  # (trie, data, offsets, id_type) -> ids, offsets into them


def parse(name: str) -> Parse:
    """How text is cut: "longest", the longest string first; or "fewest", into as few strings as can be.

    Raises:
        UserError: another name.
    """
    parses = {"longest": longest_matches, "fewest": fewest_windows}
    if name not in parses:
        raise UserError(f"parse = {name!r}: choose one of {', '.join(parses)}")
    return parses[name]


def fewest_windows(
    trie: Trie, data: np.ndarray, offsets: np.ndarray, id_type: type = np.uint32
) -> tuple[np.ndarray, np.ndarray]:
    """Cut every document into as few strings as can be; see `longest_matches`.

    Memory: some 8 bytes for each byte of a stretch of text, which is a megabyte unless its shortest cuts never meet, as
    in a long run of one byte.
    """
    offsets = np.ascontiguousarray(offsets, np.int64)
    ids = np.empty(offsets[-1] - offsets[0], id_type)
    ends = np.zeros(len(offsets), np.int64)
    _fewest_windows(trie.units, trie.values, trie.root, data, offsets, STRETCH, ids, ends)
    return ids[: ends[-1]].copy(), ends


@numba.njit(nogil=True, cache=True)
def _fewest_windows(
    units: np.ndarray,
    values: np.ndarray,
    root: int,
    data: np.ndarray,
    offsets: np.ndarray,
    stretch: int,
    ids: np.ndarray,
    ends: np.ndarray,
) -> None:
    """Stretch by stretch: what every shortest cut of a stretch begins with is written, the rest begins the next one.

    `windows[p]`: fewest strings up to place p of the stretch; `last[p]`: the last of them, length << 24 | id.
    """
    windows, last = np.empty(stretch + REACH, np.uint32), np.empty(stretch + REACH, np.uint32)
    out = np.int64(0)
    for document in range(len(offsets) - 1):
        start, stop = offsets[document], offsets[document + 1]
        done, size = 0, min(stretch, stop - start)
        windows[0], windows[1 : size + REACH] = 0, NEVER
        while start < stop:
            _extend(units, values, root, data[start : min(start + size + REACH, stop)], done, size, windows, last)
            settled = size if start + size == stop else _meeting(last, size)
            if settled == 0:  # no cut is settled yet: a longer stretch
                more = min(2 * size, stop - start)
                if more + REACH > len(windows):
                    longer_windows, longer_last = np.empty(more + REACH, np.uint32), np.empty(more + REACH, np.uint32)
                    longer_windows[: size + REACH], longer_last[: size + REACH] = (
                        windows[: size + REACH],
                        last[: size + REACH],
                    )
                    windows, last = longer_windows, longer_last
                windows[size + REACH : more + REACH] = NEVER
                done, size = size, more
                continue
            _write(last, settled, windows[settled], ids, out)
            out += windows[settled]
            kept, count = size + REACH - settled, windows[settled]
            for place in range(kept):
                windows[place] = NEVER if windows[settled + place] == NEVER else windows[settled + place] - count
                last[place] = last[settled + place]
            start += settled
            done, size = size - settled, min(max(stretch, size - settled), stop - start)
            windows[kept : size + REACH] = NEVER
        ends[document + 1] = out


@numba.njit(nogil=True, cache=True)
def _extend(
    units: np.ndarray,
    values: np.ndarray,
    root: int,
    text: np.ndarray,
    done: int,
    size: int,
    windows: np.ndarray,
    last: np.ndarray,
) -> None:
    """Follow the strings that begin at places `done` to size - 1 of a stretch."""
    stop = np.uint64(len(text))
    for begin in range(done, size):
        place = np.uint64(begin)
        # a string from an earlier place is longer than one from here, so only fewer windows replace it
        cost = windows[place] + np.uint32(1)
        at, base = place, np.uint64(root)
        while at < stop:
            byte = np.uint64(text[at])
            slot = base ^ byte
            unit = np.uint64(units[slot])
            if unit & np.uint64(BYTE_MASK) != byte:
                break
            base = unit >> np.uint64(BASE_SHIFT) & np.uint64(BASE_MASK)
            at += np.uint64(1)
            if unit >> np.uint64(STRING_SHIFT) and cost < windows[at]:
                windows[at] = cost
                last[at] = values[slot]


@numba.njit(nogil=True, cache=True)
def _meeting(last: np.ndarray, size: int) -> int:
    """The last place that every cut passes through, whatever comes after place `size`; 0: there is none but the start.

    A cut has a border among the last 255 places. From all of them back, the last one first, each to the border before.
    """
    passed = np.zeros(size + 1, np.bool_)
    first = max(0, size - (REACH - 1) + 1)
    passed[first:] = True
    cuts = size + 1 - first
    for place in range(size, -1, -1):
        if not passed[place]:
            continue
        if cuts == 1:
            return place
        before = place - np.int64(last[place] >> np.uint32(ID_BITS))
        cuts -= 1 if passed[before] else 0
        passed[before] = True
    return 0


@numba.njit(nogil=True, cache=True)
def _write(last: np.ndarray, place: int, count: int, ids: np.ndarray, out: int) -> None:
    """Write the ids of the shortest cut up to a place, from its end back."""
    write = np.int64(out) + np.int64(count)
    border = np.int64(place)
    while border > 0:
        write -= np.int64(1)
        ids[write] = last[border] & np.uint32(ID_MASK)
        border -= np.int64(last[border] >> np.uint32(ID_BITS))
