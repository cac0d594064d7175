"""Drafts of the sequences of an engine: how many tokens are proposed, and what is learned from those accepted."""
# ruff: noqa: N806 (the axes are capital letters)

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from seqmill.models.attention import Segments
from seqmill.models.inference.drafting import NO_DRAFT, Draft, Drafter, DraftSource, Throttle
from seqmill.models.inference.drafting.throttle import RequestThrottle
from seqmill.models.transformer import Model

MOST_DRAFTED = 31  # tokens behind the last known one, which the kernel on pages takes together with it
_PROBED = (1, 9)  # tokens of the passes that are timed


@dataclass(eq=False)
class SequenceDrafts:
    """Drafts for one sequence."""

    drafter: Drafter
    throttle: RequestThrottle
    draft: Draft = NO_DRAFT  # of this step

    def propose(self, most: int, token_cost: float) -> Draft:
        """At most `most` tokens for the next pass, each of which costs this part of a pass."""
        limit = min(most, MOST_DRAFTED, self.throttle.limit(token_cost)) if most > 0 else 0
        self.draft = self.drafter.propose(limit) if limit else NO_DRAFT
        return self.draft

    def observe(
        self, new: list[int], successors: npt.NDArray[np.int64] | None, accepted: int, token_cost: float
    ) -> None:
        """These tokens came of the pass with the last draft, of which so many were accepted."""
        self.throttle.record(self.draft, accepted, token_cost)
        self.drafter.observe(new, successors[: len(new)] if successors is not None else None)


@dataclass(frozen=True, eq=False)
class Speculation:
    """What the sequences of an engine share."""

    source: DraftSource
    throttle: Throttle
    marginal: float  # seconds of one more token in a pass, by those of a pass over a single one

    @classmethod
    def of(cls, model: Model, source: DraftSource) -> "Speculation":
        """With the costs of this model's passes, which are timed."""
        return cls(source, Throttle(most=MOST_DRAFTED), marginal_cost(model))

    def open(self, prompt: list[int]) -> SequenceDrafts:
        """For a sequence that begins with a prompt."""
        return SequenceDrafts(self.source.open(prompt), self.throttle.open())

    def token_cost(self, live: int) -> float:
        """What one more token costs, by what each of so many sequences costs in a pass: with one sequence a pass is
        mostly the reading of weights, and a token costs little more; with many it is the tokens."""
        share = (1 + (live - 1) * self.marginal) / max(1, live)
        return max(1e-3, self.marginal / share)


@torch.inference_mode()
def marginal_cost(model: Model) -> float:
    """Seconds of one more token in a forward pass, by those of a pass over a single token; the best of three."""
    seconds = []
    for tokens in _PROBED:
        ids_T, segments = (
            torch.zeros(tokens, dtype=torch.int64, device=model.device),
            Segments.of([tokens], model.device),
        )
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            model.logits(model(ids_T, torch.arange(tokens, device=model.device), segments)).sum().item()
            best = min(best, time.perf_counter() - began)
        seconds.append(best)
    one, several = seconds
    return max(1e-4, (several - one) / (_PROBED[1] - _PROBED[0]) / one)
