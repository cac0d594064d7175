"""Substring deduplication by its definition: a set of all windows, and a flag per byte."""

from collections.abc import Sequence


def marked_runs(texts: Sequence[bytes], min_bytes: int) -> list[tuple[int, int, int]]:
    """(document, start, stop) of every run of marked bytes, on whole characters."""
    seen: set[bytes] = set()
    runs = []
    for document, text in enumerate(texts):
        marked = [False] * len(text)
        for start in range(len(text) - min_bytes + 1):
            window = text[start : start + min_bytes]
            if window in seen:
                marked[start : start + min_bytes] = [True] * min_bytes
            seen.add(window)
        start = 0
        while start < len(text):
            stop = start
            while stop < len(text) and marked[stop]:
                stop += 1
            runs += [(document, *snapped) for snapped in _inward(text, start, stop) if stop - start >= min_bytes]
            start = max(stop, start + 1)
    return [run for run in runs if run[2] - run[1] >= min_bytes]


def _inward(text: bytes, start: int, stop: int) -> list[tuple[int, int]]:
    borders = [at for at in range(start, stop + 1) if at == len(text) or text[at] & 0xC0 != 0x80]
    return [(borders[0], borders[-1])] if borders else []
