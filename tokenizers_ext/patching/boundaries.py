"""Where patches begin: one function a scheme, each a loop over Arrow buffers; and from beginnings to lengths.

A mark is 1 for a byte that begins a patch, else 0. `offsets` int64[documents + 1] delimit the documents in a flat
array of bytes, as in an Arrow column; marks are uint8[bytes] over the same positions. The package's docstring defines
the schemes; `slow` versions of all of them are in the tests.
"""

import numba
import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Marks = npt.NDArray[np.uint8]


def _spacelike() -> npt.NDArray[np.bool_]:
    """bool[256]: SpaceByte's predicate. All bytes but ASCII letters and digits, and the 10xxxxxx of UTF-8, which
    continue a character."""
    table = np.ones(256, np.bool_)
    for first, last in ((b"0", b"9"), (b"A", b"Z"), (b"a", b"z"), (b"\x80", b"\xbf")):
        table[ord(first) : ord(last) + 1] = False
    return table


SPACELIKE = _spacelike()


@numba.njit(nogil=True, cache=True)
def mark_static(offsets: Int64s, size: int, marks: Marks) -> None:
    """Mark every `size`-th byte of each document, from its first on."""
    for d in range(len(offsets) - 1):
        for j in range(offsets[d], offsets[d + 1], size):
            marks[j] = 1


@numba.njit(nogil=True, cache=True)
def mark_space(data: npt.NDArray[np.uint8], offsets: Int64s, spacelike: npt.NDArray[np.bool_], marks: Marks) -> None:
    """Mark the byte behind each spacelike one that follows one that is not, and the first two of a document."""
    for d in range(len(offsets) - 1):
        start, stop = offsets[d], offsets[d + 1]
        marks[start : min(start + 2, stop)] = 1
        was = start < stop and spacelike[data[start]]
        for j in range(start + 2, stop):
            now = spacelike[data[j - 1]]
            marks[j] = now and not was
            was = now


@numba.njit(nogil=True, cache=True)
def mark_entropy(
    offsets: Int64s,
    first: int,
    start: int,
    stop: int,
    entropy: npt.NDArray[np.float32],
    theta: float,
    theta_add: float,
    marks: Marks,
) -> None:
    """Mark the bytes from `start` to `stop` whose entropy is above `theta` and above the former byte's by more than
    `theta_add`, and the first two of a document.

    Args:
        first, start, stop, entropy: see `scores.Piece`.
        theta, theta_add: nats; -inf asks nothing.
    """
    d = np.searchsorted(offsets, start, side="right") - 1
    while d < len(offsets) - 1 and offsets[d] < stop:
        here, last = max(offsets[d], start), min(offsets[d + 1], stop)
        for j in range(here, last):
            if j < offsets[d] + 2:
                marks[j] = 1
            else:
                h = np.float64(entropy[j - first])
                marks[j] = h > theta and h - np.float64(entropy[j - 1 - first]) > theta_add
        d += 1


@numba.njit(nogil=True, cache=True)
def mark_tokens(ids: np.ndarray, id_offsets: Int64s, lengths: Int64s, offsets: Int64s, marks: Marks) -> int:
    """Mark the first byte of every token; returns the first document whose tokens are no cut of its bytes, or -1.

    Args:
        ids: unsigned integers[tokens]; `id_offsets` int64[documents + 1] delimit the documents.
        lengths: bytes of each id of the vocabulary, int64[vocabulary].
    """
    for d in range(len(offsets) - 1):
        at = offsets[d]
        for t in range(id_offsets[d], id_offsets[d + 1]):
            length = lengths[ids[t]]
            if length == 0 or at + length > offsets[d + 1]:
                return d
            marks[at] = 1
            at += length
        if at != offsets[d + 1]:
            return d
    return -1


def lengths_between(offsets: Int64s, marks: Marks, longest: int) -> tuple[Int64s, npt.NDArray[np.uint16]]:
    """Patch lengths from marks: a patch goes on until the next mark, the document's end, or `longest` bytes.

    Returns:
        ends int64[documents + 1] from 0, and uint16[ends[-1]]: the lengths of a document add up to its bytes, none of
        them is 0, and an empty document has none.
    """
    most = int(np.count_nonzero(marks)) + (offsets[-1] - offsets[0]) // longest + len(offsets)
    lengths = np.empty(most, np.uint16)
    ends = _lengths(offsets, marks, longest, lengths)
    return ends, lengths[: ends[-1]]


@numba.njit(nogil=True, cache=True)
def _lengths(offsets: Int64s, marks: Marks, longest: int, lengths: npt.NDArray[np.uint16]) -> Int64s:
    ends = np.zeros(len(offsets), np.int64)
    out = 0
    for d in range(len(offsets) - 1):
        begin, stop = offsets[d], offsets[d + 1]
        for j in range(begin + 1, stop):
            if marks[j] or j - begin == longest:
                lengths[out] = j - begin
                out += 1
                begin = j
        if begin < stop:
            lengths[out] = stop - begin
            out += 1
        ends[d + 1] = out
    return ends
