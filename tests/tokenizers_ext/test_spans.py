"""Spans against the bytes of each token, and against the offsets of tokenizers."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from seqmill.errors import UserError
from seqmill.tokenizers_ext import KmerConfig, load
from seqmill.tokenizers_ext.byte_level import ByteEncoder
from seqmill.tokenizers_ext.kmer import KmerEncoder
from seqmill.tokenizers_ext.spans import Spans, spans
from seqmill.tokenizers_ext.subword import SubwordEncoder

DATA = Path(__file__).parent / "data"
TEXTS = ["", " the  fox", "Würde 日本語 👩\u200d👧", "e\u0301 x\n", "<|endoftext|>"]


@pytest.fixture(scope="session")
def encoder(tokenizer_json: bytes) -> SubwordEncoder:
    return SubwordEncoder(tokenizer_json)


def rows(found: Spans) -> list[list[tuple[int, int]]]:
    assert found.starts.type == found.ends.type == pa.list_(pa.uint32())
    lists = zip(found.starts.to_pylist(), found.ends.to_pylist(), strict=True)
    return [list(zip(starts, ends, strict=True)) for starts, ends in lists]


def in_characters(text: str, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The characters that spans in bytes touch, which is what `tokenizers` tells of half a character."""
    first = [0, *np.cumsum([len(character.encode()) for character in text]).tolist()]
    return [
        (max(k for k, at in enumerate(first) if at <= start), min(k for k, at in enumerate(first) if at >= end))
        for start, end in found
    ]


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(st.binary(max_size=30) | st.text(max_size=20).map(str.encode)), start=st.integers(0, 2))
def test_spans_of_a_lossless_tokenizer_touch_and_cover_the_document(
    encoder: SubwordEncoder, documents: list[bytes], start: int
) -> None:
    column = pa.array(documents, pa.binary()).slice(start)
    found = spans(encoder, column)
    assert found.ids.equals(encoder.encode(column))
    for document, ids, row in zip(documents[start:], found.ids.to_pylist(), rows(found), strict=True):
        assert [end for _, end in row[:-1]] == [begin for begin, _ in row[1:]]
        tokens = encoder.decode(pa.array([[id_] for id_ in ids], found.ids.type)).to_pylist()
        assert [document[a:b] for a, b in row] == tokens


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30) | st.sampled_from(TEXTS))
def test_spans_agree_with_the_characters_of_tokenizers(encoder: SubwordEncoder, text: str) -> None:
    _, expected = encoder.character_offsets(text)
    row = rows(spans(encoder, pa.array([text])))[0]
    assert in_characters(text, row) == [tuple(pair) for pair in expected.tolist()]


@pytest.mark.parametrize("model", ["bpe_bytes", "unigram_bytes", "unigram"])
def test_spans_of_sentencepiece_models_lie_in_the_document(model: str) -> None:
    encoder = load(DATA / f"{model}.model")
    texts = ["Hello world", "  two  spaces", "日本 🎉 x", ""]
    for text, ids, row in zip(texts, *list(pieces_and_rows(encoder, texts)), strict=True):
        assert all(0 <= a <= b <= len(text.encode()) for a, b in row)
        if model == "bpe_bytes":
            whole = encoder.decode(pa.array([ids], pa.list_(pa.uint16()))).to_pylist()[0]
            assert b"".join(text.encode()[a:b] for a, b in row) == whole == text.encode()
        elif text == "Hello world":
            assert "".join(text[a:b] for a, b in row) == text


def pieces_and_rows(encoder: object, texts: list[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    assert isinstance(encoder, SubwordEncoder)
    found = spans(encoder, pa.array(texts))
    return found.ids.to_pylist(), rows(found)


def test_a_document_that_the_normaliser_changed_has_the_spans_of_its_own_characters(tokenizer_json: bytes) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.normalizer = normalizers.NFC()
    encoder = SubwordEncoder(tokenizer.to_str().encode())
    changed, same = "the e\u0301 fox", "the é fox"
    found = rows(spans(encoder, pa.array([same, changed, "the"])))
    assert found[0][-1][1] == len(same.encode())
    characters = [changed.encode()[start:end].decode() for start, end in found[1]]
    assert "".join(characters).replace(" ", "") == "theeefox"  # two tokens of bytes share the e, the accent joined it


def test_bytes_are_their_own_spans_and_kmers_have_none() -> None:
    assert rows(spans(ByteEncoder(), pa.array(["skipped", "hé", ""])[1:])) == [list(pairwise(range(4))), []]
    with pytest.raises(UserError, match="kmer"):
        spans(KmerEncoder(KmerConfig(3)), pa.array(["ACGT"]))
