from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.models.inference.drafting.suffix_nodes import NONE
from seqmill.models.inference.drafting.suffix_tree import SuffixTree

streams = st.lists(st.lists(st.integers(0, 2), max_size=70) | st.lists(st.integers(0, 9), max_size=70), max_size=6)


def build(sequences, depth, capacity):
    tree = SuffixTree(depth, capacity)
    for sequence in sequences:
        tree.extend(sequence)
        tree.end_sequence()
    return tree


def counts(sequences, depth, capacity):
    """The definition: every string of at most `depth` tokens in the last `capacity` tokens, ends of sequences among
    them, that crosses no end."""
    text = [token for sequence in sequences for token in [*sequence, None]]
    found = Counter()
    for begin in range(max(0, len(text) - capacity), len(text)):
        for end in range(begin + 1, min(begin + depth, len(text)) + 1):
            if text[end - 1] is None:
                break
            found[tuple(text[begin:end])] += 1
    return found


@given(streams, st.sampled_from([(2, 8), (4, 16), (8, 32), (8, 64), (16, 512)]))
def test_counts_are_those_of_all_substrings_of_the_last_tokens(sequences, size):
    depth, capacity = size
    tree = build(sequences, depth, capacity)
    expected = counts(sequences, depth, capacity)
    assert {string: tree.count(string) for string in expected} == expected
    absent = {(*string[:-1], token) for string in expected for token in range(10)} - set(expected)
    assert all(tree.count(string) == 0 for string in absent)


@given(streams, st.sampled_from([(2, 8), (4, 16), (8, 64)]))
def test_nodes_stand_only_where_a_count_drops(sequences, size):
    depth, capacity = size
    expected = counts(sequences, depth, capacity)
    drops = [
        string
        for string, count in expected.items()
        if all(expected[(*string, token)] < count for token in range(10))  # also where a suffix ends: nothing follows
    ]
    tree = build(sequences, depth, capacity)
    assert tree.nodes == 1 + len(drops)
    assert tree.nodes <= 1 + 2 * capacity


@given(streams)
def test_tokens_may_come_one_by_one(sequences):
    whole, single = SuffixTree(8, 64), SuffixTree(8, 64)
    for sequence in sequences:
        whole.extend(sequence)
        for token in sequence:
            single.extend([token])
    assert whole.nodes == single.nodes
    tail = whole.last(20)
    np.testing.assert_array_equal(tail, [token for sequence in sequences for token in sequence][-20:])
    np.testing.assert_array_equal(tail, single.last(20))
    for end in range(1, len(tail) + 1):
        for begin in range(max(0, end - 8), end):
            assert whole.count(tail[begin:end]) == single.count(tail[begin:end])


def test_memory_stays_within_its_bound_for_ever():
    capacity, rng = 2**10, np.random.default_rng(0)
    tree, most = SuffixTree(16, capacity), 0
    for length in rng.integers(1, 400, size=60):
        tree.extend(rng.integers(0, 1 + length // 8, size=length))
        tree.end_sequence()
        most = max(most, tree.num_bytes)
    # two nodes a token, doubled by growing: 28 bytes and 2 places of 4 bytes each; 4 bytes of text
    assert most <= capacity * (2 * 2 * (28 + 8) + 4) + 1024


def test_only_the_open_sequence_is_given_back():
    tree = build([[1, 2, 3]], 4, 16)
    tree.extend([7, 8])
    assert tree.last(9).tolist() == [7, 8]
    tree.extend(range(30))
    assert tree.last(99).tolist() == list(range(14, 30))


@pytest.mark.parametrize("size", [(3, 64), (8, 48), (8, 16), (1, 64), (8, 2**40)])
def test_sizes_that_are_no_powers_of_two_or_too_small_are_refused(size):
    with pytest.raises(UserError, match="power of two"):
        SuffixTree(*size)


def test_the_end_of_a_sequence_is_no_token():
    assert build([[1], [1]], 2, 8).count([int(NONE)]) == 0
