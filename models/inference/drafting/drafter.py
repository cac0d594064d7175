"""What a drafter is: it proposes tokens that may come next, and sees which came.

An engine asks the drafter of every live request for a tree of tokens, runs one forward pass over all trees, accepts
the path that the model itself would have taken, and tells the drafter the tokens that were appended. Proposals cannot
change what is generated, only how many passes it takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Draft:
    """A tree of tokens that may come next; parents come before their children, and siblings differ.

    tokens = [7, 8, 9, 3], parents = [-1, 0, 1, 0] stands for the continuations 7 8 9 and 7 3.
    """

    tokens: Int64s  # int64[n]
    parents: Int64s  # int64[n]: token i follows token parents[i] of the draft, or the last known token where it is -1

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def chain(cls, tokens: Sequence[int] | Int64s | Int32s) -> "Draft":
        """One continuation, each token after the one before."""
        return cls(np.asarray(tokens, np.int64), np.arange(-1, len(tokens) - 1, dtype=np.int64))

    def depth(self) -> int:
        """Tokens of the longest path: the most that can be accepted."""
        depths = [0] * (len(self.tokens) + 1)  # the last one is that of parent -1
        for token, parent in enumerate(self.parents.tolist()):
            depths[token] = depths[parent] + 1
        return max(depths)


class Drafter(Protocol):
    """Proposes for one request."""

    def propose(self, most: int) -> Draft:
        """At most `most` tokens that may follow what is known of the request; none is fine."""

    def observe(self, tokens: Sequence[int], successors: Int64s | None) -> None:
        """The model's own tokens, in order, that were appended to the request.

        Args:
            successors: int64[len(tokens), top_k], where the source has a `top_k`: row i holds the likeliest ids of the
                distribution that tokens[i] was picked from, likeliest first.
        """

    def close(self) -> None:
        """The request is done: what it wrote may serve later ones. Nothing is called after this."""


class DraftSource(Protocol):
    """Opens drafters and holds what they share: one source serves all requests of an engine."""

    @property
    def top_k(self) -> int:
        """Successors that `Drafter.observe` wants; 0: none."""

    def open(self, prompt: Sequence[int]) -> Drafter:
        """The drafter of a new request."""


NO_DRAFT = Draft.chain([])
