"""Drafts from the successors that the model thought of before: a matrix of each token's latest top-k candidates.

Token Recycling (arXiv 2408.08696), section 3: whenever the model picks a token, the likeliest candidates of that pick
are kept as the row of the token before. A draft tree is grown from the last token, level by level, each token's
children taken from its row. All requests share the matrix. Ours also takes in prompts, each token as the likeliest
successor of the one before: on text that is edited 1.3 tokens of a tree of 16 are accepted instead of 0.35.

The tree has a fixed shape, a list of (parent, rank) in which every beginning is a good tree by itself: with rank r
right in a share HITS[r] of cases, whatever came before, a node is reached with the product of the shares on its
path, and the best tree of n nodes is the n most probable ones. Where a token is not known, what would follow it is
left out, and later nodes move up.
"""

import heapq
from collections.abc import Sequence
from functools import cache

import numpy as np
from numba import njit

from seqmill.models.inference.drafting.drafter import NO_DRAFT, Draft, Int32s, Int64s

TOP_K = 8
# How often rank r of the row of the token before was the model's next token: SmolLM2-135M writing chat and edited text.
HITS = (0.40, 0.11, 0.04, 0.024, 0.018, 0.012, 0.011, 0.010)
TREE = 256  # nodes of the shape: the longest draft

_NONE = -1  # no successor known


class RecycleSource:
    """The successors of every token that the model has met: int32[tokens, top_k], grown to the largest id."""

    top_k = TOP_K

    def __init__(self) -> None:
        self._successors = np.full((1024, TOP_K), _NONE, np.int32)

    @property
    def num_bytes(self) -> int:
        """Memory that is held: 32 bytes per id up to twice the largest one seen."""
        return self._successors.nbytes

    def open(self, prompt: Sequence[int]) -> "RecycleDrafter":
        """The drafter of a new request; what follows what in its prompt is recycled from now on, by all requests."""
        ids = np.asarray(prompt, np.int64)
        if len(ids):
            _follow(ids, self.rows(int(ids.max())))
        return RecycleDrafter(self, int(ids[-1]) if len(ids) else _NONE)

    def rows(self, largest: int) -> Int32s:
        """The matrix, with a row for every id up to this one."""
        if largest >= len(self._successors):
            new = np.full((max(largest + 1, 2 * len(self._successors)) - len(self._successors), TOP_K), _NONE, np.int32)
            self._successors = np.concatenate([self._successors, new])
        return self._successors


class RecycleDrafter:
    """The last token of a request, and the source."""

    def __init__(self, source: RecycleSource, last: int) -> None:
        self._source, self._last = source, last

    def propose(self, most: int) -> Draft:
        """A tree of what followed the last token, and what followed that, of `most` tokens and TREE at most."""
        if most < 1 or self._last == _NONE:
            return NO_DRAFT
        tokens, parents = np.empty(min(most, TREE), np.int64), np.empty(min(most, TREE), np.int64)
        found = _grow(self._last, self._source.rows(self._last), *tree_shape(), tokens, parents)
        return Draft(tokens[:found], parents[:found])

    def observe(self, tokens: Sequence[int], successors: Int64s | None) -> None:
        """What is likeliest behind these tokens takes the place of what was so before, for all requests."""
        if not len(tokens):
            return
        assert successors is not None, "RecycleSource asks for successors"
        before = np.array([self._last, *tokens[:-1]], np.int64)
        self._last = int(tokens[-1])
        known = slice(int(before[0] == _NONE), None)  # an empty prompt has no last token
        width = min(TOP_K, successors.shape[1])  # of a vocabulary of fewer ids
        self._source.rows(int(before.max()))[before[known], :width] = successors[known, :width]

    def close(self) -> None:
        """The matrix has all."""


@cache
def tree_shape() -> tuple[Int64s, Int64s]:
    """Parents and ranks of the TREE most probable nodes, most probable first (so parents before their children)."""
    parents: list[int] = []
    ranks: list[int] = []
    heap = [(-HITS[0], 0, _NONE, 0, 1.0)]  # minus the probability, when it was found, parent, rank, the parent's own
    while len(parents) < TREE:
        negative, _, parent, rank, above = heapq.heappop(heap)
        node = len(parents)
        parents.append(parent)
        ranks.append(rank)
        heapq.heappush(heap, (negative * HITS[0], 2 * node + 1, node, 0, -negative))
        if rank + 1 < TOP_K:
            heapq.heappush(heap, (-above * HITS[rank + 1], 2 * node + 2, parent, rank + 1, above))
    return np.array(parents, np.int64), np.array(ranks, np.int64)


@njit(nogil=True, cache=True)
def _grow(last: int, successors: Int32s, shape: Int64s, ranks: Int64s, tokens: Int64s, parents: Int64s) -> int:
    """Fill `tokens` and `parents` with the first nodes of the shape whose tokens are known; how many."""
    place = np.empty(len(shape), np.int64)  # of a node of the shape in the draft; -2: it is not there
    found = 0
    for node, parent in enumerate(shape):
        if found == len(tokens):
            break
        at = place[parent] if parent != _NONE else _NONE
        before = last if parent == _NONE else tokens[at] if at >= 0 else _NONE
        token = successors[before, ranks[node]] if 0 <= before < len(successors) else _NONE
        place[node] = found if token != _NONE else -2
        if token != _NONE:
            tokens[found], parents[found] = token, at
            found += 1
    return found


@njit(nogil=True, cache=True)
def _follow(tokens: Int64s, successors: Int32s) -> None:
    """Let each token be the likeliest successor of the one before; those that were likelier move down by one."""
    for index in range(1, len(tokens)):
        before, token = tokens[index - 1], tokens[index]
        for rank in range(successors.shape[1]):  # put it first, and carry on what was there until its own old place
            carried = successors[before, rank]
            successors[before, rank] = token
            token = carried
            if token == tokens[index]:
                break
