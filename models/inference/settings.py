"""How much an engine does at once, and the pages that this takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqmill.errors import UserError
from seqmill.models.inference.cache import Group
from seqmill.models.inference.drafting import DRAFTERS
from seqmill.models.inference.policy import CachePolicy

MAX_BATCH = 64  # most sequences that live at once
PREFILL_TOKENS = 4096  # most prompt tokens of one forward pass
CACHE_TOKENS = 65_536
PAGE_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How much is done at once.

    Raises:
        UserError: a value is impossible.
    """

    max_batch: int = MAX_BATCH  # most sequences that live at once
    prefill_tokens: int = PREFILL_TOKENS  # most prompt tokens of one forward pass
    cache_tokens: int | None = None  # room of the cache, in positions that all layers keep; None: CACHE_TOKENS
    page_tokens: int = PAGE_TOKENS  # positions of a page
    prefix_cache: bool = True  # keep the pages of prompts for later prompts that begin alike
    draft: str | None = None  # a name in drafting.DRAFTERS: tokens are proposed, and verified several in a pass
    policy: CachePolicy | None = None  # what generated tokens keep of what stands before them; None: as trained

    def __post_init__(self) -> None:
        for name in ("max_batch", "prefill_tokens", "page_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must be 1 or more")
        if self.draft is not None and self.draft not in DRAFTERS:
            raise UserError(f"draft = {self.draft!r}: must be {', '.join(DRAFTERS)}, or left out")
        if self.cache_tokens is not None and self.cache_tokens < self.page_tokens:
            raise UserError(
                f"cache_tokens = {self.cache_tokens} is less than one page of {self.page_tokens} tokens; give the "
                "cache more tokens, or pages fewer"
            )


def pages_needed(
    prompt: int, new: int, samples: int, groups: Sequence[Group], settings: EngineSettings, drafted: int = 0
) -> list[int]:
    """Of each group of heads: the most pages that the continuations of a prompt hold at one time. Where heads see all,
    they share the whole pages of the prompt.

    Args:
        prompt: tokens of the prompt.
        new: tokens behind it at most, of which the last one is never attended to.
        samples: continuations.
        drafted: tokens that are proposed at once behind a known one.
    """
    size, total = settings.page_tokens, prompt + new - 1
    shared = prompt // size
    at_once = max(min(prompt, settings.prefill_tokens), min(1 + drafted, new))
    return [
        shared + samples * (-(-total // size) - shared)
        if group.sees_all
        else samples * group.pages_at_once(prompt, total, at_once, size)
        for group in groups
    ]


def pages_of_needs(needs: Sequence[Sequence[int]], at_once: int, groups: int) -> list[int]:
    """Of each group: pages for those `at_once` of all needs (pages_needed) that are largest."""
    largest = np.sort(np.array(needs, np.int64).reshape(-1, groups), axis=0)[-at_once:]
    pages: list[int] = largest.sum(axis=0).tolist()
    return pages


def pages_of_settings(groups: Sequence[Group], settings: EngineSettings, drafted: int = 0) -> list[int]:
    """Of each group: pages of a cache of `settings.cache_tokens`, and no more than `max_batch` sequences can hold."""
    tokens, size = settings.cache_tokens or CACHE_TOKENS, settings.page_tokens
    largest = max(settings.prefill_tokens, 1 + drafted)
    at_once = [group.pages_at_once(tokens, tokens, largest, size) for group in groups]
    return [min(tokens // size, settings.max_batch * pages) for pages in at_once]
