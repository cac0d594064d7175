"""Which continuations of a prompt live on, which are finished, and when nothing better can come.

The rules are those of beam search in transformers. Of what may follow a group's `width` live hypotheses, the likeliest
candidates are looked at in their order. One that ends in a stop token is finished if it is among the first `width`;
the first `width` of the others live on. The `width` finished ones of the best scores are kept, and the group is done
when there are so many and no live hypothesis has a better score at its length. At `max_new_tokens` the first `width`
candidates are finished, whatever they end in.

Groups are those of diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424, section 4, algorithm 1): each is a
beam search of its own, but a token that the groups before it chose at this step costs `diversity` for every time that
they chose it (Hamming diversity), and the costs stay in the sums by which candidates are ordered.
"""
# ruff: noqa: N806 (the axes are capital letters: H live hypotheses, C tokens that may follow each)

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from seqmill.errors import UserError


@dataclass(frozen=True)
class Beam:
    """A finished continuation of a prompt."""

    tokens: tuple[int, ...]  # without the prompt and without the stop token
    log_probability: float  # natural logarithm, of all tokens together, the stop token included
    score: float  # log_probability / tokens ** length_penalty, the stop token counted
    finish: Literal["length", "stop"]  # why it ended


@dataclass(frozen=True, kw_only=True)
class BeamSettings:
    """What is searched for.

    Raises:
        UserError: a value is impossible.
    """

    max_new_tokens: int  # the length at which a continuation ends if no stop token comes first
    beams: int = 4  # continuations of a prompt that are followed at one time, and that are found
    groups: int = 1  # into which the beams are divided
    diversity: float = 0.0  # what a token costs for every time that an earlier group chose it at this step
    length_penalty: float = 1.0  # above 0 favours long continuations, below 0 short ones
    stop_ids: frozenset[int] = frozenset()  # tokens that end a continuation

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "beams", "groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.beams % self.groups:
            raise UserError(
                f"beams = {self.beams}, groups = {self.groups}: every group has the same number of beams, so groups "
                "must divide beams"
            )
        if not 0 <= self.diversity < math.inf:
            raise UserError(f"diversity = {self.diversity}: must be 0 (none) or a positive number")
        if not abs(self.length_penalty) * math.log(max(2, self.max_new_tokens)) < 700:  # exp(710) is no float64
            raise UserError(
                f"length_penalty = {self.length_penalty}: {self.max_new_tokens} ** length_penalty is no number that "
                "can be divided by; choose one between -10 and 10"
            )

    @property
    def width(self) -> int:
        """Beams of a group."""
        return self.beams // self.groups

    @property
    def candidates(self) -> int:
        """Continuations of a group that are looked at: `width` of them go on even if each hypothesis' best tokens are
        all the stop tokens."""
        return self.width * (1 + max(1, len(self.stop_ids)))

    @property
    def tokens_seen(self) -> int:
        """Likeliest tokens of a hypothesis among which its candidates are, whatever the earlier groups chose: at each
        step `width` live ones, and `width` finished ones, of at most `len(stop_ids)` tokens."""
        earlier = self.beams - self.width if self.diversity else 0
        return self.candidates + earlier + min(earlier, len(self.stop_ids))


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A continuation of a prompt that lives: one token behind another one, or nothing yet."""

    parent: "Hypothesis | None" = None  # None: nothing yet
    token: int = -1  # the last one; -1: nothing yet
    length: int = 0  # tokens
    log_probability: float = 0.0
    rank: float = 0.0  # log_probability less what its tokens cost

    def followed_by(self, token: int, log_probability: float, rank: float) -> "Hypothesis":
        """This and one more token."""
        return Hypothesis(self, token, self.length + 1, log_probability, rank)

    def finished(self, settings: BeamSettings) -> Beam:
        """As it is found, whether it ends in a stop token or at its full length."""
        is_stop = self.token in settings.stop_ids
        tokens = []
        each = self.parent if is_stop else self
        while each is not None and each.parent is not None:
            tokens.append(each.token)
            each = each.parent
        score = self.score(settings)
        return Beam(tuple(tokens[::-1]), self.log_probability, score, "stop" if is_stop else "length")

    def score(self, settings: BeamSettings) -> float:
        """As it would be found if it ended here."""
        return float(self.log_probability / self.length**settings.length_penalty)


class Following(NamedTuple):
    """What may follow a hypothesis: its likeliest tokens, likeliest first."""

    tokens: npt.NDArray[np.int64]  # [C]
    log_p: npt.NDArray[np.float64]  # [C]


@dataclass(eq=False)
class Group:
    """A beam search among those of a prompt."""

    live: list[Hypothesis]  # best first; none: it is done
    finished: list[Beam] = field(default_factory=list)  # best first

    def advance(self, following: Mapping[Hypothesis, Following], chosen: list[int], settings: BeamSettings) -> None:
        """Follow the live hypotheses by one token.

        Args:
            following: each live hypothesis.
            chosen: what earlier groups chose at this step; this group's choices are appended.
        """
        if not self.live:
            return
        best = self._candidates(following, chosen, settings)
        is_last = best[0].length == settings.max_new_tokens
        ended = [each for each in best[: settings.width] if is_last or each.token in settings.stop_ids]
        going = [] if is_last else [each for each in best if each.token not in settings.stop_ids][: settings.width]
        chosen += [each.token for each in ended + going]
        self.finished += [each.finished(settings) for each in ended]
        self.finished = sorted(self.finished, key=lambda beam: -beam.score)[: settings.width]
        is_full = len(self.finished) == settings.width
        worst = self.finished[-1].score if is_full else -math.inf
        self.live = going if any(each.score(settings) > worst for each in going) else []

    def _candidates(
        self, following: Mapping[Hypothesis, Following], chosen: list[int], settings: BeamSettings
    ) -> list[Hypothesis]:
        tokens_HC = np.stack([following[each].tokens for each in self.live])
        log_p_HC = np.stack([following[each].log_p for each in self.live])
        times_HC = (tokens_HC[:, :, None] == np.array(chosen, np.int64)).sum(axis=-1)
        total_HC = np.array([[each.log_probability] for each in self.live]) + log_p_HC
        rank_HC = np.array([[each.rank] for each in self.live]) + log_p_HC - settings.diversity * times_HC
        order = np.argsort(-rank_HC, axis=None, kind="stable")[: settings.candidates]
        return [
            self.live[h].followed_by(int(tokens_HC[h, c]), float(total_HC[h, c]), float(rank_HC[h, c]))
            for h, c in zip(*np.unravel_index(order, rank_HC.shape), strict=True)
        ]
