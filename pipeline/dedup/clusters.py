"""Which documents are duplicates of which: sorting, a deterministic union-find, and verified leaders."""

from dataclasses import dataclass

import numba
import numpy as np


@dataclass(frozen=True)
class Removals:
    """Documents to remove, each with the document kept in its place. Indices are positions in the sorted corpus."""

    removed: np.ndarray  # int64[n], increasing
    kept: np.ndarray  # int64[n]
    similarity: np.ndarray  # float32[n], exact Jaccard of the shingle sets (1 for equal text)


def survivor_rank(priority: np.ndarray, num_bytes: np.ndarray) -> np.ndarray:
    """int64[documents]: 0 for the document that survives against all others: source priority (lower first), then the
    longest, then the lowest id."""
    order = np.lexsort((np.arange(len(num_bytes)), -num_bytes.astype(np.int64), priority))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def exact_removals(high: np.ndarray, low: np.ndarray, rank: np.ndarray) -> Removals:
    """Keep the best-ranked document of every 128-bit key.

    Args:
        high, low: uint64[documents], the halves of the keys.
        rank: int64[documents] from `survivor_rank`.
    """
    order = np.lexsort((rank, low, high))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
    leader = order[is_first][np.cumsum(is_first) - 1] if len(order) else order
    removed = order[~is_first]
    increasing = np.argsort(removed)
    return Removals(
        removed=removed[increasing],
        kept=leader[~is_first][increasing],
        similarity=np.ones(len(removed), np.float32),
    )


@numba.njit(nogil=True, cache=True)
def _root(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]  # path halving
        node = parent[node]
    return node


@numba.njit(nogil=True, cache=True)
def join_equal_keys(keys: np.ndarray, order: np.ndarray, parent: np.ndarray) -> None:
    """Join all documents that share a key. `order` sorts `keys`; the smallest index of a set is always its root, so
    the result does not depend on the order of joins."""
    for k in range(1, len(order)):
        if keys[order[k]] != keys[order[k - 1]]:
            continue
        a, b = _root(parent, order[k - 1]), _root(parent, order[k])
        if a < b:
            parent[b] = a
        else:
            parent[a] = b


@numba.njit(nogil=True, cache=True)
def all_roots(parent: np.ndarray) -> np.ndarray:
    """int64[documents]: the smallest index of the set of every document."""
    return np.array([_root(parent, node) for node in range(len(parent))])


@numba.njit(nogil=True, cache=True)
def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sorted sets of uint64; 0 when both are empty."""
    i = j = shared = 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            shared += 1
            i += 1
            j += 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    union = len(a) + len(b) - shared
    return shared / union if union else 0.0


@numba.njit(nogil=True, cache=True)
def verified_leaders(
    cluster_offsets: np.ndarray, set_offsets: np.ndarray, shingles: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Go through each cluster in survivor order; a document is removed when a document kept so far is similar enough.

    A cluster a-b-c with a~b and b~c but not a~c keeps a and c: similarity does not pass on through removed documents.

    Args:
        cluster_offsets: int64[clusters + 1]; members of a cluster are adjacent and in survivor order.
        set_offsets: int64[members + 1] into `shingles`, sorted uint64 sets, one per member.
        threshold: smallest exact Jaccard similarity that removes.

    Returns:
        int64[members] leader: the member kept in its place (itself when kept); float32[members] similarity to it.
    """
    members = len(set_offsets) - 1
    leader = np.arange(members)
    similarity = np.ones(members, np.float32)
    leaders = np.empty(members, np.int64)
    for c in range(len(cluster_offsets) - 1):
        kept = 0
        for m in range(cluster_offsets[c], cluster_offsets[c + 1]):
            mine = shingles[set_offsets[m] : set_offsets[m + 1]]
            for k in range(kept):
                other = shingles[set_offsets[leaders[k]] : set_offsets[leaders[k] + 1]]
                smaller, larger = min(len(mine), len(other)), max(len(mine), len(other))
                if smaller < threshold * larger:
                    continue  # |A n B| / |A u B| <= smaller / larger
                found = jaccard(mine, other)
                if found >= threshold:
                    leader[m] = leaders[k]
                    similarity[m] = found
                    break
            if leader[m] == m:
                leaders[kept] = m
                kept += 1
    return leader, similarity
