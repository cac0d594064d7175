"""Byte-pair merging by counting everything anew before every merge: slow, and plainly what the words say."""

from collections import Counter
from itertools import pairwise
from math import log

Segment = list[int]


def pair_counts(segments: list[Segment], weights: list[int]) -> Counter[tuple[int, int]]:
    """Occurrences of neighbouring ids, overlapping ones too."""
    counts: Counter[tuple[int, int]] = Counter()
    for segment, weight in zip(segments, weights, strict=True):
        for pair in pairwise(segment):
            counts[pair] += weight
    return counts


def joined(segment: Segment, pair: tuple[int, int], new: int) -> Segment:
    """The segment with every occurrence of the pair replaced, from left to right."""
    out, at = [], 0
    while at < len(segment):
        if tuple(segment[at : at + 2]) == pair:
            out.append(new)
            at += 2
        else:
            out.append(segment[at])
            at += 1
    return out


def likelihood(segments: list[Segment], weights: list[int]) -> float:
    """Log-likelihood of the ids under the unigram model of their own frequencies, in nats."""
    counts: Counter[int] = Counter()
    for segment, weight in zip(segments, weights, strict=True):
        for id_ in segment:
            counts[id_] += weight
    total = sum(counts.values())
    return sum(c * log(c / total) for c in counts.values())


def merge_by_frequency(
    segments: list[Segment], weights: list[int], first_new: int, most: int, min_count: int = 1
) -> tuple[list[tuple[int, int]], list[Segment]]:
    """The most frequent pair first, of equal ones that of lower ids."""
    merges: list[tuple[int, int]] = []
    while len(merges) < most:
        counts = pair_counts(segments, weights)
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < min_count:
            break
        segments = [joined(segment, best, first_new + len(merges)) for segment in segments]
        merges.append(best)
    return merges, segments


def likelihood_gains(segments: list[Segment], weights: list[int], min_count: int = 1) -> dict[tuple[int, int], float]:
    """Pair -> how much merging it raises the likelihood, found by merging it."""
    before = likelihood(segments, weights)
    counts = pair_counts(segments, weights)
    return {
        pair: likelihood([joined(segment, pair, -1) for segment in segments], weights) - before
        for pair in counts
        if counts[pair] >= min_count
    }


def merge_by_rank(segment: Segment, merges: list[tuple[int, int]], first_new: int) -> Segment:
    """What every BPE encoder does: the pair of the lowest rank, at its leftmost place, until no merge applies."""
    rank_of = {pair: rank for rank, pair in enumerate(merges)}
    while True:
        ranks = [(rank_of[pair], at) for at, pair in enumerate(pairwise(segment)) if pair in rank_of]
        if not ranks:
            return segment
        rank, at = min(ranks)
        segment = [*segment[:at], first_new + rank, *segment[at + 2 :]]
