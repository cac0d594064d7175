"""The arrays of a suffix tree: nodes with their relatives, and a hash table from (parent, first token) to the child.

An edge belongs to the node below it. It has no copy of its tokens, only a place in the text where they stand.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from seqmill.models.inference.drafting.drafter import Int32s, Int64s

START, LENGTH, COUNT, PARENT, CHILD, NEXT, PREVIOUS = range(7)  # columns of the nodes
FIELDS = 7
# Node ids are int64 wherever they are passed on, constants too: kernels are compiled for one type alone.
ROOT: Any = np.int64(0)
NONE: Any = np.int64(-1)  # no node; as a token: the end of a sequence, which no suffix goes across
WRITTEN, SEQUENCE, USED, LIVE, FREE = range(5)  # of the state

_MIX = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: 2**64 / golden ratio


class Arrays(NamedTuple):
    """What a tree consists of; kernels change it in place."""

    text: Int32s  # a ring: token p of the stream lies at p % len
    nodes: Int32s  # [nodes, FIELDS]
    table: Int32s  # open addressing: (parent, first token) -> node
    ends: Int32s  # [depth]: the node at which the suffix ends that begins with token p: at p % depth
    state: Int64s  # tokens written, where the open sequence begins, nodes ever used, nodes in use, first free node


@njit(nogil=True, cache=True)
def new_node(tree: Arrays) -> int:
    """A node of count 1 without relatives."""
    nodes, state = tree.nodes, tree.state
    node = state[FREE]
    if node == NONE:
        node = state[USED]
        state[USED] += 1
    else:
        state[FREE] = nodes[node, NEXT]
    state[LIVE] += 1
    nodes[node, PARENT] = nodes[node, CHILD] = nodes[node, NEXT] = nodes[node, PREVIOUS] = NONE
    nodes[node, COUNT] = 1
    return node


@njit(nogil=True, cache=True)
def free_node(node: int, tree: Arrays) -> None:
    nodes, state = tree.nodes, tree.state
    nodes[node, COUNT] = 0
    nodes[node, NEXT] = state[FREE]
    state[FREE] = node
    state[LIVE] -= 1


@njit(nogil=True, cache=True)
def add_child(parent: int, child: int, tree: Arrays) -> None:
    nodes = tree.nodes
    first = nodes[parent, CHILD]
    nodes[child, PARENT], nodes[child, NEXT] = parent, first
    nodes[parent, CHILD] = child
    if first != NONE:
        nodes[first, PREVIOUS] = child


@njit(nogil=True, cache=True)
def take_out(node: int, tree: Arrays) -> None:
    """Take a node out of the list of its parent's children."""
    nodes = tree.nodes
    before, after = nodes[node, PREVIOUS], nodes[node, NEXT]
    if before == NONE:
        nodes[nodes[node, PARENT], CHILD] = after
    else:
        nodes[before, NEXT] = after
    if after != NONE:
        nodes[after, PREVIOUS] = before


@njit(nogil=True, cache=True)
def take_place(old: int, new: int, tree: Arrays) -> None:
    """Put a node among its new parent's children where another one was."""
    nodes = tree.nodes
    before, after, parent = nodes[old, PREVIOUS], nodes[old, NEXT], nodes[old, PARENT]
    nodes[new, PREVIOUS], nodes[new, NEXT], nodes[new, PARENT] = before, after, parent
    if before == NONE:
        nodes[parent, CHILD] = new
    else:
        nodes[before, NEXT] = new
    if after != NONE:
        nodes[after, PREVIOUS] = new


@njit(nogil=True, cache=True)
def _home(parent: int, token: int, mask: int) -> np.int64:
    """Where the search for a child begins."""
    key = (np.uint64(parent) << np.uint64(32)) | np.uint64(token)
    return np.int64((key * _MIX) >> np.uint64(33)) & mask


@njit(nogil=True, cache=True)
def slot_of(parent: int, token: int, tree: Arrays) -> int:
    """The place in the hash table of a node's child that begins with a token, or the free one where it belongs."""
    text, nodes, table = tree.text, tree.nodes, tree.table
    mask = len(table) - 1
    slot = _home(parent, token, mask)
    while table[slot] != NONE:
        node = table[slot]
        if nodes[node, PARENT] == parent and text[nodes[node, START]] == token:
            break
        slot = (slot + 1) & mask
    return slot


@njit(nogil=True, cache=True)
def find_child(parent: int, token: int, tree: Arrays) -> np.int64:
    """The child that begins with a token, or NONE."""
    return np.int64(tree.table[slot_of(parent, token, tree)])


@njit(nogil=True, cache=True)
def slot_of_node(node: int, tree: Arrays) -> int:
    """The place in the hash table where a node is, or where it belongs."""
    return slot_of(np.int64(tree.nodes[node, PARENT]), tree.text[tree.nodes[node, START]], tree)


@njit(nogil=True, cache=True)
def insert(node: int, tree: Arrays) -> None:
    """Put a node into the hash table."""
    tree.table[slot_of_node(node, tree)] = node


@njit(nogil=True, cache=True)
def erase(node: int, tree: Arrays) -> None:
    """Take a node out of the hash table; those that it had pushed on move back (linear probing without tombstones)."""
    text, nodes, table = tree.text, tree.nodes, tree.table
    mask = len(table) - 1
    hole = slot_of_node(node, tree)
    slot = hole
    while True:
        slot = (slot + 1) & mask
        other = table[slot]
        if other == NONE:
            break
        home = _home(np.int64(nodes[other, PARENT]), text[nodes[other, START]], mask)
        if (slot - home) & mask >= (slot - hole) & mask:
            table[hole] = other
            hole = slot
    table[hole] = NONE


@njit(nogil=True, cache=True)
def fill_table(tree: Arrays) -> None:
    """Put every node that hangs on the root into an empty table."""
    nodes = tree.nodes
    node = np.int64(nodes[ROOT, CHILD])
    while node != NONE:
        insert(node, tree)
        if nodes[node, CHILD] != NONE:
            node = np.int64(nodes[node, CHILD])
            continue
        while node != ROOT and nodes[node, NEXT] == NONE:
            node = np.int64(nodes[node, PARENT])
        node = np.int64(nodes[node, NEXT]) if node != ROOT else NONE
