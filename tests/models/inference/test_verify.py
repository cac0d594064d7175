"""Drafted tokens stay exactly where the model would have chosen them itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqmill.models.inference.verify import accepted_path


@st.composite
def trees(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = draw(st.integers(1, 12))
    numbers = st.lists(st.integers(0, 2), min_size=count, max_size=count)
    tokens, picked = np.array(draw(numbers)), np.array(draw(numbers))
    parents = np.array([-1, *(draw(st.integers(0, index - 1)) for index in range(1, count))])
    return tokens, parents, picked


@given(trees())
def test_the_path_is_the_one_that_is_walked_token_by_token(
    tree: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    tokens, parents, picked = tree
    path = [0]
    while True:
        fitting = [
            index for index in range(1, len(tokens)) if parents[index] == path[-1] and tokens[index] == picked[path[-1]]
        ]
        if not fitting:
            break
        path.append(fitting[0])
    assert accepted_path(tokens, parents, picked).tolist() == path


@given(trees())
def test_a_chain_needs_no_parents(tree: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    tokens, _, picked = tree
    chain = np.arange(len(tokens)) - 1
    assert accepted_path(tokens, None, picked).tolist() == accepted_path(tokens, chain, picked).tolist()
