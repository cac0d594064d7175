"""Word gaps: single spaces between words, where a trap can stand without changing how the rest is tokenized.

"A B" with the trap T becomes "A T B": " T" goes in before the space. Splitters in the manner of GPT-2 give a space to
the word behind it, so "A" and " B" are the same pieces as before.
"""

import numpy as np
from numba import njit

SPACE = np.uint8(0x20)


@njit(cache=True, nogil=True)
def is_gap(data: np.ndarray, place: int, start: int, stop: int) -> bool:
    """Whether byte `place` of the document data[start:stop] is a space with no other white space (ASCII) beside it."""
    if data[place] != SPACE or place == start or place + 1 == stop:
        return False
    before, behind = data[place - 1], data[place + 1]
    return not (before == SPACE or 9 <= before <= 13 or behind == SPACE or 9 <= behind <= 13)


@njit(cache=True, nogil=True)
def count_gaps(data: np.ndarray, offsets: np.ndarray, smallest: int) -> np.ndarray:
    """Word gaps of every document, int64[documents]; 0 for those of fewer than `smallest` bytes.

    Args:
        data: uint8[...], the UTF-8 bytes.
        offsets: int64[documents + 1] into `data`.
    """
    counts = np.zeros(len(offsets) - 1, np.int64)
    for document in range(len(counts)):
        start, stop = offsets[document], offsets[document + 1]
        if stop - start >= smallest:
            for place in range(start, stop):
                counts[document] += is_gap(data, place, start, stop)
    return counts


@njit(cache=True, nogil=True)
def find_gaps(data: np.ndarray) -> np.ndarray:
    """Positions of the word gaps of one document, int64[gaps], ascending."""
    found = np.empty(len(data), np.int64)
    count = 0
    for place in range(len(data)):
        if is_gap(data, place, 0, len(data)):
            found[count] = place
            count += 1
    return found[:count].copy()
