"""What every drafter must do."""

from itertools import pairwise, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.models.inference.drafting import DRAFTERS, NO_DRAFT, Draft
from speculation import check, decode, language, pairs, tell, written_by

VOCAB = 9  # a little more than the top-k of the recycler
every_drafter = pytest.mark.parametrize("name", DRAFTERS)
prompts = st.lists(st.integers(0, VOCAB - 1), max_size=20)
languages = st.builds(language, st.just(VOCAB), order=st.integers(1, 3), seed=st.integers(0, 99))


@every_drafter
@settings(max_examples=30)
@given(model=languages, prompt_list=st.lists(prompts, min_size=1, max_size=3), limits=st.lists(st.integers(0, 40)))
def test_drafts_change_nothing_that_a_greedy_model_writes(name, model, prompt_list, limits):
    source = DRAFTERS[name]()
    for prompt in prompt_list:  # later requests draft from what earlier ones left
        decoded = decode(model, source, prompt, 40, [*limits, *repeat(7, 40)])
        assert decoded.tokens == written_by(model, prompt, 40)


@every_drafter
@settings(max_examples=30)
@given(
    stream=st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 3), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    most=st.integers(0, 70),
)
def test_a_stream_is_known_alike_however_it_is_cut(name, stream, cuts, most):
    stream = [token % 200_000 for token in stream]
    model = language(VOCAB, 1, 0)
    whole, piecewise = DRAFTERS[name](), DRAFTERS[name]()
    one, other = whole.open([]), piecewise.open([])
    tell(one, whole, model, [], stream)
    bounds = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for begin, end in pairwise(bounds):
        tell(other, piecewise, model, stream[:begin], stream[begin:end])
    check(one.propose(most), most)
    assert pairs(one.propose(most)) == pairs(other.propose(most))
    one.close()
    other.close()
    again, likewise = whole.open(stream[-3:]), piecewise.open(stream[-3:])
    assert pairs(again.propose(most)) == pairs(likewise.propose(most))


@every_drafter
def test_text_that_goes_in_circles_needs_few_passes(name):
    model = language(VOCAB, 1, seed=3)  # nine tokens at most before it repeats itself
    decoded = decode(model, DRAFTERS[name](), [0], 90, repeat(9))
    assert decoded.passes < 30


@every_drafter
def test_nothing_is_known_of_an_empty_prompt(name):
    drafter = DRAFTERS[name]().open([])
    assert pairs(drafter.propose(8)) == []
    drafter.close()


def test_a_drafts_depth_is_its_longest_path():
    assert NO_DRAFT.depth() == 0
    assert Draft.chain([5, 6, 7]).depth() == 3
    tree = Draft(Draft.chain(range(5)).tokens, Draft.chain(range(5)).parents * 0 - 1)
    assert tree.depth() == 1
