"""Counts of byte n-grams, as sorted runs that are made apart and added up later.

An event is a byte and the bytes before it in its document, at most order - 1 of them. With order 4, the last byte of
"the" is the event with context "th", and it is written as

    u64    h t 0 | 2 | e         the latest byte of the context first, filled up with 0; its length; the byte

so that sorted events have the contexts "", "h", "th" one within the other as ranges. A run is events in increasing
order with how often each was seen. Runs of different documents may be added up in any order: counts are whole numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
Uint8s = npt.NDArray[np.uint8]

RUN_EVENTS = 4 << 20  # that are sorted at a time: 32 MiB


class Run(NamedTuple):
    """Events in increasing order, none twice, and how often each was seen: uint64[n] both."""

    events: UInt64s
    counts: UInt64s


def count_runs(documents: Iterable[tuple[Int64s, Uint8s]], order: int, run_events: int = RUN_EVENTS) -> Iterator[Run]:
    """Sorted runs of all events of `documents`, which are (offsets, bytes) of batches. Memory: four runs' events."""
    width = order - 1
    buffer = np.empty(run_events, np.uint64)
    filled = 0
    for offsets, data in documents:
        start = int(offsets[0])
        while start < offsets[-1]:
            stop = min(int(offsets[-1]), start + run_events - filled)
            _write_events(data, offsets, width, start, stop, buffer[filled:])
            filled += stop - start
            start = stop
            if filled == run_events:
                yield _sorted_run(buffer)
                filled = 0
    if filled:
        yield _sorted_run(buffer[:filled])


def add_up(runs: Sequence[Run]) -> Run:
    """One run with the counts of all."""
    events = np.concatenate([run.events for run in runs])
    counts = np.concatenate([run.counts for run in runs])
    order = np.argsort(events, kind="stable")
    events = events[order]
    first = _firsts(events)
    return Run(events[first], np.add.reduceat(counts[order], first) if len(first) else counts)


def _sorted_run(events: UInt64s) -> Run:
    events = np.sort(events)
    first = _firsts(events)
    return Run(events[first], np.diff(np.append(first, len(events))).astype(np.uint64))


def _firsts(events: UInt64s) -> Int64s:
    """Where in sorted events another one begins."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(events)), np.bool_), events[1:] != events[:-1]]))


@numba.njit(nogil=True, cache=True)
def window_before(data: Uint8s, begin: int, at: int, width: int) -> np.uint64:
    """The `width` bytes before data[at] that are in its document, the latest one highest, filled up with 0.

    Args:
        begin: of the document.
    """
    window = np.uint64(0)
    for j in range(max(begin, at - width), at):
        window = np.uint64(data[j]) << np.uint64(8 * (width - 1)) | window >> np.uint64(8)
    return window


@numba.njit(nogil=True, cache=True)
def _write_events(data: Uint8s, offsets: Int64s, width: int, start: int, stop: int, events: UInt64s) -> None:
    """The events of data[start:stop], in order of position."""
    d = np.searchsorted(offsets, start, side="right") - 1
    newest = np.uint64(8 * (width - 1))
    for j in range(start, stop):
        while j >= offsets[d + 1]:
            d += 1
        if j == start or j == offsets[d]:
            window = window_before(data, offsets[d], j, width)
        byte = np.uint64(data[j])
        length = np.uint64(min(j - offsets[d], width))
        events[j - start] = window << np.uint64(16) | length << np.uint64(8) | byte
        window = byte << newest | window >> np.uint64(8)
