"""Pages that several sequences share, which are attended to once for all of them.

The tables of the live sequences are a trie of pages. Where two or more tables go the same way, that stretch of the
path is a span; what a sequence does not share is left to itself:

    tables 1 2 3 4 | 1 2 3 5 6 | 1 2 7 | 8      spans: pages 1 2 of the first three, page 3 of the first two
                                                begins: 3 pages, 3 pages, 2 pages, 0 pages
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LEAST_TOKENS = 64  # positions that a span has at least: shorter ones are read again faster than merged


class Span(NamedTuple):
    """A stretch of pages and the pieces that all attend to it."""

    pieces: tuple[int, ...]  # by their places in the list of tables
    pages: tuple[int, ...]


def shared_spans(
    tables: Sequence[Sequence[int]], full_pages: Sequence[int], page_tokens: int
) -> tuple[list[Span], npt.NDArray[np.int64]]:
    """The spans, and for each piece its first page that lies in none of them, int64[pieces].

    Args:
        full_pages: of each piece: pages that were filled before this step, and so can be shared.
    """
    begins = np.zeros(len(tables), np.int64)
    spans: list[Span] = []
    waiting = [(tuple(range(len(tables))), 0)]  # pieces that go the same way up to a page
    while waiting:
        pieces, depth = waiting.pop()
        branches: dict[int, list[int]] = {}
        for piece in pieces:
            if depth < full_pages[piece]:
                branches.setdefault(tables[piece][depth], []).append(piece)
        for together in branches.values():
            if len(together) == 1:
                continue
            first = tables[together[0]]
            end = depth + 1
            while all(end < full_pages[each] and tables[each][end] == first[end] for each in together):
                end += 1
            if (end - depth) * page_tokens >= LEAST_TOKENS and all(begins[each] == depth for each in together):
                spans.append(Span(tuple(together), tuple(first[depth:end])))
                begins[together] = end
                waiting.append((tuple(together), end))
    return spans, begins
