"""Patching as its definitions read, one byte at a time."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

Model = Callable[[bytes], float]  # context -> entropy in nats


def spacelike(byte: int) -> bool:
    is_continuation = 0x80 <= byte < 0xC0
    return not (chr(byte).isalnum() and byte < 0x80) and not is_continuation


def space_starts(x: bytes) -> list[int]:
    return [j for j in range(len(x)) if j < 2 or (spacelike(x[j - 1]) and not spacelike(x[j - 2]))]


def static_starts(x: bytes, size: int) -> list[int]:
    return [j for j in range(len(x)) if j % size == 0]


def entropy_starts(h: Sequence[float], rule: str, theta: float | None, theta_add: float | None) -> list[int]:
    starts = []
    for j in range(len(h)):
        high = theta is not None and h[j] > theta
        rises = theta_add is not None and j > 0 and h[j] - h[j - 1] > theta_add
        if j < 2 or {"threshold": high, "monotonic": rises, "both": high and rises}[rule]:
            starts.append(j)
    return starts


def lengths(starts: Sequence[int], size: int, longest: int) -> list[int]:
    """Whole patches first, then each cut into pieces of the longest size and a remainder."""
    whole = [b - a for a, b in zip(starts, [*starts[1:], *[size] * bool(size)], strict=True)]
    cut: list[int] = []
    for length in whole:
        cut += [longest] * (length // longest) + [length % longest] * (length % longest > 0)
    return cut


class Ngrams:
    """The model of Witten and Bell from all n-grams of all documents, each counted by itself."""

    def __init__(self, documents: Sequence[bytes], order: int) -> None:
        self.order = order
        self.known: dict[bytes, list[float]] = {}  # distributions, computed once each
        self.followers: defaultdict[bytes, Counter[int]] = defaultdict(Counter)
        for document in documents:
            for j, byte in enumerate(document):
                for k in range(min(j, order - 1) + 1):
                    self.followers[document[j - k : j]][byte] += 1

    def seen(self, context: bytes) -> int:
        return self.followers[context].total() if context in self.followers else 0

    def distribution(self, context: bytes) -> list[float]:
        if context not in self.known:
            self.known[context] = self._distribution(context)
        return self.known[context]

    def _distribution(self, context: bytes) -> list[float]:
        shorter = self.distribution(context[1:]) if context else [1 / 256] * 256
        if not self.seen(context):
            return shorter
        counts = self.followers[context]
        parts = counts.total() + len(counts)
        return [(counts[b] + len(counts) * shorter[b]) / parts for b in range(256)]

    def longest(self, before: bytes, least_short: int, least_long: int) -> bytes:
        """The longest end of `before` that was seen often enough."""
        context = before[max(0, len(before) - self.order + 1) :]
        while context and self.seen(context) < (least_short if len(context) <= 2 else least_long):
            context = context[1:]
        return context


def entropy(distribution: Sequence[float]) -> float:
    return -sum(p * math.log(p) for p in distribution)
