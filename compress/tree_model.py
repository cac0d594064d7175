"""A byte model of counted strings: integers from the counts to the frequencies.

After a context, the bytes that followed it in a sample, and for those that did not, what followed its shorter ends: a
mix over the ends of 0, 1, 2 ... bytes as long as they were counted, and the whole context last. Each mixes with the one
before by Witten and Bell's method C (1991, "The zero-frequency problem", section III): an end that was counted n times
and was followed by d different bytes leaves d / (n + d) of its share to the shorter one, besides what was counted of
strings that the tree no longer holds.

    "th" was counted 10 times: "the" 8, "tho" 1, once at a document's end      share of e = (8 + (2 + 1) * shorter) / 12
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numba
import numpy as np

from seqmill.compress.byte_model import BYTE_VALUES, LEAST_PRECISION, MOST_PRECISION
from seqmill.compress.substring_counts import SubstringCounts
from seqmill.errors import UserError
from seqmill.storage import atomic_path

MAGIC = b"seqmill tree model 1\n"
WHOLE = 1 << 30  # what the shares of all bytes add up to, at most; times a count below 2**31 it fits 64 bits


@dataclass(frozen=True, eq=False)
class TreeModel:
    """Frequencies of the next byte by the counts of a tree; a `ByteModel`."""

    tree: SubstringCounts
    longest: int  # bytes of a context that are looked at, the last ones
    precision: int = 14  # bits of the frequencies

    def __post_init__(self) -> None:
        if not LEAST_PRECISION <= self.precision <= MOST_PRECISION:
            raise UserError(f"precision = {self.precision} bits: choose between {LEAST_PRECISION} and {MOST_PRECISION}")

    def frequencies(self, contexts: Sequence[bytes]) -> np.ndarray:
        """uint32[contexts, 256]; see `ByteModel.frequencies`."""
        ends = [context[-self.longest :] if self.longest else b"" for context in contexts]
        offsets = np.cumsum([0, *map(len, ends)], dtype=np.int64)
        found = np.empty((len(ends), BYTE_VALUES), np.uint32)
        tree = self.tree
        data = np.frombuffer(b"".join(ends), np.uint8)
        _frequencies(data, offsets, tree.byte, tree.count, tree.first_child, 1 << self.precision, found)
        return found

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the settings and the counts."""
        return hashlib.sha256(self._content()).hexdigest()

    def _content(self) -> bytes:
        header = {"longest": self.longest, "nodes": len(self.tree), "precision": self.precision}
        tree = self.tree
        columns = [
            tree.parent.astype("<u4"), tree.byte, tree.count.astype("<u8"), tree.first_child.astype("<u4")
        ]  # fmt: skip
        return json.dumps(header).encode() + b"\n" + b"".join(column.tobytes() for column in columns)

    def save(self, path: Path) -> None:
        """Write the model to a file: a line of text, the settings as a line of JSON, the counts, their sha256."""
        content = self._content()
        with atomic_path(path) as temporary:
            temporary.write_bytes(MAGIC + content + hashlib.sha256(content).digest())

    @classmethod
    def load(cls, path: Path) -> "TreeModel":
        """The model of a file.

        Raises:
            UserError: it is no such file, or not the bytes that were written.
        """
        whole = path.read_bytes()
        content, digest = whole[len(MAGIC) : -32], whole[-32:]
        if not whole.startswith(MAGIC) or hashlib.sha256(content).digest() != digest:
            raise UserError(f"{path} is no model of this format, or was damaged: its hash is wrong; build it again")
        line, _, rest = content.partition(b"\n")
        header = json.loads(line)
        nodes, taken, columns = header["nodes"], 0, []
        for kind, size in (("<u4", nodes), ("u1", nodes), ("<u8", nodes), ("<u4", nodes + 1)):
            columns.append(np.frombuffer(rest, kind, size, taken))
            taken += columns[-1].nbytes
        parent, byte, count, first_child = columns
        tree = SubstringCounts(
            parent.astype(np.int32), byte.copy(), count.astype(np.int64), first_child.astype(np.int32)
        )
        return cls(tree, header["longest"], header["precision"])


@numba.njit(nogil=True, cache=True)
def _find(data: np.ndarray, first: int, last: int, byte: np.ndarray, first_child: np.ndarray) -> int:
    """The node of the string data[first:last], if it has children; else -1."""
    node = 0
    for place in range(first, last):
        low, high, wanted = first_child[node], first_child[node + 1], data[place]
        end = high
        while low < high:
            middle = (low + high) // 2
            if byte[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        if low == end or byte[low] != wanted:
            return -1
        node = low
    return node if first_child[node] < first_child[node + 1] else -1


@numba.njit(nogil=True, cache=True)
def _mix(node: int, byte: np.ndarray, count: np.ndarray, first_child: np.ndarray, shares: np.ndarray) -> None:
    """Take the shares of a shorter context to those of a node."""
    first, last = first_child[node], first_child[node + 1]
    followed, different = np.int64(0), np.int64(0)
    for child in range(first, last):
        followed += count[child]
        different += count[child] > 0
    whole = count[node] + different
    if whole == 0:
        return
    left = count[node] - followed + different
    for value in range(256):
        shares[value] *= left
    for child in range(first, last):
        shares[byte[child]] += count[child] * WHOLE
    for value in range(256):
        shares[value] //= whole


@numba.njit(nogil=True, cache=True)
def _frequencies(
    data: np.ndarray,
    offsets: np.ndarray,
    byte: np.ndarray,
    count: np.ndarray,
    first_child: np.ndarray,
    total: int,
    found: np.ndarray,
) -> None:
    """Shares of every context, the longer after the shorter, as integers of 1 or more that add up to `total`."""
    shares = np.empty(256, np.int64)
    root = np.full(256, WHOLE // 256)
    _mix(0, byte, count, first_child, root)
    for context in range(len(offsets) - 1):
        begin, end = offsets[context], offsets[context + 1]
        shares[:] = root
        size = 1
        while size <= end - begin:
            node = _find(data, end - size, end, byte, first_child)
            if node < 0:
                break
            _mix(node, byte, count, first_child, shares)
            size += 1
        if size < end - begin:
            node = _find(data, begin, end, byte, first_child)
            if node >= 0:
                _mix(node, byte, count, first_child, shares)
        whole = shares.sum()
        given, best = 0, 0
        for value in range(256):
            frequency = 1 + shares[value] * (total - 256) // whole
            found[context, value] = frequency
            given += frequency
            if shares[value] > shares[best]:
                best = value
        found[context, best] += total - given
