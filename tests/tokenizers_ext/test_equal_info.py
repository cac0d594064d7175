"""Windows as a tokenizer: what every encoder must hold, and what several tables add."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.compress.dictionary import Dictionary
from seqmill.errors import UserError
from seqmill.tokenizers_ext import Encoder, load, save_equal_info, spans
from seqmill.tokenizers_ext.byte_level import ByteEncoder
from seqmill.tokenizers_ext.equal_info import PROBE, EqualInfoEncoder
from seqmill.tokenizers_ext.kmer import KmerEncoder
from seqmill.tokenizers_ext.metrics import is_split, token_bytes
from seqmill.tokenizers_ext.token_bytes import bytes_of_ids

SINGLES = [bytes([byte]) for byte in range(256)]
ENGLISH = Dictionary.from_strings([*SINGLES, b"th", b"the ", b"cat", b" sat", b"at "])
RUSSIAN = Dictionary.from_strings([*SINGLES, *(word.encode() for word in ("ко", "кот ", "сид", "ел", "ла"))])
ONE = EqualInfoEncoder([ENGLISH])
TWO = EqualInfoEncoder([ENGLISH, RUSSIAN])
DOCUMENTS = st.lists(st.binary(max_size=60) | st.text("the catsкотсидел ", max_size=60).map(str.encode), max_size=8)


def binary(*documents: bytes) -> pa.Array:
    return pa.array(documents, pa.binary())


@pytest.mark.parametrize("encoder", [ONE, EqualInfoEncoder([ENGLISH], "fewest"), TWO], ids=["one", "fewest", "two"])
@given(documents=DOCUMENTS)
def test_any_bytes_come_back(encoder: EqualInfoEncoder, documents: list[bytes]) -> None:
    ids = encoder.encode(binary(*documents))
    assert ids.type == pa.list_(pa.uint16())
    assert encoder.decode(ids).to_pylist() == documents
    alone = [encoder.encode(binary(document)).to_pylist()[0] for document in documents]
    assert ids.to_pylist() == alone


def test_all_strings_of_one_and_two_bytes_come_back() -> None:
    documents = [*SINGLES, *(bytes([a, b]) for a in range(256) for b in range(256))]
    for encoder in (ONE, TWO):
        assert encoder.decode(encoder.encode(binary(*documents))).to_pylist() == documents


def test_each_id_is_the_encoding_of_its_own_text() -> None:
    every = pa.array([[i] for i in range(len(ENGLISH))], pa.list_(pa.uint16()))
    assert ONE.encode(ONE.decode(every)).to_pylist() == every.to_pylist()


def test_special_ids_lie_above_the_strings_and_decode_to_nothing() -> None:
    assert ONE.special_ids == {"eos": 261, "pad": 262}
    assert ONE.vocab_size == 263
    assert TWO.special_ids == {"eos": 261, "pad": 262, "table 0": 263, "table 1": 264}
    ids = ONE.encode(binary(b"the cat")).to_pylist()[0]
    assert ONE.decode(pa.array([[262, *ids, 261]], pa.list_(pa.uint16()))).to_pylist() == [b"the cat"]


def test_ids_are_uint16_exactly_when_they_fit() -> None:
    random = np.random.default_rng(0)
    longer = {string.tobytes() for string in random.integers(0, 256, (70_000, 3), np.uint8)}
    fits = EqualInfoEncoder([Dictionary.from_strings([*SINGLES, *sorted(longer)[: 65_536 - 256 - 2]])])
    more = EqualInfoEncoder([Dictionary.from_strings([*SINGLES, *sorted(longer)[: 65_536 - 256 - 1]])])
    assert (fits.vocab_size, more.vocab_size) == (65_536, 65_537)
    for encoder, kind in ((fits, pa.uint16()), (more, pa.uint32())):
        ids = encoder.encode(binary(b"\xff" * 100, b""))
        assert ids.type == pa.list_(kind)
        assert encoder.decode(ids).to_pylist() == [b"\xff" * 100, b""]


def test_a_document_begins_with_the_table_that_writes_it_in_fewest_windows() -> None:
    texts = ["the cat sat", "кот сидел", "", "the кот", "кот " * 400 + "the " * 4000]
    ids = TWO.encode(pa.array(texts))
    assert [document[0] - TWO.special_ids["table 0"] for document in ids.to_pylist()] == [0, 1, 0, 0, 1]
    assert len("кот ".encode()) * 400 > PROBE
    assert [text.decode() for text in TWO.decode(ids).to_pylist()] == texts
    assert len(ids[1]) - 1 < len(ONE.encode(pa.array(texts[1:2]))[0])


def test_ids_of_several_tables_mean_nothing_without_their_first() -> None:
    ids = TWO.encode(pa.array(["кот"])).to_pylist()[0]
    with pytest.raises(UserError, match=r"document 1 does not begin with the id of a table, 263 to 264"):
        TWO.decode(pa.array([ids, ids[1:]], pa.list_(pa.uint16())))


@pytest.mark.parametrize("encoder", [ONE, TWO], ids=["one", "two"])
def test_an_id_outside_the_vocabulary_is_refused(encoder: EqualInfoEncoder) -> None:
    with pytest.raises(UserError, match=f"id {encoder.vocab_size} is outside the vocabulary"):
        encoder.decode(pa.array([[encoder.vocab_size]], pa.list_(pa.uint16())))
    assert encoder.decode(pa.array([[], []], pa.list_(pa.uint16()))).to_pylist() == [b"", b""]


@pytest.mark.parametrize("encoder", [ONE, TWO, ByteEncoder(), KmerEncoder()], ids=lambda encoder: encoder.kind)
def test_a_negative_id_is_refused(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="id -5 is outside the vocabulary"):
        encoder.decode(pa.array([[1, -5]], pa.list_(pa.int64())))


def test_tables_of_several_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="tables of 257, 261 strings: all need as many"):
        EqualInfoEncoder([ENGLISH, Dictionary.from_strings([*SINGLES, b"ab"])])
    with pytest.raises(UserError, match="tables of no strings"):
        EqualInfoEncoder([])


def test_every_token_has_its_bytes() -> None:
    text = "the cat sat"
    found = spans(ONE, pa.array([text, "", "at"]))
    ids = ONE.encode(pa.array([text])).to_pylist()[0]
    pieces = [ENGLISH.string(i).decode() for i in ids]
    assert [
        text[start:stop] for start, stop in zip(found.starts.to_pylist()[0], found.ends.to_pylist()[0], strict=True)
    ] == pieces
    offsets, data = bytes_of_ids(ONE)
    assert len(offsets) == ONE.vocab_size + 1
    assert data[offsets[ids[0]] : offsets[ids[0] + 1]].tobytes() == b"the "


@pytest.mark.parametrize("tables", [[ENGLISH], [ENGLISH, RUSSIAN]])
def test_an_artifact_comes_back_as_it_was(tmp_path: Path, tables: list[Dictionary]) -> None:
    saved = save_equal_info(tmp_path, tables, "fewest", {"builder": "by hand"})
    loaded: Encoder = load(tmp_path)
    assert (loaded.kind, loaded.vocab_size, loaded.fingerprint) == ("equal-info", saved.vocab_size, saved.fingerprint)
    assert loaded.special_ids == saved.special_ids
    texts = pa.array(["the cat sat", "кот"])
    assert loaded.encode(texts).to_pylist() == saved.encode(texts).to_pylist()
    assert json.loads((tmp_path / "seqmill.json").read_text())["built_from"] == {"builder": "by hand"}


def test_a_dictionary_that_is_not_the_recorded_one_is_refused(tmp_path: Path) -> None:
    save_equal_info(tmp_path / "a", [ENGLISH], "longest", {})
    save_equal_info(tmp_path / "b", [RUSSIAN], "longest", {})
    (tmp_path / "a" / "dictionary.bin").write_bytes((tmp_path / "b" / "dictionary.bin").read_bytes())
    with pytest.raises(UserError, match="records sha256"):
        load(tmp_path / "a")


def test_the_fingerprint_tells_the_way_of_cutting_and_the_tables() -> None:
    encoders = [ONE, TWO, EqualInfoEncoder([ENGLISH], "fewest"), EqualInfoEncoder([RUSSIAN, ENGLISH])]
    assert len({encoder.fingerprint for encoder in encoders}) == 4


def test_a_prompt_that_ends_within_a_window_is_taken_back_to_the_one_before() -> None:
    ids = ONE.encode(pa.array(["the ca"])).to_pylist()[0]
    healed = ONE.heal(ids)
    assert healed.ids.tolist() == ids[:-1]
    assert [ENGLISH.string(i) for i in healed.next_ids] == [b"a", b"at "]
    with_table = TWO.heal(TWO.encode(pa.array(["кот ко"])).to_pylist()[0])
    assert with_table.ids[0] == TWO.special_ids["table 1"]
    assert [RUSSIAN.string(i).decode() for i in with_table.next_ids] == ["ко", "кот "]
    with pytest.raises(UserError, match="id 3 at a prompt's beginning says no table"):
        TWO.heal([3, 4])
    for short in ([], [ids[0]], [*ids, ONE.special_ids["eos"]]):
        assert ONE.heal(short).ids.tolist() == short
        assert ONE.heal(short).next_ids == range(ONE.vocab_size)


def test_the_id_of_a_table_makes_no_word_a_split_one() -> None:
    words = pa.array([b"cat", b"the", b"sit"], pa.large_binary())
    assert is_split(TWO, words).tolist() == is_split(ONE, words).tolist() == [False, True, True]
    ids = np.array([ENGLISH.strings().index(b"the "), ENGLISH.strings().index(b"x")])
    assert token_bytes(TWO, ids).to_pylist() == token_bytes(ONE, ids).to_pylist() == [b"the ", b"x"]
