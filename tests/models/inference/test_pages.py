"""Pages of a cache: taken, shared, given back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.models.inference.pages import PagePool


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "give back"]), st.integers(0, 1000)), max_size=200))
def test_a_page_is_free_exactly_while_nobody_owns_it(moves: list[tuple[str, int]]) -> None:
    pool, owned = PagePool(7), list[int]()  # `owned` has a page once for each owner
    for move, place in moves:
        if move == "take" and len(set(owned)) < 7:
            page = pool.take()
            assert page not in owned
            owned.append(page)
        elif move == "share" and owned:
            pool.share([owned[place % len(owned)]])
            owned.append(owned[place % len(owned)])
        elif move == "give back" and owned:
            pool.give_back([owned.pop(place % len(owned))])
        assert pool.free == 7 - len(set(owned))
        assert [pool.owners(page) for page in range(7)] == [owned.count(page) for page in range(7)]


def test_more_pages_than_there_are_and_pages_that_are_free_are_refused() -> None:
    pool = PagePool(1)
    page = pool.take()
    with pytest.raises(IndexError):
        pool.take()
    pool.give_back([page])
    with pytest.raises(AssertionError, match="page 0 is free"):
        pool.give_back([page])
    with pytest.raises(AssertionError, match="page 0 is free"):
        pool.share([page])
