"""A suffix tree with counts over the last tokens of a stream, built online, of bounded depth and memory.

The tree holds every suffix of the text, cut to `depth` tokens. The count of a string is how often it occurs; a node
stands where the count drops, that is where occurrences part or end, so that along an edge it is the same:

    text 1 2 3 1 2 4, depth 4        root -+- 1 2 (2) -+- 3 1 (1)
                                           |           +- 4 (1)
                                           +- 2 (2) -+- 3 1 2 (1)
                                           |         +- 4 (1)
                                           +- 3 1 2 4 (1)
                                           +- 4 (1)

A new token moves the ends of the last `depth` suffixes on by one, each in constant time. A suffix has an end in the
tree, so it counts at its end's node and above. When the text is full, the oldest suffix is taken out again: all counts
on its path go down, and nodes that are no longer needed go. An edge is labelled with a place in the text, always that
of its latest occurrence; so the labels of what remains after the oldest suffix went are still in the text.

The tree is the same however it came to be: a function of the suffixes it holds.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit

from seqmill.errors import UserError
from seqmill.models.inference.drafting.drafter import Int32s, Int64s
from seqmill.models.inference.drafting.suffix_nodes import (
    CHILD,
    COUNT,
    FIELDS,
    LENGTH,
    LIVE,
    NEXT,
    NONE,
    PARENT,
    PREVIOUS,
    ROOT,
    SEQUENCE,
    START,
    WRITTEN,
    Arrays,
    add_child,
    erase,
    fill_table,
    find_child,
    free_node,
    insert,
    new_node,
    slot_of_node,
    take_out,
    take_place,
)


class SuffixTree:
    """Counts of all strings of at most `depth` tokens in the last `capacity` tokens.

    Args:
        depth: a power of two.
        capacity: a power of two, at least four times the depth; the end of a sequence takes a token more.

    Memory: at most 2 nodes of 28 bytes per token, 4 bytes of text, and 2 hash places of 4 bytes per node; each grows
    by doubling from little.
    """

    def __init__(self, depth: int, capacity: int) -> None:
        for name, value, least in (("depth", depth, 2), ("capacity", capacity, 4 * depth)):
            if value < least or value & (value - 1) or value > 2**28:
                raise UserError(f"{name} = {value}: must be a power of two, from {least} to {2**28}")
        self.depth, self.capacity = depth, capacity
        nodes = np.empty((8 * depth, FIELDS), np.int32)
        nodes[ROOT] = NONE
        nodes[ROOT, [LENGTH, COUNT]] = 0
        self.arrays = Arrays(
            text=np.empty(4 * depth, np.int32),
            nodes=nodes,
            table=np.full(16 * depth, NONE, np.int32),
            ends=np.zeros(depth, np.int32),
            state=np.array([0, 0, 1, 1, NONE], np.int64),
        )

    @property
    def nodes(self) -> int:
        """Nodes of the tree, its root among them."""
        return int(self.arrays.state[LIVE])

    @property
    def num_bytes(self) -> int:
        """Memory that is held."""
        return sum(array.nbytes for array in self.arrays)

    def extend(self, tokens: Sequence[int] | Int64s | Int32s) -> None:
        """More tokens of the open sequence; the oldest ones go where there is no room."""
        rest = np.asarray(tokens, np.int32)
        while len(rest):
            taken = _extend(rest, self.arrays, self.capacity)
            rest = rest[taken:]
            if len(rest):
                self._grow()

    def end_sequence(self) -> None:
        """What comes next does not follow what came last."""
        self.extend([NONE])

    def count(self, string: Sequence[int]) -> int:
        """How often a string of 1 to `depth` tokens occurs in what is held."""
        node, _ = walk(np.asarray(string, np.int32), 0, self.arrays)
        return 0 if node == NONE else int(self.arrays.nodes[node, COUNT])

    def last(self, tokens: int) -> Int32s:
        """The last tokens of the open sequence: so many, or as many as there are."""
        return last_tokens(tokens, self.arrays)

    def _grow(self) -> None:
        """Double whatever is too small for one more token."""
        text, nodes, _, _, state = self.arrays
        if state[WRITTEN] == len(text) < self.capacity:
            self.arrays = self.arrays._replace(text=np.concatenate([text, np.empty_like(text)]))
        if len(nodes) - state[LIVE] < 2 * self.depth:
            nodes = np.concatenate([nodes, np.empty_like(nodes)])
            self.arrays = self.arrays._replace(nodes=nodes, table=np.full(2 * len(nodes), NONE, np.int32))
            fill_table(self.arrays)


@njit(nogil=True, cache=True)
def _extend(tokens: Int32s, tree: Arrays, capacity: int) -> int:
    """Append tokens until one of the arrays is too small; how many were appended."""
    text, nodes, ends, state = tree.text, tree.nodes, tree.ends, tree.state
    depth, mask = len(ends), len(text) - 1
    for taken, token in enumerate(tokens):
        position = state[WRITTEN]
        if (position == len(text) and len(text) < capacity) or len(nodes) - state[LIVE] < 2 * depth:
            return taken
        if position >= capacity:
            _remove_suffix(position - capacity, tree, depth)
        text[position & mask] = token
        state[WRITTEN] = position + 1
        if token == NONE:
            state[SEQUENCE] = position + 1
            continue
        ends[position % depth] = ROOT
        for begin in range(max(state[SEQUENCE], position + 1 - depth), position + 1):
            slot = begin % depth
            node = np.int64(ends[slot])
            if node != ROOT and nodes[node, COUNT] == 1:  # a leaf of this suffix alone
                nodes[node, LENGTH] += 1
            else:
                ends[slot] = _step(node, position & mask, tree)
    return len(tokens)


@njit(nogil=True, cache=True)
def _step(node: int, place: int, tree: Arrays) -> int:
    """The node at which a suffix ends that ended at `node`, after the token at `place` of the text."""
    text, nodes = tree.text, tree.nodes
    mask = len(text) - 1
    child = find_child(node, text[place], tree)
    if child == NONE:
        end = new_node(tree)
        nodes[end, START], nodes[end, LENGTH] = place, 1
        add_child(node, end, tree)
        insert(end, tree)
    elif nodes[child, LENGTH] > 1 and (node == ROOT or nodes[node, COUNT] > nodes[child, COUNT] + 1):
        end = _split(child, tree)
    elif nodes[child, LENGTH] > 1:  # all that were here are on the child's edge now: this node moves along it
        erase(child, tree)
        nodes[node, LENGTH] += 1
        _shorten(child, tree)
        insert(child, tree)
        end = node
    else:
        if node != ROOT and nodes[node, COUNT] == nodes[child, COUNT] + 1:
            _absorb(node, child, tree)
        nodes[child, COUNT] += 1
        end = child
    nodes[end, START] = (place + 1 - nodes[end, LENGTH]) & mask  # its latest occurrence
    return end


@njit(nogil=True, cache=True)
def _split(child: int, tree: Arrays) -> int:
    """A new node after the first token of a child's edge, which one more suffix than the child has reached."""
    nodes, table = tree.nodes, tree.table
    slot = slot_of_node(child, tree)
    middle = new_node(tree)
    nodes[middle, START], nodes[middle, LENGTH] = nodes[child, START], 1
    nodes[middle, COUNT] = nodes[child, COUNT] + 1
    take_place(child, middle, tree)
    table[slot] = middle
    _shorten(child, tree)
    nodes[child, NEXT] = NONE
    nodes[child, PREVIOUS] = NONE
    nodes[child, PARENT] = middle
    nodes[middle, CHILD] = child
    insert(child, tree)
    return middle


@njit(nogil=True, cache=True)
def _shorten(node: int, tree: Arrays) -> None:
    """Take the first token from a node's edge."""
    nodes, mask = tree.nodes, len(tree.text) - 1
    nodes[node, START] = (nodes[node, START] + 1) & mask
    nodes[node, LENGTH] -= 1


@njit(nogil=True, cache=True)
def _absorb(node: int, child: int, tree: Arrays) -> None:
    """Let a node's only child have its edge too, where the two no longer differ in count."""
    text, nodes, table = tree.text, tree.nodes, tree.table
    erase(child, tree)
    slot = slot_of_node(node, tree)
    nodes[child, START] = (nodes[child, START] - nodes[node, LENGTH]) & (len(text) - 1)
    nodes[child, LENGTH] += nodes[node, LENGTH]
    take_place(node, child, tree)
    table[slot] = child
    free_node(node, tree)


@njit(nogil=True, cache=True)
def _remove_suffix(begin: int, tree: Arrays, depth: int) -> None:
    """Take the suffix that begins with token `begin` of the stream, the oldest one, out of the tree."""
    text, nodes = tree.text, tree.nodes
    mask = len(text) - 1
    node, length = ROOT, 0
    while length < depth and text[(begin + length) & mask] != NONE:
        node = find_child(node, text[(begin + length) & mask], tree)
        nodes[node, COUNT] -= 1
        length += nodes[node, LENGTH]
    while node != ROOT:
        parent, child = np.int64(nodes[node, PARENT]), np.int64(nodes[node, CHILD])
        if nodes[node, COUNT] == 0:
            erase(node, tree)
            take_out(node, tree)
            free_node(node, tree)
        elif child != NONE and nodes[child, COUNT] == nodes[node, COUNT]:
            _absorb(node, child, tree)
        node = parent


@njit(nogil=True, cache=True)
def walk(string: Int32s, begin: int, tree: Arrays) -> tuple[int, int]:
    """Where string[begin:] ends: the node at or in whose edge, and how many tokens of that edge; NONE: nowhere."""
    text, nodes = tree.text, tree.nodes
    mask = len(text) - 1
    node, offset = ROOT, 0
    for token in string[begin:]:
        if offset == nodes[node, LENGTH]:
            node, offset = find_child(node, token, tree), 1
            if node == NONE:
                break
        elif text[(nodes[node, START] + offset) & mask] == token:
            offset += 1
        else:
            return NONE, 0
    return node, offset


@njit(nogil=True, cache=True)
def last_tokens(most: int, tree: Arrays) -> Int32s:
    """The last tokens of the open sequence: `most`, or as many as there are."""
    text, state = tree.text, tree.state
    end = state[WRITTEN]
    count = min(most, end - state[SEQUENCE], len(text))
    tokens = np.empty(count, np.int32)
    for index in range(count):
        tokens[index] = text[(end - count + index) & (len(text) - 1)]
    return tokens
