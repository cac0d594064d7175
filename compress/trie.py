"""A dictionary as a double-array trie: which of its strings stand at a place of a text.

Every node of the trie is a slot of one array of 32-bit units (Aoe 1989, "An Efficient Digital Search Algorithm by Using
a Double-Array Structure"). The unit of a node holds its base, the byte that leads to it and whether it is a string; its
child by byte c stands at slot base ^ c, if that slot's byte is c. No two nodes have the same base, so a slot's byte
alone tells whose child it is:

    strings a, ab, b      root base 256 -> slot 256 ^ a (byte a, base 512), slot 256 ^ b (byte b, no child: base 0)
                          slot 512 ^ b (byte b, base 0)      "ac": slot 512 ^ c is free, so nothing longer than a
"""

from dataclasses import dataclass

import numba
import numpy as np

from seqmill.compress.dictionary import Dictionary
from seqmill.errors import UserError

BLOCK = 256  # slots; children of one node lie in one block, for base ^ c differs in the low 8 bits only
OPEN_BLOCKS = 32  # of the last ones, searched for free slots; older ones are left as they are
LEAST_FREE = 16  # slots of a block; with fewer it is left as it is
BYTE_MASK = 0x1FF  # of a unit: the byte that leads to its slot, or FREE
FREE = 0x100
BASE_SHIFT = 9  # of a unit: then 22 bits of base; block 0 is free, so base 0 has no child
BASE_MASK = 0x3FFFFF
STRING_SHIFT = 31  # of a unit: whether the bytes on the way to this node are a string
ID_BITS = 24  # of a value: the id; the 8 bits above are the string's length
ID_MASK = (1 << ID_BITS) - 1


@dataclass(frozen=True, eq=False)
class Trie:
    """A dictionary to be matched against text."""

    units: np.ndarray  # uint32[slots]: string << 31 | base << 9 | byte
    values: np.ndarray  # uint32[slots]: length << 24 | id, where a string ends
    root: int  # base of the root

    @classmethod
    def of(cls, dictionary: Dictionary) -> "Trie":
        """The trie of a dictionary, the same on every machine.

        Raises:
            UserError: the trie has more than 4 million slots.
        """
        units, values, root = _build(dictionary.offsets, dictionary.blob)
        if len(units) > BASE_MASK:
            raise UserError(
                f"a dictionary of {len(dictionary)} strings, {len(dictionary.blob)} bytes in all, needs {len(units)} "
                f"slots: {BASE_MASK} are possible; leave out long strings"
            )
        return cls(units, values, int(root))


@numba.njit(nogil=True, cache=True)
def longest_string(
    units: np.ndarray, root: np.uint64, data: np.ndarray, place: np.uint64, stop: np.uint64
) -> np.uint64:
    """The slot of the longest string that begins at `place` of the text and ends at `stop` or before."""
    at, base, best = place, root, np.uint64(0)
    while at < stop:
        byte = np.uint64(data[at])
        slot = base ^ byte
        unit = np.uint64(units[slot])
        if unit & np.uint64(BYTE_MASK) != byte:
            break
        if unit >> np.uint64(STRING_SHIFT):
            best = slot
        base = unit >> np.uint64(BASE_SHIFT) & np.uint64(BASE_MASK)
        at += np.uint64(1)
    return best


@numba.njit(nogil=True, cache=True)
def _build(offsets: np.ndarray, blob: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Units, values and the root's base; nodes level by level, each an interval of strings that share its bytes."""
    capacity, slots = 1 << 16, 2 * BLOCK  # room, and how much of it is in use
    units, values = np.full(capacity, np.uint32(FREE)), np.zeros(capacity, np.uint32)
    used_base = np.zeros(capacity, np.bool_)
    used_base[0] = True
    free = np.full(capacity // BLOCK, BLOCK)  # slots of every block
    first = np.empty(len(blob) + 1, np.int64)  # queue of nodes: strings first..last - 1 begin with the node's bytes
    last = np.empty(len(blob) + 1, np.int64)
    depth = np.empty(len(blob) + 1, np.int64)
    where = np.empty(len(blob) + 1, np.int64)  # the node's slot; -1: the root
    first[0], last[0], depth[0], where[0] = 0, len(offsets) - 1, 0, -1
    queued, root = 1, 0
    head = 0
    labels = np.empty(256, np.int64)
    begins = np.empty(257, np.int64)
    while head < queued:
        low, high, deep, slot = first[head], last[head], depth[head], where[head]
        head += 1
        if offsets[low + 1] - offsets[low] == deep and deep > 0:
            units[slot] |= np.uint32(1 << STRING_SHIFT)
            values[slot] = np.uint32(deep << ID_BITS | low)
            low += 1
        if low == high:
            continue  # no child: base 0
        children = _children(offsets, blob, low, high, deep, labels, begins)
        base = _free_base(units, used_base, free[: slots // BLOCK], labels, children)
        while base < 0:  # one more block
            slots += BLOCK
            if slots > capacity:
                units, values = _twice(units, np.uint32(FREE)), _twice(values, np.uint32(0))
                used_base, free = _twice(used_base, False), _twice(free, BLOCK)
                capacity *= 2
            base = _free_base(units, used_base, free[: slots // BLOCK], labels, children)
        used_base[base] = True
        if slot < 0:
            root = base
        else:
            units[slot] |= np.uint32(base << BASE_SHIFT)
        for child in range(children):
            at = base ^ labels[child]
            units[at] = np.uint32(labels[child])
            free[at // BLOCK] -= 1
            first[queued], last[queued] = begins[child], begins[child + 1]
            depth[queued], where[queued] = deep + 1, at
            queued += 1
    return units[:slots], values[:slots], root


@numba.njit(nogil=True, cache=True)
def _twice(array: np.ndarray, fill: np.uint32 | bool | int) -> np.ndarray:
    """An array with as many entries more, all of one value."""
    longer = np.full(2 * len(array), fill, array.dtype)
    longer[: len(array)] = array
    return longer


@numba.njit(nogil=True, cache=True)
def _children(
    offsets: np.ndarray, blob: np.ndarray, low: int, high: int, deep: int, labels: np.ndarray, begins: np.ndarray
) -> int:
    """Which bytes follow, and where the strings of each begin; found by halving, for the strings are sorted."""
    children = 0
    while low < high:
        label = blob[offsets[low] + deep]
        labels[children], begins[children] = label, low
        children += 1
        left, right = low, high  # the first string with a greater byte
        while left < right:
            middle = (left + right) // 2
            if blob[offsets[middle] + deep] > label:
                right = middle
            else:
                left = middle + 1
        low = left
    begins[children] = high
    return children


@numba.njit(nogil=True, cache=True)
def _free_base(units: np.ndarray, used_base: np.ndarray, free: np.ndarray, labels: np.ndarray, children: int) -> int:
    """The first unused base whose slots for all children are free; -1: none in the open blocks."""
    for block in range(max(1, len(free) - OPEN_BLOCKS), len(free)):
        if free[block] < max(children, LEAST_FREE):
            continue
        for slot in range(block * BLOCK, (block + 1) * BLOCK):
            base = slot ^ labels[0]
            if units[slot] != FREE or used_base[base]:
                continue
            fits = True
            for child in range(1, children):
                if units[base ^ labels[child]] != FREE:
                    fits = False
                    break
            if fits:
                return base
    return -1
