"""Prompts that begin alike share the pages of their beginning."""

from hypothesis import given
from hypothesis import strategies as st

from seqmill.models.inference.pages import PagePool
from seqmill.models.inference.prefixes import PrefixCache


def remember(pool: PagePool, prefixes: PrefixCache, prompt: list[int]) -> list[int]:
    """The pages of a prompt of which as much as possible is known; the sequence keeps them."""
    known = prefixes.find(prompt)
    pool.share(known)
    pages = known + [pool.take() for _ in range(-(-len(prompt) // 2) - len(known))]
    prefixes.add(prompt, pages, len(prompt))
    return pages


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=12))
def test_what_is_found_is_the_longest_known_beginning_in_whole_pages_before_the_last_token(
    prompts: list[list[int]],
) -> None:
    pool = PagePool(100)
    prefixes = PrefixCache(pool, 2)
    seen: dict[tuple[int, ...], int] = {}  # a beginning of whole pages -> its last page
    for prompt in prompts:
        beginnings = [tuple(prompt[:end]) for end in range(2, len(prompt) + 1, 2)]
        expected = []
        for beginning in beginnings:
            if beginning not in seen or len(beginning) == len(prompt):
                break
            expected.append(seen[beginning])
        assert prefixes.find(prompt) == expected
        pages = remember(pool, prefixes, prompt)
        for beginning, page in zip(beginnings, pages, strict=False):
            seen.setdefault(beginning, page)
    assert len(prefixes) == len(seen)


def test_pages_that_no_sequence_uses_are_given_back_the_oldest_use_first() -> None:
    pool = PagePool(6)
    prefixes = PrefixCache(pool, 2)
    a, b, c = ([digit] * 4 for digit in (1, 2, 3))
    pages = {tuple(prompt): remember(pool, prefixes, prompt) for prompt in (a, b, c)}
    assert pool.free == 0
    assert prefixes.evictable() == 0
    prefixes.evict(1)
    assert len(prefixes) == 6  # all are in use
    for each in pages.values():
        pool.give_back(each)
    assert prefixes.evictable() == 6
    assert prefixes.evictable(pages[tuple(a)]) == 4
    used = prefixes.find([*a, 0])
    prefixes.add(a, used, 4)  # used again: b is the oldest now
    prefixes.evict(2)
    assert pool.free == 2
    assert prefixes.find([*b, 0]) == []
    assert len(prefixes.find([*a, 0])) == 2
    prefixes.clear()
    assert pool.free == 6
    assert prefixes.find([*a, 0]) == []
