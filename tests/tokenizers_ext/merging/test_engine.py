from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.tokenizers_ext.merging.engine import learn_merges
from seqmill.tokenizers_ext.merging.ranks import apply_merges, ranks_of
from seqmill.tokenizers_ext.merging.text import Text, remaining, text_of

from .oracle import joined, likelihood_gains, merge_by_frequency, merge_by_rank

FIRST_NEW = 5
SEGMENTS = st.lists(st.lists(st.integers(0, 2) | st.integers(0, 4), max_size=14), max_size=8)
WEIGHTS = st.lists(st.integers(1, 5), min_size=8, max_size=8)


def as_text(segments: list[list[int]], weights: list[int]) -> Text:
    numbers = np.repeat(np.arange(len(segments)), [len(segment) for segment in segments])
    flat = np.array([id_ for segment in segments for id_ in segment], np.int64)
    return text_of(flat, numbers, np.array(weights[: len(segments)], np.int64))


def as_lists(text: Text, segments: list[list[int]]) -> list[list[int]]:
    starts = np.concatenate([[0], np.cumsum([len(segment) for segment in segments], dtype=np.int64)])
    ids, offsets = remaining(text, starts)
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


@settings(max_examples=200, deadline=None)
@given(segments=SEGMENTS, weights=WEIGHTS, most=st.integers(0, 20), min_count=st.integers(1, 3))
@example([[0] * 9, [0] * 14, [1, 0, 0, 0]], [1, 2, 3] * 3, 20, 1)
@example([[0, 1] * 7, [1, 0] * 6 + [1]], [1, 1] * 4, 20, 1)
def test_merges_by_frequency_are_those_of_counting_anew(
    segments: list[list[int]], weights: list[int], most: int, min_count: int
) -> None:
    text = as_text(segments, weights)
    merges = learn_merges(text, FIRST_NEW, most, min_count=min_count)
    expected, left_over = merge_by_frequency(segments, weights[: len(segments)], FIRST_NEW, most, min_count)
    assert list(zip(merges.left.tolist(), merges.right.tolist(), strict=True)) == expected
    assert as_lists(text, segments) == left_over


@settings(max_examples=150, deadline=None)
@given(segments=SEGMENTS, weights=WEIGHTS, min_count=st.integers(1, 3))
@example([[0] * 9, [0] * 14, [1, 0, 0, 0]], [1, 2, 3] * 3, 1)
def test_every_merge_by_likelihood_is_the_best_there_is(
    segments: list[list[int]], weights: list[int], min_count: int
) -> None:
    text = as_text(segments, weights)
    merges = learn_merges(text, FIRST_NEW, 30, "likelihood", min_count)
    weights = weights[: len(segments)]
    now = segments
    for k, pair in enumerate(zip(merges.left.tolist(), merges.right.tolist(), strict=True)):
        gains = likelihood_gains(now, weights, min_count)
        assert gains[pair] == pytest.approx(max(gains.values()), abs=1e-9)
        assert gains[pair] > -1e-9
        now = [joined(segment, pair, FIRST_NEW + k) for segment in now]
    assert as_lists(text, segments) == now
    if len(merges) < 30:
        assert max(likelihood_gains(now, weights, min_count).values(), default=0) <= 1e-9


@settings(max_examples=150, deadline=None)
@given(learned_on=SEGMENTS, segments=SEGMENTS, weights=WEIGHTS)
def test_learned_merges_apply_to_other_text_as_an_encoder_applies_them(
    learned_on: list[list[int]], segments: list[list[int]], weights: list[int]
) -> None:
    merges = learn_merges(as_text(learned_on, weights), FIRST_NEW, 20)
    text = as_text(segments, weights)
    apply_merges(text, ranks_of(merges.left, merges.right), FIRST_NEW)
    pairs = list(zip(merges.left.tolist(), merges.right.tolist(), strict=True))
    assert as_lists(text, segments) == [merge_by_rank(segment, pairs, FIRST_NEW) for segment in segments]


@settings(max_examples=100, deadline=None)
@given(segments=SEGMENTS, weights=WEIGHTS, first=st.integers(0, 6), second=st.integers(0, 6))
def test_merging_can_go_on_where_it_stopped(
    segments: list[list[int]], weights: list[int], first: int, second: int
) -> None:
    text = as_text(segments, weights)
    begun = len(learn_merges(text, FIRST_NEW, first))
    learn_merges(text, FIRST_NEW + begun, first + second - begun)
    at_once = as_text(segments, weights)
    learn_merges(at_once, FIRST_NEW, first + second)
    assert as_lists(text, segments) == as_lists(at_once, segments)


def test_a_long_text_grows_the_tables_and_stays_exact() -> None:
    ids = np.random.default_rng(1).integers(0, 40, 30_000)
    segments = [ids.tolist()]
    text = as_text(segments, [1])
    merges = learn_merges(text, 40, 25)
    expected, left_over = merge_by_frequency(segments, [1], 40, 25)
    assert list(zip(merges.left.tolist(), merges.right.tolist(), strict=True)) == expected
    assert as_lists(text, segments) == left_over


def test_no_token_grows_beyond_the_longest_allowed() -> None:
    text = as_text([[0] * 64], [1])
    learn_merges(text, FIRST_NEW, 10, longest=8)
    assert text.spans.max() == 8


def test_counts_that_would_not_be_exact_are_refused() -> None:
    with pytest.raises(UserError, match="train on a sample"):
        learn_merges(as_text([[0, 1]], [2**52]), FIRST_NEW, 1)


def test_nothing_to_merge_gives_no_merges() -> None:
    for segments in ([], [[]], [[1], [2]]):
        assert len(learn_merges(as_text(segments, [1, 1]), FIRST_NEW, 10)) == 0
