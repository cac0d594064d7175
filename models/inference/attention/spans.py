"""Pages that several sequences share, which are attended to once for all of them.

The tables of the live sequences are a trie of pages. Where two or more tables go the same way, that stretch of the
path is a span if it is worth it; what a sequence does not share is left to itself:

    tables 1 2 3 4 | 1 2 3 5 6 | 1 2 7 | 8      spans: pages 1 2 of the first three, page 3 of the first two
                                                begins: 3 pages, 3 pages, 2 pages, 0 pages
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Positions times sequences that a span saves at least from being read again; with fewer, merging takes longer.
# Seconds of a decoding step without the span by those with it, one thread, of a layer 192 and one 576 wide:
#
#     saved     2,048          4,096          8,192          16,384
#     ratio   0.87 to 1.00   0.92 to 1.11   0.96 to 1.14   1.05 to 1.21
LEAST_SAVED = 8192


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
    waiting = [(tuple(range(len(tables))), 0, 0)]  # pieces, where their spans end, and where their common way does
    while waiting:
        pieces, begin, depth = waiting.pop()
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
            if (len(together) - 1) * (end - begin) * page_tokens >= LEAST_SAVED:
                spans.append(Span(tuple(together), tuple(first[begin:end])))
                begins[together] = end
            waiting.append((tuple(together), int(begins[together[0]]), end))
    return spans, begins
