from itertools import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.models.inference.drafting.suffixes import CONTEXT, DEPTH, WIDEST, SuffixSource
from speculation import check, decode, language, pairs

tokens = st.lists(st.integers(0, 3), max_size=30)


def most_probable(texts, context, most):
    """The definition: chances of all continuations of up to `most` tokens, by counting substrings; best first.

    Returns {continuation: chance}, of a context's longest end that occurs in the texts with something after it.
    """
    for length in range(min(CONTEXT, len(context)), 0, -1):
        chances = {(): 1.0}
        for continuation in _by_length(texts, context[len(context) - length :], most):
            before = (*context[len(context) - length :], *continuation[:-1])
            followers = sum(_count(texts, (*before, token)) for token in range(4))
            share = _count(texts, (*before, continuation[-1])) / followers
            matched = length + len(continuation) - 1
            chances[continuation] = chances[continuation[:-1]] * share * matched / (matched + 1)
        del chances[()]
        if chances:
            return chances
    return {}


def _by_length(texts, end, most):
    level = [()]
    for _ in range(most):
        level = [(*path, token) for path in level for token in range(4) if _count(texts, (*end, *path, token))]
        yield from level


def _count(texts, string):
    return sum(
        tuple(text[begin : begin + len(string)]) == tuple(string) for text in texts for begin in range(len(text))
    )


@settings(max_examples=60)
@given(tokens, st.lists(tokens, max_size=3), st.integers(1, 5))
def test_the_draft_is_the_tree_of_the_most_probable_tokens(prompt, corpus, most):
    source = SuffixSource(least_probability=0)
    for text in corpus:
        source.feed(text)
    draft = source.open(prompt).propose(most)
    check(draft, most)
    expected = []
    for texts in ([prompt], corpus):
        chances = most_probable(texts, prompt, most)
        expected.append((sum(sorted(chances.values())[-most:]), chances))
    best = max(expected, key=lambda found: found[0])[1]
    paths = []
    for token, parent in pairs(draft):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    found = sorted(best[path] for path in paths) if set(paths) <= set(best) else None
    assert found == pytest.approx(sorted(best.values())[-most:])


def test_the_request_knows_better_than_others_where_both_are_as_sure():
    source = SuffixSource()
    source.feed([1, 2, 3])
    assert source.open([1, 2, 4, 1, 2]).propose(1).tokens.tolist() == [4]
    assert source.open([9, 1, 2]).propose(1).tokens.tolist() == [3]


def test_of_equally_probable_tokens_the_latest_seen_comes_first():
    assert SuffixSource().open([5, 1, 5, 2, 5]).propose(1).tokens.tolist() == [2]


def test_an_improbable_token_is_not_proposed():
    drafter = SuffixSource(least_probability=0.3).open([5, 1, 5, 2, 5])  # either follows with 1/2 * 1/2
    assert len(drafter.propose(4)) == 0


def test_what_is_followed_by_anything_says_nothing():
    source = SuffixSource(least_probability=0)
    for token in range(100, 100 + WIDEST):
        source.feed([7, token])
    assert len(source.open([7]).propose(16)) == 16
    source.feed([7, 99])
    assert len(source.open([7]).propose(16)) == 0


def test_what_was_written_once_is_drafted_the_next_time():
    model, source = language(vocab_size=500, order=4, seed=5), SuffixSource()
    first = decode(model, source, [1, 2, 3, 4, 5], 60, repeat(16))
    second = decode(model, source, [1, 2, 3, 4, 5], 60, repeat(16))
    assert first.tokens == second.tokens
    assert first.passes == 60
    assert second.passes == 4  # 16 drafted tokens and one more each


def test_the_oldest_requests_are_forgotten():
    source = SuffixSource(shared_tokens=4 * DEPTH)
    source.feed([7, 8, 9])
    assert source.open([7, 8]).propose(1).tokens.tolist() == [9]
    source.feed(range(100, 100 + 4 * DEPTH))
    assert len(source.open([7, 8]).propose(1)) == 0


def test_a_request_looks_back_as_far_as_it_is_allowed():
    drafter = SuffixSource(request_tokens=4 * DEPTH).open([7, 8, 9])
    drafter.observe([*range(100, 100 + 4 * DEPTH), 7, 8], None)
    assert len(drafter.propose(1)) == 0


@pytest.mark.parametrize("settings", [{"least_probability": 1.0}, {"request_tokens": 1000}, {"shared_tokens": 64}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError, match=r"least_probability|power of two"):
        SuffixSource(**settings)
