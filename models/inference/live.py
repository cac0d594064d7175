"""Sequences on their way, and what a step tells of them."""

from dataclasses import dataclass, field

import numpy as np

from seqmill.models.inference.attention.step import Piece
from seqmill.models.inference.cache import CachedSequence
from seqmill.models.inference.requests import Finish, GeneratedSequence, Request
from seqmill.models.inference.sampling import Draws
from seqmill.models.inference.speculation import SequenceDrafts


@dataclass(eq=False)
class Live:
    """A sequence on its way."""

    number: int  # of its request
    sample: int
    request: Request
    sequence: CachedSequence
    draws: Draws
    need: list[int]  # of each group: pages that it may take in all
    scheduled: int = 0  # tokens of the prompt that are in the cache
    reused: int = 0  # of those: that were there already
    tokens: list[int] = field(default_factory=list)  # new ones
    finish: Finish | None = None
    text: bytes | None = None  # before a stop text
    drafts: SequenceDrafts | None = None

    @property
    def is_prompt(self) -> bool:
        """Whether tokens of its prompt are still to come."""
        return self.scheduled < len(self.request.prompt)

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.request.max_new_tokens - len(self.tokens)

    @property
    def result(self) -> GeneratedSequence:
        """What came of it."""
        assert self.finish is not None
        return GeneratedSequence(tuple(self.tokens), self.finish, len(self.request.prompt), text=self.text)


@dataclass(eq=False)
class Ready:
    """A sequence that has a next token, or several: rows of the step's hidden vectors that tell which."""

    live: Live
    piece: Piece | None  # of a sequence that is being continued; None behind a prompt
    first_row: int
    new: list[int] = field(default_factory=list)  # tokens that came

    @property
    def depths(self) -> np.ndarray:
        """int64[rows]: of the new token that each row tells, the first one being 0."""
        return np.zeros(1, np.int64) if self.piece is None else self.piece.depths

    @property
    def rows(self) -> np.ndarray:
        """int64[rows]."""
        return self.first_row + np.arange(len(self.depths))
