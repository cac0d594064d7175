"""Drafts from suffix trees: what followed the last tokens before, in the request and in what others wrote.

SuffixDecoding (arXiv 2411.04975), section 3: the longest end of the request that a tree knows, with something after it,
is looked up in the request's own tree and in one of all that was written by closed requests or fed as a corpus. From
there a draft grows by its most probable token, again and again. A token is taken to be accepted with

    P(token | what is before it is accepted) = count(token) / count(all that followed) * m / (m + 1)

where m is the length of the context it was found after, the drafted tokens on its path among them: the longer the
match, the likelier it goes on, and along an edge of the tree P(n tokens in a row) = m / (m + n). The factor is ours:
pure frequencies give a token that followed once, after a match of one token, the probability 1. In edited text, chat,
prose and code (SmolLM2's ids), a match of 1, 2, 3, 4 or 8 tokens that had been followed by one token alone was followed
by it again in 39, 66, 78, 86 and 96 of 100 cases. Of the two drafts, the one with more tokens expected to be accepted
is proposed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numba import njit

from seqmill.errors import UserError
from seqmill.models.inference.drafting.drafter import NO_DRAFT, Draft, Floats, Int32s, Int64s
from seqmill.models.inference.drafting.suffix_nodes import CHILD, COUNT, LENGTH, NEXT, NONE, START, WRITTEN, Arrays
from seqmill.models.inference.drafting.suffix_tree import SuffixTree, last_tokens, walk

CONTEXT = 32  # longest match that is looked for
DEPTH = 2 * CONTEXT  # of the trees: CONTEXT tokens can follow the longest match
REQUEST_TOKENS = 2**16  # that a request's own tree holds
SHARED_TOKENS = 2**18  # that the tree of closed requests and the corpus holds
WIDEST = 128  # of what is followed by more different tokens, no draft is made: a token after "the" is anyone's guess
LEAST = 0.05  # see SuffixSource.least_probability
PROMPT_TOKENS = 16  # of a prompt's end, that are kept before what was written after it


@dataclass(frozen=True, eq=False)
class SuffixSource:
    """The tree of what closed requests wrote.

    Raises:
        UserError: a setting is impossible.
    """

    least_probability: float = LEAST  # a token that is accepted less often is not proposed
    request_tokens: int = REQUEST_TOKENS  # the last so many tokens of a request are looked through; a power of two
    shared_tokens: int = SHARED_TOKENS  # the last so many tokens of all others are; a power of two
    top_k: ClassVar[int] = 0
    shared: SuffixTree = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.least_probability < 1:
            raise UserError(f"least_probability = {self.least_probability}: must be at least 0 and below 1")
        SuffixTree(DEPTH, self.request_tokens)  # refuses what cannot be
        object.__setattr__(self, "shared", SuffixTree(DEPTH, self.shared_tokens))

    def open(self, prompt: Sequence[int]) -> "SuffixDrafter":
        """The drafter of a new request."""
        return SuffixDrafter(self, prompt)

    def feed(self, tokens: Sequence[int] | Int64s | Int32s) -> None:
        """Let drafts come from a document too; the oldest tokens of all are forgotten where there is no room."""
        self.shared.extend(tokens)
        self.shared.end_sequence()


class SuffixDrafter:
    """The tree of one request."""

    def __init__(self, source: SuffixSource, prompt: Sequence[int]) -> None:
        self._source = source
        self._own = SuffixTree(DEPTH, source.request_tokens)
        self._own.extend(prompt)
        self._written = 0

    def propose(self, most: int) -> Draft:
        """What most often followed the longest known suffix, here or in earlier requests: the better of both."""
        if most < 1:
            return NO_DRAFT
        source, own = self._source, self._own.arrays
        drafts = [_best_tree(own, tree, most, source.least_probability) for tree in (own, source.shared.arrays)]
        _, tokens, parents = max(drafts, key=lambda draft: draft[0])  # the request's own, where both are as good
        return Draft(tokens, parents)

    def observe(self, tokens: Sequence[int], successors: Int64s | None) -> None:
        """The tree of the request grows; successors are not needed."""
        self._own.extend(tokens)
        self._written += len(tokens)

    def close(self) -> None:
        """Later requests may follow what the model wrote here, and the end of the prompt before it."""
        if self._written:
            self._source.feed(self._own.last(self._written + PROMPT_TOKENS))


# What may be drafted next: a token of the tree, and the draft's token that it would follow.
_NODE, _OFFSET, _PARENT, _MATCHED, _AGE = range(5)  # its node, its place in the edge, ..., tokens before, tokens ago
_FIELDS = 5


@njit(nogil=True, cache=True)
def _best_tree(request: Arrays, tree: Arrays, most: int, least: float) -> tuple[float, Int64s, Int64s]:
    """The tree of at most `most` tokens that most are expected to be accepted of, grown from the most probable ones.

    Returns:
        The expected number of accepted tokens, and tokens and parents of the draft, most probable first.
    """
    tokens, parents = np.empty(most, np.int64), np.empty(most, np.int64)
    chances, choices = np.empty(most), np.empty((most, _FIELDS), np.int64)  # worst first; more than `most` are no use
    found, expected, chance, parent = np.int64(0), 0.0, 1.0, NONE
    node, offset, matched = _longest_match(last_tokens(CONTEXT, request), tree)
    count = _add_choices(chance, node, offset, parent, matched, tree, chances, choices, np.int64(0)) if matched else 0
    while found < most and count and chances[count - 1] >= least:
        count -= 1
        chance = chances[count]
        node, offset, matched = choices[count, _NODE], choices[count, _OFFSET], choices[count, _MATCHED]
        tokens[found] = tree.text[(tree.nodes[node, START] + offset) & (len(tree.text) - 1)]
        parents[found] = choices[count, _PARENT]
        count = _add_choices(chance, node, offset + 1, found, matched + 1, tree, chances, choices, count)
        expected += chance
        found += 1
    return expected, tokens[:found], parents[:found]


@njit(nogil=True, cache=True)
def _longest_match(context: Int32s, tree: Arrays) -> tuple[int, int, int]:
    """Node, offset and length of the longest end of the context with something after it in the tree; length 0: none."""
    for begin in range(len(context)):
        node, offset = walk(context, begin, tree)
        if node != NONE and (offset < tree.nodes[node, LENGTH] or tree.nodes[node, CHILD] != NONE):
            return node, offset, len(context) - begin
    return NONE, 0, 0


@njit(nogil=True, cache=True)
def _add_choices(
    chance: float,
    node: int,
    offset: int,
    parent: int,
    matched: int,
    tree: Arrays,
    chances: Floats,
    choices: Int64s,
    count: int,
) -> int:
    """Add all tokens that follow a place in the tree, which is reached with this chance; how many choices there are."""
    nodes = tree.nodes
    chance *= matched / (matched + 1)
    if offset < nodes[node, LENGTH]:
        return _add_choice(chance, node, offset, parent, matched, tree, chances, choices, count)
    total, followers = 0, 0
    child = np.int64(nodes[node, CHILD])
    while child != NONE:
        total += nodes[child, COUNT]
        followers += 1
        if followers > WIDEST:
            return count
        child = np.int64(nodes[child, NEXT])
    child, first = np.int64(nodes[node, CHILD]), np.int64(0)
    while child != NONE:
        share = nodes[child, COUNT] / total
        count = _add_choice(chance * share, child, first, parent, matched, tree, chances, choices, count)
        child = np.int64(nodes[child, NEXT])
    return count


@njit(nogil=True, cache=True)
def _add_choice(
    chance: float,
    node: int,
    offset: int,
    parent: int,
    matched: int,
    tree: Arrays,
    chances: Floats,
    choices: Int64s,
    count: int,
) -> int:
    """Add one where it belongs, by chance and then by how lately the tree saw it; where all is full the worst goes."""
    age = (tree.state[WRITTEN] - tree.nodes[node, START] - offset) & (len(tree.text) - 1)
    full = count == len(chances)
    if full and (chances[0] > chance or (chances[0] == chance and choices[0, _AGE] < age)):
        return count
    at = count
    while at and (chances[at - 1] > chance or (chances[at - 1] == chance and choices[at - 1, _AGE] < age)):
        at -= 1
    if full:  # the worse ones move down, and the worst one out
        at -= 1
        first, last, step = 0, at, 1
    else:  # the better ones move up
        first, last, step = count, at, -1
    for index in range(first, last, step):
        chances[index] = chances[index + step]
        for column in range(_FIELDS):
            choices[index, column] = choices[index + step, column]
    chances[at] = chance
    choices[at, _NODE], choices[at, _OFFSET], choices[at, _PARENT] = node, offset, parent
    choices[at, _MATCHED], choices[at, _AGE] = matched, age
    return len(chances) if full else count + 1
