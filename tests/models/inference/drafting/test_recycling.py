import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqmill.models.inference.drafting.recycling import HITS, TOP_K, TREE, RecycleSource, tree_shape
from speculation import pairs


def rows(*firsts):
    """Successors whose likeliest ids are given, and then others that never occur."""
    return np.array([[*first, *range(1000, 1000 + TOP_K - len(first))] for first in firsts])


def test_the_tree_grows_from_the_rows_of_its_tokens():
    source = RecycleSource()
    drafter = source.open([7])
    drafter.observe([1, 2, 7], rows([1, 3], [2, 4], [7, 5]))  # 7 -> 1 or 3, 1 -> 2 or 4, 2 -> 7 or 5
    assert pairs(drafter.propose(4)) == [(1, -1), (2, 0), (3, -1), (7, 1)]


def test_the_latest_candidates_of_a_token_count():
    drafter = RecycleSource().open([7])
    drafter.observe([7, 7], rows([1, 2], [3, 4]))
    assert drafter.propose(1).tokens.tolist() == [3]


def test_requests_share_what_they_learn():
    source = RecycleSource()
    first, second = source.open([7]), source.open([5, 7])
    first.observe([1], rows([1, 3]))
    assert drafted(second, 1) == [1]


def test_prompts_teach_which_token_follows_which():
    drafter = RecycleSource().open([4, 5, 4, 6, 4])
    assert [token for token, parent in pairs(drafter.propose(8)) if parent == -1] == [6, 5]  # the latest one first


def drafted(drafter, most):
    return drafter.propose(most).tokens.tolist()


def test_every_beginning_of_the_shape_holds_the_most_probable_nodes():
    parents, ranks = tree_shape()
    chances = []
    for parent, rank in zip(parents, ranks, strict=True):
        chances.append(HITS[rank] * (chances[parent] if parent >= 0 else 1))
    assert chances == sorted(chances, reverse=True)
    nodes = set(zip(parents.tolist(), ranks.tolist(), strict=True))
    assert len(nodes) == TREE
    left_out = [(p, rank) for p in range(-1, TREE) for rank in range(TOP_K) if (p, rank) not in nodes]
    assert max(HITS[rank] * (chances[p] if p >= 0 else 1) for p, rank in left_out) <= chances[-1]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=50))
def test_memory_is_a_row_for_each_id_up_to_twice_the_largest(prompt):
    source = RecycleSource()
    source.open(prompt).observe([max(prompt)], rows([1]))
    assert source.num_bytes <= max(1024, 2 * (max(prompt) + 1)) * TOP_K * 4


def test_a_vocabulary_smaller_than_top_k_is_no_problem():
    drafter = RecycleSource().open([0])
    drafter.observe([1, 0], np.array([[1, 0], [0, 1]]))
    assert sorted(token for token, parent in pairs(drafter.propose(8)) if parent == -1) == [0, 1]
