"""How often strings of bytes begin at given places of a sample: the most frequent ones, as a tree.

Grown level by level. A string is no more frequent than what it begins with, so once `limit` strings are known, only
those that are as frequent as the last of them can matter, and only places where one of those begins are looked at:

    places 0 1 2 3 of "abab", limit 2       one byte   a 2, b 2                  (always kept)
                                            two bytes  ab 2, ba 1                places 0, 1, 2
                                            three      aba 1, bab 1              dropped: ab and ba are limit strings
"""

from dataclasses import dataclass

import numba
import numpy as np

from seqmill.compress.byte_model import BYTE_VALUES
from seqmill.compress.texts import Texts

BLOCK = 1 << 16  # strings whose continuations are counted in one pass: 64 MB of counters
DEAD = -1  # a place where none of the strings begins that are still grown


@dataclass(frozen=True, eq=False)
class SubstringCounts:
    """Strings as nodes of a tree, shorter ones first, then in the order of their bytes. Node 0 is the empty string.

    Children of a node lie together: `first_child[node]` to `first_child[node + 1]`.
    """

    parent: np.ndarray  # int32[nodes]: the node without its last byte; 0 of node 0
    byte: np.ndarray  # uint8[nodes]: the last byte; 0 of node 0
    count: np.ndarray  # int64[nodes]: places of the sample where the string begins
    first_child: np.ndarray  # int32[nodes + 1]

    def __len__(self) -> int:
        return len(self.parent)

    def strings(self) -> list[bytes]:
        """The string of every node."""
        found = [b""]
        for parent, byte in zip(self.parent[1:].tolist(), self.byte[1:].tolist(), strict=True):
            found.append(found[parent] + bytes([byte]))
        return found


def count_substrings(
    texts: Texts, limit: int, longest: int, starts: np.ndarray | None = None, least: int = 1
) -> SubstringCounts:
    """All single bytes, and the `limit` most frequent strings of 2 to `longest` bytes.

    Of equally frequent ones the shorter, then the first in the order of bytes; so with a string, everything that it
    begins with is there. Memory besides `texts`: 4 bytes a byte of them, 128 MB, and 60 bytes a string.

    Args:
        texts: fewer than 2**31 bytes.
        limit: strings of two bytes or more; fewer are found where there are no more.
        starts: int64[places], ascending: where strings may begin; everywhere if None.
        least: strings that are less frequent are left out.
    """
    table = _Table(texts, starts)
    levels = [_first_level(table)]
    threshold = least
    for depth in range(1, longest):
        grown = table.children(depth, len(levels[-1][1]), threshold)
        known = np.concatenate([count for _, _, count in levels[1:]] + [grown[2]])
        keep = _most_frequent(known, limit)
        if len(known) >= limit > 0:
            threshold = max(threshold, int(known[keep].min()))
        grown_keep = keep[len(known) - len(grown[2]) :]
        levels.append(tuple(column[grown_keep] for column in grown))
        if not grown_keep.any():
            break
        table.advance(depth, levels[-1], len(levels[-2][1]))
    return _tree(levels, limit)


Level = tuple[np.ndarray, np.ndarray, np.ndarray]  # parent's rank in the level above int32, byte uint8, count int64


def _most_frequent(counts: np.ndarray, limit: int) -> np.ndarray:
    """bool[strings]: the `limit` greatest counts; of equal ones the first."""
    if len(counts) <= limit:
        return np.ones(len(counts), np.bool_)
    if limit == 0:
        return np.zeros(len(counts), np.bool_)
    last = np.partition(counts, len(counts) - limit)[len(counts) - limit]
    keep = counts > last
    ties = np.flatnonzero(counts == last)
    keep[ties[: limit - np.count_nonzero(keep)]] = True
    return keep


def _first_level(table: "_Table") -> Level:
    count = np.zeros(BYTE_VALUES, np.int64)
    _count_bytes(table.node, count)
    return np.zeros(BYTE_VALUES, np.int32), np.arange(BYTE_VALUES, dtype=np.uint8), count


def _tree(levels: list[Level], limit: int) -> SubstringCounts:
    """The levels as one tree, without strings that stopped to be among the `limit` most frequent ones."""
    sizes = [len(level[1]) for level in levels]
    longer = _most_frequent(np.concatenate([level[2] for level in levels[1:]] or [np.zeros(0, np.int64)]), limit)
    keep = np.concatenate([np.ones(1 + sizes[0], np.bool_), longer])
    node = np.cumsum(keep) - 1  # of every known string, root included
    begins = np.cumsum([0, 1, *sizes])
    parent = np.concatenate([[0], *(level[0] + begins[depth] for depth, level in enumerate(levels))])
    byte = np.concatenate([np.zeros(1, np.uint8), *(level[1] for level in levels)])[keep]
    total = levels[0][2].sum()
    count = np.concatenate([[total], *(level[2] for level in levels)])[keep]
    parents = node[parent[keep]].astype(np.int32)
    first_child = np.searchsorted(parents[1:], np.arange(len(parents) + 1)) + 1
    return SubstringCounts(parents, byte, count, first_child.astype(np.int32))


class _Table:
    """For every place the string that begins there, of those of the level that is grown."""

    def __init__(self, texts: Texts, starts: np.ndarray | None) -> None:
        self.data = texts.data
        self.begins = _bits(texts.offsets[:-1], len(texts.data))
        self.places = None if starts is None else starts.astype(np.int32)  # None: place i is byte i
        self.node = (self.data if self.places is None else self.data[self.places]).astype(np.int32)
        self.counters = np.empty((0, BYTE_VALUES), np.int32)

    def _sparse(self) -> tuple[np.ndarray, bool]:
        return (np.zeros(0, np.int32), False) if self.places is None else (self.places, True)

    def _block(self, parents: int) -> np.ndarray:
        if len(self.counters) < parents:
            self.counters = np.empty((parents, BYTE_VALUES), np.int32)
        block = self.counters[:parents]
        block[:] = 0
        return block

    def children(self, depth: int, parents: int, least: int) -> Level:
        """The strings one byte longer than those of the last level, `depth` bytes, that occur `least` times."""
        found: list[Level] = []
        for first in range(0, parents, BLOCK):
            block = self._block(min(BLOCK, parents - first))
            _count(self.data, self.begins, *self._sparse(), self.node, depth, first, block)
            parent, byte = np.nonzero(block >= least)
            found.append(
                ((parent + first).astype(np.int32), byte.astype(np.uint8), block[parent, byte].astype(np.int64))
            )
        return tuple(np.concatenate(column) for column in zip(*found, strict=True))  # type: ignore[return-value]

    def advance(self, depth: int, level: Level, parents: int) -> None:
        """Take every place to the string of `level` that begins there."""
        parent, byte, _ = level
        ranks = np.arange(1, len(parent) + 1, dtype=np.int32)
        moved = np.zeros(1, np.int64)
        for first in range(0, parents, BLOCK):
            block = self._block(min(BLOCK, parents - first))
            here = slice(*np.searchsorted(parent, [first, first + len(block)]))
            block[parent[here] - first, byte[here]] = ranks[here]
            _advance(self.data, self.begins, *self._sparse(), self.node, depth, first, block, moved)
        _settle(self.node)
        if moved[0] * 2 <= len(self.node):
            self._forget_dead(int(moved[0]))

    def _forget_dead(self, alive: int) -> None:
        places = np.empty(alive, np.int32)
        _compact(*self._sparse(), self.node, places)
        self.node.resize(alive, refcheck=False)  # in place: a copy would be the peak of memory
        self.places = places


def _bits(places: np.ndarray, size: int) -> np.ndarray:
    """uint8[size / 8 + 1]: one bit a byte of the sample, set where a document begins."""
    bits = np.zeros(size // 8 + 1, np.uint8)
    np.bitwise_or.at(bits, places >> 3, (1 << (places & 7)).astype(np.uint8))
    return bits


@numba.njit(nogil=True, cache=True, inline="always")
def _next_byte(data: np.ndarray, begins: np.ndarray, place: int, depth: int) -> np.int64:
    """The byte behind the `depth` bytes from a place on; -1: another document begins there."""
    at = np.uint64(place + depth)
    if at >= np.uint64(len(data)) or (begins[at >> np.uint64(3)] >> (at & np.uint64(7))) & 1:
        return np.int64(-1)
    return np.int64(data[at])


@numba.njit(nogil=True, cache=True)
def _count_bytes(values: np.ndarray, count: np.ndarray) -> None:
    for i in range(len(values)):
        count[values[i]] += 1


@numba.njit(nogil=True, cache=True)
def _count(
    data: np.ndarray,
    begins: np.ndarray,
    places: np.ndarray,
    sparse: bool,
    node: np.ndarray,
    depth: int,
    first: int,
    block: np.ndarray,
) -> None:
    for i in range(len(node)):
        row = np.int64(node[i]) - first
        if row < 0 or row >= len(block):
            continue
        byte = _next_byte(data, begins, np.int64(places[i]) if sparse else i, depth)
        if byte >= 0:
            block[row, byte] += 1


@numba.njit(nogil=True, cache=True)
def _advance(
    data: np.ndarray,
    begins: np.ndarray,
    places: np.ndarray,
    sparse: bool,
    node: np.ndarray,
    depth: int,
    first: int,
    block: np.ndarray,
    moved: np.ndarray,
) -> None:
    """New nodes are written as -2 - rank, so that later blocks do not take them for old ones."""
    alive = 0
    for i in range(len(node)):
        row = np.int64(node[i]) - first
        if row < 0 or row >= len(block):
            continue
        byte = _next_byte(data, begins, np.int64(places[i]) if sparse else i, depth)
        rank = block[row, byte] if byte >= 0 else 0
        node[i] = -1 - rank
        alive += rank > 0
    moved[0] += alive


@numba.njit(nogil=True, cache=True)
def _settle(node: np.ndarray) -> None:
    for i in range(len(node)):
        node[i] = -2 - node[i] if node[i] < -1 else -1


@numba.njit(nogil=True, cache=True)
def _compact(places: np.ndarray, sparse: bool, node: np.ndarray, kept: np.ndarray) -> None:
    """Move the places that live, and their nodes, to the front."""
    out = 0
    for i in range(len(node)):
        if node[i] >= 0:
            kept[out] = places[i] if sparse else i
            node[out] = node[i]
            out += 1
