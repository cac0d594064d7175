from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.tokenizers_ext import load, save_byte, save_merged, save_subword
from seqmill.tokenizers_ext.byte_level import ByteEncoder
from seqmill.tokenizers_ext.merging import MergeConfig, MergedEncoder, apply_table, batch, learn_table, merge_batch
from seqmill.tokenizers_ext.subword import SubwordEncoder

TEXTS = ["the cat sat on the mat", "", "the theatre, the cat", "日本語日本語 naïve naïve", "", "hahahahahaha"]


@pytest.fixture(scope="module")
def merged(tokenizer_json: bytes) -> MergedEncoder:
    base = SubwordEncoder(tokenizer_json)
    return MergedEncoder(base, learn_table(base, base.encode(pa.array(TEXTS)), MergeConfig(30, rule="word")))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(TEXTS).map(str.encode) | st.binary(max_size=30), max_size=5))
def test_arbitrary_bytes_come_back(merged: MergedEncoder, documents: list[bytes]) -> None:
    ids = merged.encode(pa.array(documents, pa.large_binary()))
    assert merged.decode(ids).to_pylist() == documents


def test_the_text_it_was_learned_on_is_encoded_as_merging_left_it(merged: MergedEncoder) -> None:
    ids = merged.base.encode(pa.array(TEXTS))
    expected = merge_batch(merged.base, ids, MergeConfig(30, rule="word")).ids.to_pylist()
    assert merged.encode(pa.array(TEXTS)).to_pylist() == expected


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 1000])
def test_ids_do_not_depend_on_how_much_is_merged_at_once(
    merged: MergedEncoder, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["", "", *TEXTS, ""]
    whole = merged.encode(pa.array(texts))
    monkeypatch.setattr(batch, "TOKENS_AT_ONCE", at_once)
    assert merged.encode(pa.array(texts)).equals(whole)
    assert merged.encode(pa.array(texts)[3:6]).equals(whole[3:6])


def test_ids_take_two_bytes_exactly_when_the_larger_vocabulary_fits(merged: MergedEncoder) -> None:
    assert merged.vocab_size == merged.base.vocab_size + len(merged.table)
    assert merged.encode(pa.array(TEXTS)).type == pa.list_(pa.uint16())


def test_an_artifact_carries_its_base_and_comes_back(
    merged: MergedEncoder, tokenizer_json: bytes, tmp_path: Path
) -> None:
    save_subword(tmp_path / "base", tokenizer_json, {})
    saved = save_merged(tmp_path / "merged", tmp_path / "base", merged.table, {})
    loaded = load(tmp_path / "merged")
    assert loaded.fingerprint == saved.fingerprint == merged.fingerprint
    assert loaded.special_ids == merged.special_ids
    assert loaded.encode(pa.array(TEXTS)).equals(merged.encode(pa.array(TEXTS)))
    (tmp_path / "merged" / "base" / "tokenizer.json").write_bytes(tokenizer_json.replace(b"Q", b"q"))
    with pytest.raises(UserError, match="records sha256"):
        load(tmp_path / "merged")


def test_a_table_without_merges_is_the_base(tmp_path: Path) -> None:
    save_byte(tmp_path / "bytes")
    base = ByteEncoder()
    save_merged(
        tmp_path / "m", tmp_path / "bytes", learn_table(base, base.encode(pa.array(["ab"])), MergeConfig(0)), {}
    )
    assert load(tmp_path / "m").encode(pa.array(TEXTS)).equals(base.encode(pa.array(TEXTS)))


def test_a_foreign_base_and_foreign_ids_are_refused(merged: MergedEncoder) -> None:
    with pytest.raises(UserError, match="learn the merges again"):
        MergedEncoder(ByteEncoder(), merged.table)
    with pytest.raises(UserError, match="outside the vocabulary"):
        merged.decode(pa.array([[merged.vocab_size]], pa.list_(pa.uint16())))
    assert apply_table(merged.base, pa.array([], pa.list_(pa.uint16())), merged.table).to_pylist() == []
