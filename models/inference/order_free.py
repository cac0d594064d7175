"""Prompts of which a part is a set: its members neither see each other nor stand before or behind one another.

Set-Based Prompting (McIlroy-Young et al., arXiv 2406.06581, section 3): the members of a set begin at the same
position and attend to themselves and to what stands before the set; what follows goes on behind the longest one and
sees them all. So the order in which they are given cannot matter. To the last bit it does not, either: members are
stored in the order of their ids, whatever order they came in.

    prompt  a b | c d | e | f g       positions  0 1 | 2 3 | 2 | 4 5       members  . . | 0 0 | 1 | . .
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqmill.errors import UserError

Int64s = npt.NDArray[np.int64]

COMMON = -1  # in `Layout.member`: a token of no member


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of a prompt with a set stand."""

    ids: tuple[int, ...]  # members in the order of their ids
    position: Int64s  # [tokens]
    member: Int64s  # [tokens]: which member a token is of, or COMMON

    @property
    def members(self) -> tuple[range, ...]:
        """The places of the members, as they are stored."""
        edges = np.flatnonzero(np.diff(self.member, prepend=COMMON, append=COMMON)).tolist()
        return tuple(range(low, high) for low, high in itertools.pairwise(edges))

    @property
    def skipped(self) -> int:
        """By how much positions behind the prompt are less than the number of tokens before them."""
        return len(self.ids) - 1 - int(self.position[-1]) if len(self.ids) else 0

    def visible(self, query: Int64s, key: Int64s) -> npt.NDArray[np.bool_]:
        """bool[queries, keys]: whether tokens of the prompt are of no two different members; by their places."""
        own, other = self.member[query][:, None], self.member[key]
        return (own == COMMON) | (other == COMMON) | (own == other)


def lay_out(prompt: Sequence[int], members: Sequence[range]) -> Layout:
    """The layout of a prompt whose `members`, ranges of places that follow one another, are a set.

    Raises:
        UserError: the ranges are empty, apart, reach over the prompt, or leave nothing behind them: the last token of a
            prompt says what comes next, so it has to see all members.
    """
    begin, end = members[0].start, members[-1].stop
    follow = all(one.stop == next_.start for one, next_ in itertools.pairwise(members))
    if not (follow and all(len(each) and each.step == 1 for each in members) and begin >= 0 and end < len(prompt)):
        shown = ", ".join(f"{each.start}:{each.stop}" for each in members)
        raise UserError(
            f"members = {shown} of a prompt of {len(prompt)} tokens: they must follow one another, hold a token each, "
            "and leave at least one token behind the last"
        )
    texts = sorted(tuple(prompt[each.start : each.stop]) for each in members)
    longest = max(map(len, texts))
    position = [
        np.arange(begin),
        *(begin + np.arange(len(text)) for text in texts),
        begin + longest + np.arange(len(prompt) - end),
    ]
    member = [np.full(begin, COMMON), *(np.full(len(text), nth) for nth, text in enumerate(texts))]
    member.append(np.full(len(prompt) - end, COMMON))
    ids = (*prompt[:begin], *(token for text in texts for token in text), *prompt[end:])
    return Layout(ids, np.concatenate(position), np.concatenate(member))
