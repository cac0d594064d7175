"""Exchanging strings, against counting each text again with and without a string."""

import itertools

import numpy as np

from seqmill.compress.builders.pairs import NEVER, exchange_pairs, usage_of
from seqmill.compress.dictionary import Dictionary
from seqmill.compress.parsing import fewest_windows, parse
from seqmill.compress.trie import Trie

SINGLES = [bytes([byte]) for byte in range(256)]
DOCUMENTS = [b"the cat sat on the mat", b"the hat", b"", b"that cat", b"the cat sat on the hat"] * 4
OFFSETS = np.concatenate([[0], np.cumsum([len(document) for document in DOCUMENTS])])
DATA = np.frombuffer(b"".join(DOCUMENTS), np.uint8)


def windows(dictionary: Dictionary, parse_name: str) -> int:
    return len(parse(parse_name)(Trie.of(dictionary), DATA, OFFSETS)[0])


def test_what_a_string_saves_is_its_uses_times_the_windows_it_stands_for_less_one() -> None:
    dictionary = Dictionary.from_strings([*SINGLES, b"th", b"the", b"the cat"])
    usage = usage_of(dictionary, DATA, OFFSETS, "longest")
    ids, _ = parse("longest")(Trie.of(dictionary), DATA, OFFSETS)
    assert usage.windows == len(ids)
    for string, instead in ((b"th", 2), (b"the", 2), (b"the cat", 5)):
        id_of = dictionary.strings().index(string)
        without = Dictionary.from_strings([other for other in dictionary.strings() if other != string])
        one = np.frombuffer(string, np.uint8)
        assert len(fewest_windows(Trie.of(without), one, np.array([0, len(one)]))[0]) == instead
        assert usage.saved[id_of] == (ids == id_of).sum() * (instead - 1)
    assert usage.saved[dictionary.strings().index(b"t")] == NEVER


def test_pairs_are_counted_within_documents_only() -> None:
    dictionary = Dictionary.from_strings([*SINGLES, b"the "])
    usage = usage_of(dictionary, DATA, OFFSETS, "longest")
    strings = dictionary.strings()
    found = {
        (strings[left], strings[right]): count
        for left, right, count in zip(usage.lefts, usage.rights, usage.counts, strict=True)
    }
    counted: dict[tuple[bytes, bytes], int] = {}
    for document in DOCUMENTS:
        one = np.frombuffer(document, np.uint8)
        ids, _ = parse("longest")(Trie.of(dictionary), one, np.array([0, len(one)]))
        for left, right in itertools.pairwise(ids):
            pair = (strings[left], strings[right])
            counted[pair] = counted.get(pair, 0) + 1
    assert found == counted
    assert (np.diff(usage.counts) <= 0).all()


def test_a_round_that_fills_up_and_exchanges_leaves_fewer_windows() -> None:
    poor = Dictionary.from_strings([*SINGLES, b"zz", b"qq", b"xx", b"jj"])
    for parse_name in ("longest", "fewest"):
        before = windows(poor, parse_name)
        better = exchange_pairs(poor, DATA, OFFSETS, 262, 8, parse_name)
        assert len(better) == 262
        assert windows(better, parse_name) < before / 2
        assert b"zz" not in better.strings()


def test_strings_that_save_most_are_kept_when_there_are_too_many() -> None:
    many = Dictionary.from_strings([*SINGLES, b"zz", b"the ", b"qq", b"cat"])
    fewer = exchange_pairs(many, DATA, OFFSETS, 258, 1)
    assert len(fewer) == 258
    assert b"zz" not in fewer.strings()


def test_nothing_changes_when_nothing_is_to_be_gained() -> None:
    dictionary = Dictionary.from_strings(SINGLES)
    data, offsets = np.frombuffer(b"abcdefg", np.uint8), np.array([0, 7])
    assert exchange_pairs(dictionary, data, offsets, 300, 3).strings() == SINGLES
    assert exchange_pairs(dictionary, np.empty(0, np.uint8), np.zeros(1, np.int64), 300, 3).strings() == SINGLES
