"""How many tokens are worth proposing: speculation pays for itself, or stops.

A forward pass costs 1, and every proposed token in it `token_cost` more; a pass gives one token and the accepted ones.
Two things bound what a request proposes.

What pays. The throttle keeps how often a level of a draft (a token of a chain, one of the siblings of a tree) was
accepted where the level before it was: a mean that forgets. With that chance a, d levels give

    a + a^2 + ... + a^d = a (1 - a^d) / (1 - a)

accepted tokens, and the best n is the one with the most tokens per cost: (1 + accepted) / (1 + n * token_cost). It is
0 where no n beats a plain pass; then one token is tried after 2, 4, 8, ... passes, in case the text has changed.

What can be paid. An account makes the promise: a request begins with `burst`, each pass brings `waste`, each accepted
token the pass that it saved, each proposed token takes its cost, and what is not there is not spent. So at any time,
whatever the text,

    cost of all proposed <= accepted + waste * passes + burst

and a request takes at most 1 + waste times as long as without proposals, and `burst` passes. What was gained in good
times is lost in bad ones up to `reserve` passes, which the account holds at most.
"""

from dataclasses import dataclass, field
from functools import lru_cache

from seqmill.errors import UserError
from seqmill.models.inference.drafting.drafter import Draft


@dataclass
class Throttle:
    """Settings, and what was learned from all requests; one per engine.

    Raises:
        UserError: a setting is impossible.
    """

    most: int = 32  # tokens of the longest draft
    waste: float = 0.02  # passes that a request may lose, per pass
    burst: float = 0.5  # passes that it may lose beside, which pay for its first drafts
    reserve: float = 8.0  # passes gained that it may lose again; the longest draft costs no more
    memory: float = 0.93  # of a request: what a draft counts after one more
    longest_pause: int = 64  # passes from one trial to the next, where nothing pays
    accepted: float = field(default=1.4, init=False)  # levels, and drafts that were cut short: what new requests begin
    cut: float = field(default=0.6, init=False)  # with, which forgets ten times more slowly

    def __post_init__(self) -> None:
        if self.most < 0:
            raise UserError(f"most = {self.most}: a draft has 0 tokens or more")
        if min(self.waste, self.burst) < 0 or self.reserve < self.burst:
            raise UserError(
                f"waste = {self.waste}, burst = {self.burst}, reserve = {self.reserve}: must be 0 or more, "
                "and the reserve not below the burst"
            )
        if not 0 <= self.memory < 1:
            raise UserError(f"memory = {self.memory}: must be at least 0 and below 1")
        if self.longest_pause < 1:
            raise UserError(f"longest_pause = {self.longest_pause}: must be 1 or more")

    def open(self) -> "RequestThrottle":
        """The throttle of a new request."""
        weight = 2 / max(2.0, self.accepted + self.cut)  # of two levels: soon outweighed by the request's own
        return RequestThrottle(self, self.accepted * weight, self.cut * weight, self.burst)

    def learn(self, accepted: int, was_cut: bool) -> None:
        """What became of a draft of any request."""
        memory = 1 - (1 - self.memory) / 10
        self.accepted = memory * self.accepted + accepted
        self.cut = memory * self.cut + was_cut


@dataclass
class RequestThrottle:
    """Of one request: propose at most `limit` tokens, then `record` what became of them, for every pass."""

    shared: Throttle
    accepted: float  # levels, forgotten draft by draft
    cut: float  # drafts that were not accepted to their last level, likewise
    account: float  # passes that can be spent
    shape: float = 1.0  # levels per proposed token: 1 for a chain, less for a tree
    pause: int = 2  # passes from the last draft to the next trial
    idle: int = 0  # passes since the last draft

    @property
    def acceptance(self) -> float:
        """The chance that a level is accepted where the one before it was."""
        return self.accepted / (self.accepted + self.cut)

    def limit(self, token_cost: float) -> int:
        """The most tokens to propose for the next pass, each of which costs this part of a pass."""
        most = self.shared.most
        # Rounded, so that answers are looked up: computing one takes longer than a draft.
        best = best_length(round(self.acceptance, 2), max(0.1, round(self.shape, 1)), float(f"{token_cost:.2g}"), most)
        if best == 0 and self.idle >= self.pause:
            best = min(1, most)
        return best if best * token_cost <= self.account else max(0, int(self.account / token_cost))

    def record(self, draft: Draft, accepted: int, token_cost: float) -> None:
        """A pass was made, with a draft (or none) of which so many tokens were accepted."""
        gain = self.shared.waste + accepted - len(draft) * token_cost
        self.account = min(self.account + gain, self.shared.reserve)
        if not len(draft):
            self.idle += 1
            return
        depth, memory = draft.depth(), self.shared.memory
        self.accepted = memory * self.accepted + accepted
        self.cut = memory * self.cut + (accepted < depth)
        self.shape = memory * self.shape + (1 - memory) * depth / len(draft)
        self.shared.learn(accepted, accepted < depth)
        self.pause = 2 if accepted else min(2 * self.pause, self.shared.longest_pause)
        self.idle = 0


@lru_cache(maxsize=4096)
def best_length(acceptance: float, shape: float, token_cost: float, most: int) -> int:
    """The number of proposed tokens, 0 to `most`, with the most tokens per cost of a pass; the fewest of equals.

    Args:
        acceptance: the chance that a level is accepted where the one before it was.
        shape: levels per proposed token.
    """
    return max(range(most + 1), key=lambda n: (1 + expected_accepted(acceptance, shape * n)) / (1 + n * token_cost))


def expected_accepted(acceptance: float, levels: float) -> float:
    """Tokens accepted of so many levels."""
    if levels == 0:
        return 0.0
    levels = max(1.0, levels)
    return levels if acceptance == 1 else acceptance * (1 - acceptance**levels) / (1 - acceptance)
