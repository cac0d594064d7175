"""Slow and obvious versions of what mixing does, in plain Python integers."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import xxhash

RANGE = 1 << 64


def mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % RANGE
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % RANGE
    return x ^ (x >> 31)


def choice_key(doc_id: int, seed: int, purpose: str) -> int:
    return mixed(doc_id ^ xxhash.xxh3_64_intdigest(f"{purpose} {seed}".encode()))


def order_key(doc_id: int, copy: int, seed: int) -> int:
    first = choice_key(doc_id, seed, "order")
    return mixed((first + copy * 0x9E3779B97F4A7C15) % RANGE) if copy else first


def apportion(total: int, weights: Sequence[Fraction]) -> list[int]:
    """Give out one unit at a time, always to who is furthest below the share; none gets more than 1 above it."""
    counts = [total * weight // sum(weights) for weight in weights]
    while sum(counts) < total:
        lacks = [total * weight / sum(weights) - count for weight, count in zip(weights, counts, strict=True)]
        counts[lacks.index(max(lacks))] += 1
    return [int(count) for count in counts]


def copies_by_epochs(sources: Mapping[int, str], epochs: Mapping[str, str], seed: int) -> dict[int, int]:
    """doc_id -> copies, for doc_id -> source and source -> epochs as a decimal."""
    copies = {}
    for source in set(sources.values()):
        times = Fraction(epochs.get(source, "1"))
        own = sorted((d for d, name in sources.items() if name == source), key=lambda d: choice_key(d, seed, "choice"))
        more = round((times - int(times)) * len(own))
        copies.update({doc_id: int(times) + (place < more) for place, doc_id in enumerate(own)})
    return copies


def closest(wanted: int, sizes: Sequence[int], at_most: bool) -> int:
    """The size nearest to `wanted` that repeated passes over `sizes`, cut off anywhere, come to; the smaller of two."""
    best, reached = 0, 0
    while reached <= wanted:
        for size in sizes:
            reached += size
            if (reached <= wanted or not at_most) and abs(reached - wanted) < abs(best - wanted):
                best = reached
    return best
