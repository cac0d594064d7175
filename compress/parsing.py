"""Cutting text into the fewest strings of a dictionary, instead of the longest one first.

    strings a, b, c, ab, abc, bcd, d     "abcd"    longest first: abc d; fewest: also 2, abc d or a bcd
    strings a, b, c, d, e, ab, bcde      "abcde"   longest first: ab c d e, 4 windows; fewest: a bcde, 2

A shortest path from the document's start to its end, an edge for every string that stands at a place (PathPiece:
Schmidt et al. 2024, "Tokenization Is More Than Compression"). Of equally short paths the one is taken whose last string
is longest, then the last but one, and so on: so the cut is the same everywhere.
"""

from collections.abc import Callable

import numba
import numpy as np

from seqmill.compress.matching import longest_matches
from seqmill.compress.trie import BASE_MASK, BASE_SHIFT, BYTE_MASK, ID_BITS, ID_MASK, STRING_SHIFT, Trie
from seqmill.errors import UserError

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

    Memory: 8 bytes a byte of the longest document, besides the ids.
    """
    offsets = np.ascontiguousarray(offsets, np.int64)
    ids = np.empty(offsets[-1] - offsets[0], id_type)
    ends = np.zeros(len(offsets), np.int64)
    longest = int(np.diff(offsets).max(initial=0))
    windows = np.empty(longest + 1, np.uint32)
    last = np.empty(longest + 1, np.uint32)
    _fewest_windows(trie.units, trie.values, trie.root, data, offsets, windows, last, ids, ends)
    return ids[: ends[-1]].copy(), ends


@numba.njit(nogil=True, cache=True)
def _fewest_windows(
    units: np.ndarray,
    values: np.ndarray,
    root: int,
    data: np.ndarray,
    offsets: np.ndarray,
    windows: np.ndarray,
    last: np.ndarray,
    ids: np.ndarray,
    ends: np.ndarray,
) -> None:
    """`windows[p]`: fewest strings up to place p of a document; `last[p]`: the last of them, length << 24 | id."""
    out = np.int64(0)
    for document in range(len(offsets) - 1):
        begin, stop = offsets[document], offsets[document + 1]
        length = stop - begin
        windows[0] = 0
        windows[1 : length + 1] = np.uint32(0xFFFFFFFF)
        for place in range(length):
            # a string from an earlier place is longer than one from here, so only fewer windows replace it
            cost = windows[np.uint64(place)] + np.uint32(1)
            at, base = np.uint64(place), np.uint64(root)
            while at < np.uint64(length):
                byte = np.uint64(data[np.uint64(begin) + at])
                slot = base ^ byte
                unit = np.uint64(units[slot])
                if unit & np.uint64(BYTE_MASK) != byte:
                    break
                base = unit >> np.uint64(BASE_SHIFT) & np.uint64(BASE_MASK)
                at += np.uint64(1)
                if unit >> np.uint64(STRING_SHIFT) and cost < windows[at]:
                    windows[at] = cost
                    last[at] = values[slot]
        place = length
        out += windows[length]
        write = out
        while place > 0:
            write -= 1
            ids[write] = last[place] & np.uint32(ID_MASK)
            place -= np.int64(last[place] >> np.uint32(ID_BITS))
        ends[document + 1] = out
