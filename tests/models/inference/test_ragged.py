"""Ragged sequences against plain lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqmill.models.inference.ragged import Ragged

LISTS = st.lists(st.lists(st.integers(0, 99), max_size=9), max_size=12)


@given(lists=LISTS, most=st.integers(1, 30))
def test_batches_are_whole_sequences_in_order_that_fit_or_one_that_does_not(lists: list[list[int]], most: int) -> None:
    ragged = Ragged.of(lists)
    expected: list[list[list[int]]] = []
    for each in lists:
        if expected and sum(map(len, expected[-1])) + len(each) <= most:
            expected[-1].append(each)
        else:
            expected.append([each])
    parts = [ragged.part(chosen) for chosen in ragged.batches(most)]
    assert [part.ids.tolist() for part in parts] == [[value for each in some for value in each] for some in expected]
    assert [part.lengths.tolist() for part in parts] == [[len(each) for each in some] for some in expected]


@given(lists=LISTS)
def test_values_of_the_tokens_are_split_as_the_tokens_are(lists: list[list[int]]) -> None:
    ragged = Ragged.of(lists)
    assert [values.tolist() for values in ragged.split(ragged.ids, fewer=0)] == lists


@given(lists=LISTS, vocab_size=st.integers(1, 100))
def test_the_first_id_outside_a_vocabulary_is_found_with_its_sequence(lists: list[list[int]], vocab_size: int) -> None:
    expected = [(place, value) for place, each in enumerate(lists) for value in each if value >= vocab_size]
    assert Ragged.of([np.array(each, np.int16) for each in lists]).outside(vocab_size) == (expected or [None])[0]
