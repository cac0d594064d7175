"""The fewest windows against trying every cut."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.compress import parsing
from seqmill.compress.dictionary import Dictionary
from seqmill.compress.parsing import fewest_windows, parse
from seqmill.compress.trie import Trie
from seqmill.errors import UserError

SINGLES = [bytes([byte]) for byte in range(256)]


def fewest(strings: frozenset[bytes], text: bytes) -> int:
    @cache
    def windows(place: int) -> int:
        ends = range(place + 1, len(text) + 1)
        return min((1 + windows(end) for end in ends if text[place:end] in strings), default=0)

    return windows(0)


@given(
    st.sets(st.text("abc", min_size=2, max_size=6).map(str.encode), max_size=25),
    st.lists(st.text("abcd", max_size=40).map(str.encode), max_size=5),
)
def test_no_cut_has_fewer_windows(strings: set[bytes], documents: list[bytes]) -> None:
    dictionary = Dictionary.from_strings({*SINGLES, *strings})
    known = dictionary.strings()
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents], dtype=np.int64)])
    ids, ends = fewest_windows(Trie.of(dictionary), np.frombuffer(b"".join(documents), np.uint8), offsets)
    for document, first, last in zip(documents, ends, ends[1:], strict=False):
        assert b"".join(known[i] for i in ids[first:last]) == document
        assert last - first == fewest(frozenset(known), document)


@pytest.mark.parametrize("stretch", [1, 300, 1000])
def test_text_that_is_cut_stretch_by_stretch_is_cut_as_in_one(monkeypatch: pytest.MonkeyPatch, stretch: int) -> None:
    random = np.random.default_rng(0)
    words = {bytes(random.choice(list(b"aab "), size=random.integers(2, 14))) for _ in range(400)}
    trie = Trie.of(Dictionary.from_strings([*SINGLES, *words, b"a" * 255]))
    documents = [bytes(random.choice(list(b"aab c"), size=size)) for size in (5_000, 0, 1, 299, 300, 301, 2_000)]
    documents += [b"a" * 4_000, b"ab" * 700 + b"a" * 900 + b"c"]
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])])
    data = np.frombuffer(b"".join(documents), np.uint8)
    ids, ends = fewest_windows(trie, data, offsets)
    monkeypatch.setattr(parsing, "STRETCH", stretch)
    found, found_ends = fewest_windows(trie, data, offsets, np.uint16)
    assert found.tolist() == ids.tolist()
    assert found_ends.tolist() == ends.tolist()
    alone = [
        fewest_windows(trie, data[first:last], np.array([0, last - first]))[0] for first, last in pairwise(offsets)
    ]
    assert np.concatenate(alone).tolist() == ids.tolist()


def test_of_equally_short_cuts_the_last_string_is_the_longest_that_it_can_be() -> None:
    dictionary = Dictionary.from_strings([*SINGLES, b"ab", b"abc", b"bcd", b"cd"])
    ids, _ = fewest_windows(Trie.of(dictionary), np.frombuffer(b"abcd", np.uint8), np.array([0, 4]))
    assert [dictionary.string(i) for i in ids] == [b"a", b"bcd"]


def test_a_long_run_of_one_byte_is_cut_in_linear_time() -> None:
    dictionary = Dictionary.from_strings([*SINGLES, *(b"a" * length for length in range(2, 256))])
    ids, _ = fewest_windows(Trie.of(dictionary), np.full(1_000_000, ord("a"), np.uint8), np.array([0, 1_000_000]))
    assert len(ids) == -(-1_000_000 // 255)


def test_an_unknown_way_of_cutting_is_refused() -> None:
    with pytest.raises(UserError, match="parse = 'greedy': choose one of longest, fewest"):
        parse("greedy")
