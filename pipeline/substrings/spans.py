"""From copied windows to spans of whole characters, and text without them."""

import numba
import numpy as np

from seqmill.pipeline.substrings.copies import OCCURRENCES, SOURCE, START, WINDOWS
from seqmill.pipeline.substrings.rows import with_room

# columns of span rows; START and SOURCE are those of copies, in file positions and places
DOCUMENT, SPAN_START, SPAN_STOP, SPAN_SOURCE, SPAN_OCCURRENCES = range(5)


@numba.njit(nogil=True, cache=True)
def marked_spans(data: np.ndarray, positions: np.ndarray, copies: np.ndarray, min_bytes: int) -> np.ndarray:
    """The marked bytes of a batch of documents, and where the same bytes stand earlier.

    Args:
        data: uint8[...]: the bytes that positions count.
        positions: int64[documents + 1].
        copies: int64[copies, 4], in order of START (a position in `data`); no window is in two of them.

    Returns:
        int64[spans, 5]: document, start, stop (positions in `data`), place of the same bytes, occurrences of the
        content (the least along the span). Spans of a document do not overlap. Adjacent spans come from different
        places; together they begin and end on whole characters and are at least `min_bytes` long.
    """
    spans = np.empty((64, 5), np.int64)
    count = opened = 0  # spans[opened:count] are adjacent: one run of marked bytes
    document = 0
    following = np.int64(-1)  # the window behind those of the last copy
    for row in range(len(copies)):
        start = copies[row, START]
        stop = start + copies[row, WINDOWS] - 1 + min_bytes
        ahead = copies[row, SOURCE] - start
        while positions[document + 1] <= start:
            document += 1
        touches = count > opened and spans[count - 1, DOCUMENT] == document and start <= spans[count - 1, SPAN_STOP]
        if not touches:
            count = _whole_characters(data, positions, spans, opened, count, min_bytes)
            opened = count
        elif start == following and spans[count - 1, SPAN_SOURCE] - spans[count - 1, SPAN_START] == ahead:
            # windows in a row have sources in one document; without that, equal distances may span a border there
            following += copies[row, WINDOWS]
            spans[count - 1, SPAN_STOP] = stop
            spans[count - 1, SPAN_OCCURRENCES] = min(spans[count - 1, SPAN_OCCURRENCES], copies[row, OCCURRENCES])
            continue
        else:
            start = spans[count - 1, SPAN_STOP]
        following = copies[row, START] + copies[row, WINDOWS]
        spans = with_room(spans, count)
        spans[count, DOCUMENT], spans[count, SPAN_START], spans[count, SPAN_STOP] = document, start, stop
        spans[count, SPAN_SOURCE], spans[count, SPAN_OCCURRENCES] = start + ahead, copies[row, OCCURRENCES]
        count += 1
    return spans[: _whole_characters(data, positions, spans, opened, count, min_bytes)]


@numba.njit(nogil=True, cache=True)
def _whole_characters(
    data: np.ndarray, positions: np.ndarray, spans: np.ndarray, opened: int, count: int, min_bytes: int
) -> int:
    """Snap the run spans[opened:count] inward; returns the new count, `opened` if the run became too short.

    The first span is at least min_bytes long and outlasts it; of the last ones, nothing may be left.
    """
    if opened == count:
        return count
    start, stop = spans[opened, SPAN_START], spans[count - 1, SPAN_STOP]
    end = positions[spans[opened, DOCUMENT] + 1]
    while start < stop and data[start] & 0xC0 == 0x80:
        start += 1
    while stop > start and stop < end and data[stop] & 0xC0 == 0x80:
        stop -= 1
    if stop - start < min_bytes:
        return opened
    spans[opened, SPAN_SOURCE] += start - spans[opened, SPAN_START]
    spans[opened, SPAN_START] = start
    while spans[count - 1, SPAN_START] >= stop:
        count -= 1
    spans[count - 1, SPAN_STOP] = stop
    return count


@numba.njit(nogil=True, cache=True)
def without_spans(data: np.ndarray, positions: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64[documents + 1] offsets into uint8[...]: the documents without the bytes of `spans`."""
    taken = 0
    for span in range(len(spans)):
        taken += spans[span, SPAN_STOP] - spans[span, SPAN_START]
    offsets = np.zeros(len(positions), np.int64)
    kept = np.empty(positions[-1] - positions[0] - taken, np.uint8)
    filled = span = 0
    for document in range(len(positions) - 1):
        at = positions[document]
        while span < len(spans) and spans[span, DOCUMENT] == document:
            length = spans[span, SPAN_START] - at
            kept[filled : filled + length] = data[at : at + length]
            filled += length
            at = spans[span, SPAN_STOP]
            span += 1
        length = positions[document + 1] - at
        kept[filled : filled + length] = data[at : at + length]
        filled += length
        offsets[document + 1] = filled
    return offsets, kept
