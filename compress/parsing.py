"""Cutting text into the fewest strings of a dictionary, instead of the longest one first.

    strings a, b, c, ab, abc, bcd, d     "abcd"    longest first: abc d; fewest: also 2, abc d or a bcd
    strings a, b, c, d, e, ab, bcde      "abcde"   longest first: ab c d e, 4 windows; fewest: a bcde, 2

A shortest path from the document's start to its end, an edge for every string that stands at a place (PathPiece:
Schmidt et al. 2024, "Tokenization Is More Than Compression"). Of equally short paths the one is taken whose last string
is longest, then the last but one, and so on: so the cut is the same everywhere.
"""

import numba
import numpy as np

from seqmill.compress.trie import BASE_MASK, BASE_SHIFT, BYTE_MASK, ID_BITS, ID_MASK, STRING_SHIFT, Trie

PARSES = ("longest", "fewest")


def fewest_windows(trie: Trie, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut every document into as few strings as can be.

    Args:
        data: uint8[...], the bytes of all documents.
        offsets: int64[documents + 1] into `data`.

    Returns:
        ids uint32[windows] of all documents, and their offsets int64[documents + 1]. Memory: 9 bytes a byte of the
        longest document, besides the ids.
    """
    ids = np.empty(offsets[-1] - offsets[0], np.uint32)
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
