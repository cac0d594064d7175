import numpy as np
import pytest
from ahocorasick_rs import BytesAhoCorasick, MatchKind

from seqmill.compress.builders.counts import counts
from seqmill.compress.builders.reest import cut_longest, reest
from seqmill.compress.builders.stopcell import stopcell
from seqmill.compress.builders.topn import topn
from seqmill.compress.byte_model import quantise
from seqmill.compress.counts_model import counts_model
from seqmill.compress.dictionary import Dictionary
from seqmill.compress.ngram_model import ngram_model
from seqmill.compress.texts import Texts
from seqmill.compress.tree_model import TreeModel
from seqmill.compress.window_coder import WindowCoder
from seqmill.errors import UserError

GOLDEN = {
    "stopcell": "ee424752b71a1edc0cb5d47f003643e2c54ccf069e23b0e23cb6b972bda396bd",
    "topn": "f1d5be39cdb930bb53edcc722152aa5edf53929e475fc5a3405ffa41fb380eb7",
    "counts": "7d6d34f78de94c0b25c780b843221358077a25858a5a99d0a743b2b68216304a",
    "reest": "66eab64da32b1e234bb66630e4ac10c2a7e247a37cf2ceb67c004a67aed68760",
}


@pytest.fixture(scope="module")
def small(texts: Texts) -> TreeModel:
    return ngram_model(texts, order=3, precision=12)


def assert_sound(dictionary: Dictionary, size: int) -> None:
    """As many strings as numbers, ascending, none twice, and everything that one begins with."""
    dictionary.check()
    strings = dictionary.strings()
    assert len(strings) == len(set(strings)) == size
    assert strings == sorted(strings)
    assert {string[:-1] for string in strings if len(string) > 1} <= set(strings)


@pytest.mark.parametrize(("window", "specials"), [(12, None), (13, 7), (16, None)])
def test_the_table_is_the_window_coder(
    window: int, specials: int | None, small: TreeModel, documents: list[bytes]
) -> None:
    table = stopcell(small, window, specials)
    coder = WindowCoder(small, window, specials)
    assert_sound(table, coder.numbers)
    data, ends = coder.decode_batch(np.arange(coder.numbers), np.arange(coder.numbers + 1))
    assert np.array_equal(data, table.blob)
    assert np.array_equal(ends, table.offsets)
    texts = Texts.of([b"", bytes(2000), bytes(range(256)), *(document[:3000] for document in documents[::3])])
    ids, offsets = coder.encode_batch(texts.data, texts.offsets)
    from_table, table_offsets = cut_longest(table, texts)
    assert np.array_equal(ids, from_table)
    assert np.array_equal(offsets, table_offsets)
    automaton = BytesAhoCorasick(table.strings(), matchkind=MatchKind.LeftmostLongest)
    for document in (documents[0][:3000], documents[-1][:3000]):
        matches = automaton.find_matches_as_indexes(document)
        assert [match[0] for match in matches] == coder.encode(document).tolist()


@pytest.mark.parametrize("builder", [stopcell, topn])
def test_windows_of_eight_bits_are_the_bytes_themselves(builder, texts: Texts) -> None:  # type: ignore[no-untyped-def]
    model = ngram_model(texts, order=2, precision=8)
    assert builder(model, 8).strings() == [bytes([byte]) for byte in range(256)]


class Certain:
    """A model that has seen nothing but zeros."""

    precision = 16
    fingerprint = "certain"

    def frequencies(self, contexts: list[bytes]) -> np.ndarray:
        return np.repeat(quantise(np.eye(256)[:1], 16), len(contexts), axis=0)


@pytest.mark.parametrize("builder", [stopcell, topn])
def test_a_model_that_is_sure_of_endless_runs_still_fills_the_table(builder) -> None:  # type: ignore[no-untyped-def]
    table = builder(Certain(), 16, 0)
    assert_sound(table, 65_536)
    assert table.lengths.max() == 255


@pytest.mark.parametrize("builder", [stopcell, topn])
def test_windows_that_cannot_be_listed_are_refused(builder, small: TreeModel) -> None:  # type: ignore[no-untyped-def]
    for window in (7, 21, 32):
        with pytest.raises(UserError, match=f"window = {window} bits: dictionaries have windows of 8 to 20"):
            builder(small, window)


def test_tables_are_the_same_everywhere() -> None:
    sample = Texts.of([b"a rose is a rose is a rose " * 20, bytes(range(256)), "роза это роза ".encode() * 10])
    model = counts_model(sample, precision=12)
    found = {
        "stopcell": stopcell(model, 12),
        "topn": topn(model, 12),
        "counts": counts(sample, 12),
        "reest": reest(sample, lambda texts, starts: counts(texts, 12, None, starts), 3),
    }
    assert {name: table.fingerprint for name, table in found.items()} == GOLDEN
