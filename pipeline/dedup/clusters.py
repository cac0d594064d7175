"""Which documents are duplicates of which: sorting, a deterministic union-find, and verified leaders."""

import numba
import numpy as np

MOST_LEADERS = 64  # kept documents of one bucket that a newcomer is compared with: work stays linear in its size


def exact_removals(
    high: np.ndarray, low: np.ndarray, rank: np.ndarray, position: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the document of the smallest (rank, position) of every 128-bit key.

    Args:
        high, low: uint64[documents], the halves of the keys.
        rank: uint64[documents].
        position: int64[documents], distinct.

    Returns:
        int64[n] positions of the removed, increasing, and of the documents kept for them.
    """
    order = np.argsort(high)
    equal = high[order][1:] == high[order][:-1]
    shared = order[np.append(equal, False) | np.append(False, equal)] if len(order) else order
    order = shared[np.lexsort((position[shared], rank[shared], low[shared], high[shared]))]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
    leader = order[is_first][np.cumsum(is_first) - 1] if len(order) else order
    removed, kept = position[order[~is_first]], position[leader[~is_first]]
    increasing = np.argsort(removed)
    return removed[increasing], kept[increasing]


@numba.njit(nogil=True, cache=True)
def star_edges(
    keys: np.ndarray, positions: np.ndarray, order: np.ndarray, fresh: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """An edge from the smallest position of every bucket (the documents of one key) to each other one.

    Args:
        keys: uint64[rows].
        positions: int64[rows], of documents.
        order: int64[rows], sorts `keys`.
        fresh: documents before this position were compared in an earlier run; a bucket of them alone is left out.

    Returns:
        int64[edges] smaller and larger ends, and the documents in the largest bucket.
    """
    first, other = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    edges, largest, start = 0, 0, 0
    while start < len(order):
        stop = start + 1
        smallest = last = positions[order[start]]
        while stop < len(order) and keys[order[stop]] == keys[order[start]]:
            smallest = min(smallest, positions[order[stop]])
            last = max(last, positions[order[stop]])
            stop += 1
        largest = max(largest, stop - start)
        for k in range(start, stop):
            if last >= fresh and positions[order[k]] != smallest:
                first[edges], other[edges] = smallest, positions[order[k]]
                edges += 1
        start = stop
    return first[:edges].copy(), other[:edges].copy(), largest


@numba.njit(nogil=True, cache=True)
def _root(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]  # path halving
        node = parent[node]
    return node


@numba.njit(nogil=True, cache=True)
def join_pairs(first: np.ndarray, other: np.ndarray, parent: np.ndarray) -> None:
    """Join documents pair by pair; the smallest index of a set is always its root, so the result does not depend on
    the order of the pairs."""
    for k in range(len(first)):
        a, b = _root(parent, first[k]), _root(parent, other[k])
        if a < b:
            parent[b] = a
        else:
            parent[a] = b


@numba.njit(nogil=True, cache=True)
def all_roots(parent: np.ndarray) -> np.ndarray:
    """int64[documents]: the smallest index of the set of every document."""
    return np.array([_root(parent, node) for node in range(len(parent))])


@numba.njit(nogil=True, cache=True)
def count_shared(a: np.ndarray, b: np.ndarray) -> int:
    """How many values two sorted sets of uint64 share."""
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
    return shared


@numba.njit(nogil=True, cache=True)
def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sorted sets of uint64; 0 when both are empty."""
    shared = count_shared(a, b)
    union = len(a) + len(b) - shared
    return shared / union if union else 0.0


@numba.njit(nogil=True, cache=True)
def verified_leaders(
    cluster_offsets: np.ndarray,
    bucket: np.ndarray,
    buckets: int,
    set_offsets: np.ndarray,
    shingles: np.ndarray,
    is_held: np.ndarray,
    threshold: float,
    containment: float,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Go through each cluster in survivor order; a document is removed for the first document kept so far that shares
    a bucket with it and is similar enough.

    A cluster a-b-c with a~b and b~c but not a~c keeps a and c: similarity does not pass on through removed documents.
    Of a bucket only the first `MOST_LEADERS` kept documents are compared, so a bucket of 100,000 different documents
    costs 100,000 x 64 comparisons and not 5 billion.

    Args:
        cluster_offsets: int64[clusters + 1]; members of a cluster are adjacent and in survivor order.
        bucket: int64[members, bands], numbers below `buckets`, equal for members that agree in a band.
        set_offsets: int64[members + 1] into `shingles`, sorted uint64 sets, one per member.
        is_held: bool[members], whether the member is kept whatever it resembles.
        threshold: smallest exact Jaccard similarity that removes.
        containment: smallest share of a member's shingles, found in one kept document, that removes; or infinity.

    Returns:
        int64[members] leader: the member kept in its place (itself when kept); float32[members] Jaccard similarity; and
        the number of buckets with more than `MOST_LEADERS` kept documents.
    """
    members, bands = bucket.shape
    leader = np.arange(members)
    similarity = np.ones(members, np.float32)
    filled = np.zeros(buckets, np.int64)  # kept documents of a bucket; entries form a list from the newest back
    newest = np.full(buckets, -1, np.int64)
    previous = np.full(members * bands, -1, np.int64)  # entry m * bands + b is member m in its bucket of band b
    compared = np.full(members, -1, np.int64)
    found = np.empty(MOST_LEADERS * bands, np.int64)
    for c in range(len(cluster_offsets) - 1):
        for m in range(cluster_offsets[c], cluster_offsets[c + 1]):
            count = 0
            for b in range(0 if is_held[m] else bands):
                entry = newest[bucket[m, b]]
                while entry >= 0:
                    other = entry // bands
                    if compared[other] != m:
                        compared[other] = m
                        found[count] = other
                        count += 1
                    entry = previous[entry]
            mine = shingles[set_offsets[m] : set_offsets[m + 1]]
            for other in np.sort(found[:count]):
                theirs = shingles[set_offsets[other] : set_offsets[other + 1]]
                smaller, larger, size = min(len(mine), len(theirs)), max(len(mine), len(theirs)), max(len(mine), 1)
                if smaller / max(larger, 1) < threshold and len(theirs) / size < containment:
                    continue  # |A n B| / |A u B| <= smaller / larger, and |A n B| <= |B|
                shared = count_shared(mine, theirs)
                alike = shared / max(len(mine) + len(theirs) - shared, 1)
                if alike >= threshold or shared / size >= containment:
                    leader[m] = other
                    similarity[m] = alike
                    break
            if leader[m] != m:
                continue
            for b in range(bands):
                place = bucket[m, b]
                filled[place] += 1
                if filled[place] <= MOST_LEADERS:
                    previous[m * bands + b] = newest[place]
                    newest[place] = m * bands + b
    return leader, similarity, int(np.sum(filled > MOST_LEADERS))
