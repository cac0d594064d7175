from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.compress import substring_counts
from seqmill.compress.substring_counts import count_substrings
from seqmill.compress.texts import Texts

small_text = st.lists(st.text("ab\x00c", max_size=25).map(str.encode), max_size=6)


def counted(documents: list[bytes], longest: int, starts: set[int] | None) -> Counter[bytes]:
    """Every string of up to `longest` bytes that begins at a start and ends in its document."""
    found: Counter[bytes] = Counter()
    place = 0
    for document in documents:
        for at in range(len(document)):
            if starts is None or place + at in starts:
                found.update(document[at:end] for end in range(at + 1, min(at + longest, len(document)) + 1))
        place += len(document)
    return found


def expected(documents: list[bytes], limit: int, longest: int, starts: set[int] | None) -> dict[bytes, int]:
    """The single bytes, and the most frequent of the longer strings: of equal ones the shorter, then the lesser."""
    found = counted(documents, longest, starts)
    longer = sorted((s for s in found if len(s) > 1), key=lambda s: (-found[s], len(s), s))
    return {s: found[s] for s in [bytes([b]) for b in range(256)] + longer[:limit]}


@given(small_text, st.integers(0, 40), st.integers(1, 12), st.data())
@settings(max_examples=100, deadline=None)
def test_the_tree_holds_what_counting_every_substring_finds(
    documents: list[bytes], limit: int, longest: int, data: st.DataObject
) -> None:
    size = sum(map(len, documents))
    chosen = data.draw(st.none() | st.sets(st.integers(0, size - 1) if size else st.nothing()))
    starts = None if chosen is None else np.array(sorted(chosen), np.int32)
    tree = count_substrings(Texts.of(documents), limit, longest, starts)
    found = dict(zip(tree.strings()[1:], tree.count[1:].tolist(), strict=True))
    assert found == expected(documents, limit, longest, chosen)
    assert tree.count[0] == (size if chosen is None else len(chosen))


def test_the_tree_of_real_text_is_that_of_plain_counting(documents: list[bytes]) -> None:
    some = [document[:500] for document in documents[::5]]
    tree = count_substrings(Texts.of(some), 500, 40)
    assert dict(zip(tree.strings()[1:], tree.count[1:].tolist(), strict=True)) == expected(some, 500, 40, None)


def test_children_lie_together_in_the_order_of_their_bytes(texts: Texts) -> None:
    tree = count_substrings(texts, 3000, 20)
    for node in range(len(tree)):
        children = range(tree.first_child[node], tree.first_child[node + 1])
        assert all(tree.parent[child] == node for child in children)
        assert sorted(tree.byte[child] for child in children) == [tree.byte[child] for child in children]
    assert tree.first_child[-1] == len(tree)


def test_counting_in_several_passes_finds_the_same(texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count_substrings(texts, 2000, 20)
    monkeypatch.setattr(substring_counts, "BLOCK", 37)
    parts = count_substrings(texts, 2000, 20)
    assert whole.strings() == parts.strings()
    assert np.array_equal(whole.count, parts.count)


def test_a_run_of_one_byte_is_counted_at_all_its_places() -> None:
    tree = count_substrings(Texts.of([bytes(1000)]), 100, 50)
    assert tree.count[tree.strings().index(bytes(50))] == 951
