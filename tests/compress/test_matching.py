"""The four-lane parse against a probe of every length, and against an automaton that nobody here wrote."""

import itertools

import ahocorasick_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.compress import matching
from seqmill.compress.dictionary import Dictionary
from seqmill.compress.matching import longest_matches
from seqmill.compress.trie import FREE, Trie
from seqmill.errors import UserError

SINGLES = [bytes([byte]) for byte in range(256)]
STRINGS = st.lists(st.text("ab\x00é", min_size=2, max_size=9).map(str.encode), max_size=40)
DOCUMENTS = st.lists(st.text("abc\x00é", max_size=80).map(str.encode) | st.binary(max_size=40), max_size=8)


def flat(documents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [len(document) for document in documents]
    return np.frombuffer(b"".join(documents), np.uint8), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def probed(strings: list[bytes], document: bytes) -> list[int]:
    """The longest string at each place, found by trying every length from the longest down."""
    id_of = {string: number for number, string in enumerate(strings)}
    longest, place, ids = max(map(len, strings)), 0, []
    while place < len(document):
        length = next(n for n in range(longest, 0, -1) if document[place : place + n] in id_of)
        ids.append(id_of[document[place : place + length]])
        place += length
    return ids


def words_dictionary(seed: int, strings: int) -> Dictionary:
    """Strings that overlap each other in every way."""
    random = np.random.default_rng(seed)
    words = {bytes(random.choice(list(b"aab "), size=random.integers(2, 12))) for _ in range(strings)}
    return Dictionary.from_strings([*SINGLES, *words])


@settings(max_examples=150)
@given(STRINGS, DOCUMENTS)
def test_every_document_is_cut_into_the_longest_strings(strings: list[bytes], documents: list[bytes]) -> None:
    dictionary = Dictionary.from_strings({*SINGLES, *strings})
    ids, ends = longest_matches(Trie.of(dictionary), *flat(documents))
    found = [ids[first:last].tolist() for first, last in itertools.pairwise(ends)]
    assert found == [probed(dictionary.strings(), document) for document in documents]


@pytest.mark.parametrize("piece", [32, 300])
@pytest.mark.parametrize("at_a_time", [500, 1 << 22])
def test_text_that_is_cut_in_pieces_is_cut_as_in_one(
    monkeypatch: pytest.MonkeyPatch, piece: int, at_a_time: int
) -> None:
    monkeypatch.setattr(matching, "PIECE", piece)
    monkeypatch.setattr(matching, "STRETCH", 4 * piece)
    monkeypatch.setattr(matching, "AT_A_TIME", at_a_time)
    for kernel in (matching._longest_matches, matching._cut_pieces):  # constants are compiled in
        monkeypatch.setattr(matching, kernel.__name__, kernel.py_func)
    dictionary = words_dictionary(0, 300)
    random = np.random.default_rng(1)
    documents = [bytes(random.choice(list(b"aab c"), size=size)) for size in (700, 0, 0, 3, 1, 450, 31, 32, 33, 2, 0)]
    ids, ends = longest_matches(Trie.of(dictionary), *flat(documents), np.uint16)
    assert ids.dtype == np.uint16
    found = [ids[first:last].tolist() for first, last in itertools.pairwise(ends)]
    assert found == [probed(dictionary.strings(), document) for document in documents]


def test_long_documents_are_cut_as_an_independent_automaton_cuts_them() -> None:
    dictionary = words_dictionary(2, 2_000)
    random = np.random.default_rng(3)
    documents = [bytes(random.choice(list(b"aab c\xff"), size=size)) for size in (1_200_000, 5, 70_000, 0, 16_390)]
    documents += [b"a" * 100_000]
    automaton = ahocorasick_rs.BytesAhoCorasick(
        dictionary.strings(), matchkind=ahocorasick_rs.MatchKind.LeftmostLongest
    )
    expected = [match[0] for document in documents for match in automaton.find_matches_as_indexes(document)]
    ids, ends = longest_matches(Trie.of(dictionary), *flat(documents))
    assert ids.tolist() == expected
    assert ends[-1] == len(expected)


def test_a_cut_after_a_border_is_the_cut_of_what_follows() -> None:
    dictionary = words_dictionary(4, 300)
    trie = Trie.of(dictionary)
    text = bytes(np.random.default_rng(5).choice(list(b"aab "), size=2_000))
    ids, _ = longest_matches(trie, *flat([text]))
    places = np.cumsum(dictionary.lengths[ids])
    for border in range(0, len(ids), 37):
        rest, _ = longest_matches(trie, *flat([text[places[border] :]]))
        assert rest.tolist() == ids[border + 1 :].tolist()


def test_a_slice_of_documents_is_cut_without_its_neighbours() -> None:
    dictionary = words_dictionary(6, 100)
    data, offsets = flat([b"aab aab", b"b aab a", b"aa"])
    ids, ends = longest_matches(Trie.of(dictionary), data, offsets[1:3])
    assert ids.tolist() == probed(dictionary.strings(), b"b aab a")
    assert ends.tolist() == [0, len(ids)]


def test_a_trie_has_one_slot_for_each_prefix_of_its_strings() -> None:
    dictionary = words_dictionary(7, 500)
    prefixes = {string[:length] for string in dictionary.strings() for length in range(1, len(string) + 1)}
    trie = Trie.of(dictionary)
    assert (trie.units != FREE).sum() == len(prefixes)
    assert (trie.units >> 31).sum() == len(dictionary)


def test_strings_of_any_bytes_are_found_by_their_tries() -> None:
    rng = np.random.default_rng(8)
    strings = {string.tobytes() for string in rng.integers(0, 256, (100_000, 3), np.uint8)}
    dictionary = Dictionary.from_strings([*SINGLES, *strings])
    ids, _ = longest_matches(Trie.of(dictionary), dictionary.blob, dictionary.offsets)
    assert (ids == np.arange(len(dictionary))).all()


def test_a_dictionary_that_is_too_large_for_a_trie_is_refused() -> None:
    rng = np.random.default_rng(9)
    strings = {string.tobytes() for string in rng.integers(0, 256, (20_000, 250), np.uint8)}
    dictionary = Dictionary.from_strings([*SINGLES, *strings])
    with pytest.raises(UserError, match=r"dictionary of 20256 strings, .* slots: 4194303 are possible"):
        Trie.of(dictionary)
