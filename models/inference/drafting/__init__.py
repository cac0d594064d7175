"""Drafters without a draft model: they propose tokens that may come next, for one forward pass to verify.

    source = DRAFTERS["suffix"]()          # one per engine
    drafter = source.open(prompt)          # one per request
    draft = drafter.propose(most=16)       # a tree of tokens; the model accepts a path, and picks one token more
    drafter.observe(tokens, successors)    # what was appended to the request
    drafter.close()

`copy` looks back in the request (CopySpec), `recycle` remembers the candidates of earlier picks (Token Recycling),
`suffix` counts what followed in the request and in all closed ones (SuffixDecoding). `Throttle` says how many tokens
are worth proposing.
"""

from collections.abc import Callable, Mapping

from seqmill.models.inference.drafting.copying import CopySource
from seqmill.models.inference.drafting.drafter import NO_DRAFT, Draft, Drafter, DraftSource
from seqmill.models.inference.drafting.recycling import RecycleSource
from seqmill.models.inference.drafting.suffixes import SuffixSource
from seqmill.models.inference.drafting.throttle import Throttle

DRAFTERS: Mapping[str, Callable[[], DraftSource]] = {
    "copy": CopySource,
    "recycle": RecycleSource,
    "suffix": SuffixSource,
}

__all__ = [
    "DRAFTERS",
    "NO_DRAFT",
    "CopySource",
    "Draft",
    "DraftSource",
    "Drafter",
    "RecycleSource",
    "SuffixSource",
    "Throttle",
]
