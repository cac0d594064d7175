import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.models.inference.drafting import copying
from seqmill.models.inference.drafting.copying import CopySource


def copied(tokens, most, gammas):
    """The definition: for each gamma, search backwards for the last window; what follows, round and round."""
    for gamma in gammas:
        for end in range(len(tokens) - 1, gamma - 1, -1):
            if tokens[end - gamma : end] == tokens[-gamma:]:
                follows = list(tokens)
                for source in range(end, end + most):
                    follows.append(follows[source])
                return follows[len(tokens) :]
    return []


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(0, 20),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_the_latest_place_with_the_same_tokens_is_copied(prompt, tokens, most, gammas):
    drafter = CopySource(tuple(gammas)).open(prompt)
    drafter.observe(tokens, None)
    assert drafter.propose(most).tokens.tolist() == copied(prompt + tokens, most, gammas)


def test_equal_hashes_of_other_tokens_copy_nothing(monkeypatch):
    tokens = [1, 4, 9, 2, 3, 9, 1, 4]
    assert CopySource((2,)).open(tokens).propose(3).tokens.tolist() == [9, 2, 3]
    monkeypatch.setattr(copying, "_BASE", 1)  # now the hash is the sum of the window's tokens, and 2 + 3 = 1 + 4
    assert len(CopySource((2,)).open(tokens).propose(3)) == 0


@pytest.mark.parametrize("gammas", [(), (0,), (3, -1)])
def test_windows_without_a_token_are_refused(gammas):
    with pytest.raises(UserError, match="gammas"):
        CopySource(gammas)
