from typing import Any

import networkx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.dedup.clusters import (
    MOST_LEADERS,
    all_roots,
    exact_removals,
    jaccard,
    join_pairs,
    star_edges,
    verified_leaders,
)

from . import oracle

SETS = st.lists(st.sets(st.integers(0, 12), max_size=8), max_size=12)


def sorted_array(values: set[int]) -> np.ndarray:
    return np.array(sorted(values), np.uint64)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20), st.randoms(use_true_random=False))
def test_one_document_of_every_exact_key_is_kept_the_best_ranked(keys: list[tuple[int, int]], random: object) -> None:
    rank = list(range(len(keys)))
    random.shuffle(rank)  # type: ignore[attr-defined]
    high = np.array([key[0] for key in keys], np.uint64)
    low = np.array([key[1] for key in keys], np.uint64)
    removed, kept = exact_removals(high, low, np.array(rank, np.uint64), np.arange(len(keys)))
    best = {key: min((k for k in range(len(keys)) if keys[k] == key), key=lambda k: rank[k]) for key in keys}
    expected = [(k, best[key]) for k, key in enumerate(keys) if best[key] != k]
    assert list(zip(removed.tolist(), kept.tolist(), strict=True)) == expected


@given(st.integers(1, 15), st.lists(st.lists(st.integers(0, 3), min_size=15, max_size=15), max_size=4))
def test_joined_documents_are_the_connected_components(documents: int, bands: list[list[int]]) -> None:
    parent = np.arange(documents)
    graph = networkx.empty_graph(documents)
    for band in bands:
        keys = np.array(band[:documents], np.uint64)
        first, other, largest = star_edges(keys, np.arange(documents), np.argsort(keys, kind="stable"), 0)
        assert largest == max(np.unique(keys, return_counts=True)[1])
        assert len(first) == documents - len(np.unique(keys))
        join_pairs(first, other, parent)
        graph.add_edges_from((a, b) for a in range(documents) for b in range(documents) if keys[a] == keys[b])
    expected = np.empty(documents, np.int64)
    for component in networkx.connected_components(graph):
        expected[list(component)] = min(component)
    assert all_roots(parent).tolist() == expected.tolist()


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_jaccard_equals_set_arithmetic(a: set[int], b: set[int]) -> None:
    expected = len(a & b) / len(a | b) if a | b else 0.0
    assert jaccard(sorted_array(a), sorted_array(b)) == expected


def leaders_of(*arguments: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """`verified_leaders` of sets that are read-only, as columns of files are."""
    for column in arguments[3:5]:
        column.flags.writeable = False
    return verified_leaders(*arguments)


@given(
    st.lists(SETS, max_size=4),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
    st.sampled_from([0.5, 0.9, 1.0, np.inf]),
    st.integers(0, 3),
)
def test_leaders_equal_the_oracle_in_every_cluster(
    clusters: list[list[set[int]]], threshold: float, containment: float, held: int
) -> None:
    is_held = [k < held for cluster in clusters for k in range(len(cluster))]
    members = [member for cluster in clusters for member in cluster]
    set_offsets = np.cumsum([0, *(len(member) for member in members)])
    shingles = np.concatenate([np.empty(0, np.uint64), *map(sorted_array, members)])
    cluster_offsets = np.cumsum([0, *(len(cluster) for cluster in clusters)])
    one_bucket = np.repeat(np.arange(len(clusters)), [len(cluster) for cluster in clusters])[:, None]
    leader, similarity, capped = leaders_of(
        cluster_offsets,
        one_bucket,
        len(clusters),
        set_offsets,
        shingles,
        np.array(is_held, bool),
        threshold,
        containment,
    )
    assert capped == 0
    expected = [
        start + k
        for start, cluster in zip(cluster_offsets, clusters, strict=False)
        for k in oracle.leaders(cluster, [m < held for m in range(len(cluster))], threshold, containment)
    ]
    assert leader.tolist() == expected
    for m, k in enumerate(expected):
        shared, union = len(members[m] & members[k]), len(members[m] | members[k])
        assert similarity[m] == (1.0 if m == k else np.float32(shared / union))


def test_similarity_does_not_pass_on_through_a_removed_document() -> None:
    a, b, c = set(range(0, 10)), set(range(1, 11)), set(range(2, 12))  # a~b and b~c at 9/11, a~c at 8/12
    offsets = np.array([0, 10, 20, 30])
    shingles = np.concatenate([sorted_array(one) for one in (a, b, c)])
    leader, _, _ = leaders_of(
        np.array([0, 3]), np.zeros((3, 1), np.int64), 1, offsets, shingles, np.zeros(3, bool), 0.8, np.inf
    )
    assert leader.tolist() == [0, 0, 2]


def test_only_documents_that_share_a_bucket_are_compared_and_the_first_kept_one_wins() -> None:
    same = np.tile(sorted_array(set(range(10))), 4)
    bucket = np.array([[0, 3], [1, 4], [1, 3], [2, 5]])  # 2 meets 1 in a band before it meets 0 in another
    leader, _, _ = leaders_of(np.array([0, 4]), bucket, 6, np.arange(0, 50, 10), same, np.zeros(4, bool), 0.8, np.inf)
    assert leader.tolist() == [0, 1, 0, 3]


def test_a_bucket_of_many_different_documents_is_compared_with_its_first_leaders_only() -> None:
    documents = 100_000
    shingles = np.arange(documents, dtype=np.uint64)
    shingles[-1] = 5  # equal to a leader that is compared
    shingles[-2] = MOST_LEADERS + 5  # equal to one that is not
    bucket = np.zeros((documents, 1), np.int64)
    offsets = np.arange(documents + 1)
    leader, _, capped = leaders_of(
        np.array([0, documents]), bucket, 1, offsets, shingles, np.zeros(documents, bool), 0.8, np.inf
    )
    assert np.flatnonzero(leader != offsets[:-1]).tolist() == [documents - 1]
    assert leader[-1] == 5
    assert capped == 1


def test_a_bucket_of_documents_that_were_compared_before_has_no_edges() -> None:
    keys = np.array([5, 5, 7, 7, 7], np.uint64)
    first, other, largest = star_edges(keys, np.array([0, 1, 0, 2, 4]), np.arange(5), 3)
    assert (first.tolist(), other.tolist(), largest) == ([0, 0], [2, 4], 3)
