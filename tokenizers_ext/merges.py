"""Merge rules from ranks: what tiktoken and sentencepiece store as one order of tokens, BPE files store as pairs."""

from collections.abc import Mapping
from typing import TypeVar

NEVER = 2**63  # the rank of two neighbours that together are no token
Token = TypeVar("Token", str, bytes)


def last_merges(ranks: Mapping[Token, int]) -> list[tuple[Token, Token]]:
    """The merge that completes each token, by increasing rank of the token.

    tiktoken and sentencepiece merge any two neighbours that together are a token, the lowest rank first, the leftmost
    among equals. As long as no merge crosses the borders of a token, its inside goes through the same merges wherever
    it stands; so one pair is enough for each. A token that its own parts do not merge into has none.

    Args:
        ranks: token -> rank, all different, by increasing rank.
    """
    pairs = (_last_merge(token, ranks) for token in ranks if len(token) > 1)
    return [pair for pair in pairs if pair]


def _last_merge(token: Token, ranks: Mapping[Token, int]) -> tuple[Token, Token] | None:
    parts = [token[k : k + 1] for k in range(len(token))]
    costs = [ranks.get(token[k : k + 2], NEVER) for k in range(len(token) - 1)]  # of merging part k with the next
    while len(parts) > 2:
        lowest = min(costs)
        if lowest == NEVER:
            return None
        k = costs.index(lowest)
        parts[k : k + 2] = [parts[k] + parts[k + 1]]
        del costs[k]
        if k > 0:
            costs[k - 1] = ranks.get(parts[k - 1] + parts[k], NEVER)
        if k < len(costs):
            costs[k] = ranks.get(parts[k] + parts[k + 1], NEVER)
    return parts[0], parts[1]
