"""Figures of tokenizers against plain Python: words by `bytes.split`, ids by `tokenizers`, scripts by name."""

import math
import unicodedata
from collections import Counter
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from seqmill.tokenizers_ext import KmerConfig
from seqmill.tokenizers_ext.byte_level import ByteEncoder
from seqmill.tokenizers_ext.encoder import Encoder
from seqmill.tokenizers_ext.kmer import KmerEncoder
from seqmill.tokenizers_ext.metrics import is_split, measure, rank_shares, renyi_efficiency, token_bytes
from seqmill.tokenizers_ext.subword import SubwordEncoder

UNSPACED = ("THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER", "HIRAGANA", "KATAKANA", "CJK UNIFIED IDEOGRAPH")
PIECES = st.sampled_from(
    [
        "the",
        "The",
        " ",
        "  ",
        "\n",
        "\t\x0b\x0c\r",
        "quick",
        "日本語",
        "テキスト",
        "ไทย",
        "한국어",
        "\u3000",
        "\u00a0",
        "👩\u200d👧",
        "e\u0301",
        "𠀀",
        "x",
        ",",
    ]
)
TEXTS = st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=5)


@pytest.fixture(scope="session")
def subword(tokenizer_json: bytes) -> SubwordEncoder:
    return SubwordEncoder(tokenizer_json)


@pytest.fixture(scope="session")
def reference(tokenizer_json: bytes) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.encode_special_tokens = True
    return tokenizer


def test_documents_are_measured_as_by_hand() -> None:
    measured, ids, decoded = measure(ByteEncoder(), pa.array(["a bb  é", "", "日本語", " \n "]))
    assert measured.bytes.tolist() == [8, 0, 9, 3]
    assert measured.characters.tolist() == [7, 0, 3, 3]
    assert measured.unspaced.tolist() == [0, 0, 3, 0]
    assert measured.words.tolist() == [3, 0, 1, 0]
    assert measured.split_words.tolist() == [2, 0, 1, 0]
    assert measured.tokens.tolist() == [8, 0, 9, 3]
    assert measured.exact.tolist() == [True] * 4
    assert (len(ids), decoded[2].as_py()) == (4, "日本語".encode())


@settings(max_examples=150, deadline=None)
@given(texts=TEXTS, start=st.integers(0, 2))
def test_figures_of_a_subword_tokenizer_equal_those_of_plain_python(
    subword: SubwordEncoder, reference: Tokenizer, texts: list[str], start: int
) -> None:
    measured, _, _ = measure(subword, pa.array(texts, pa.large_string()).slice(start))
    texts = texts[start:]

    def count(text: str) -> int:
        return len(reference.encode(text, add_special_tokens=False).ids)

    def split(word: bytes) -> bool:
        return min(count(word.decode()), count(" " + word.decode())) > 1

    assert measured.characters.tolist() == [len(text) for text in texts]
    assert measured.unspaced.tolist() == [
        sum(unicodedata.name(character, "").startswith(UNSPACED) for character in text) for text in texts
    ]
    assert measured.words.tolist() == [len(text.encode().split()) for text in texts]
    assert measured.split_words.tolist() == [sum(map(split, text.encode().split())) for text in texts]
    assert measured.tokens.tolist() == [count(text) for text in texts]
    assert measured.exact.all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"ACGT" * 4, b"\xe3", b"\xf0", b"\xe3\x81"]), max_size=5))
@pytest.mark.parametrize("encoder", [ByteEncoder(), KmerEncoder(KmerConfig(2))], ids=["byte", "kmer"])
def test_bytes_that_are_no_text_are_measured_too(encoder: Encoder, documents: list[bytes]) -> None:
    measured, ids, _ = measure(encoder, pa.array(documents, pa.large_binary()))
    assert measured.bytes.tolist() == [len(document) for document in documents]
    assert measured.characters.tolist() == [sum(byte >> 6 != 2 for byte in document) for document in documents]
    assert measured.words.tolist() == [len(document.split()) for document in documents]
    assert measured.tokens.tolist() == [len(each) for each in ids.to_pylist()]
    assert measured.exact.all()


BLOCKS = ((0x0E00, 0x107F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x20000, 0x33FFF))


def test_scripts_without_spaces_are_told_by_their_blocks() -> None:
    codes = [code for code in range(0x34100) if not 0xD800 <= code < 0xE000]
    measured, _, _ = measure(ByteEncoder(), pa.array(map(chr, codes), pa.large_string()))
    expected = [any(first <= code <= last for first, last in BLOCKS) for code in codes]
    assert measured.unspaced.tolist() == expected


def test_a_document_that_changes_is_not_exact() -> None:
    words = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    measured, _, decoded = measure(
        SubwordEncoder(words.to_str().encode()), pa.array(["the cat", "the  cat", "dog", ""])
    )
    assert measured.exact.tolist() == [True, False, False, True]
    assert decoded.to_pylist() == [b"the cat", b"the cat", b"[UNK]", b""]
    assert measured.split_words.tolist() == [0, 0, 0, 0]


def test_a_word_is_whole_if_it_is_one_id_alone_or_behind_a_space(subword: SubwordEncoder, reference: Tokenizer) -> None:
    words = ["the", "The", "fox", "over", "dog.", "zebra", "a", "texts):", "Menschen"]
    alone = [len(reference.encode(word).ids) for word in words]
    behind = [len(reference.encode(" " + word).ids) for word in words]
    assert {(a > 1, b > 1) for a, b in zip(alone, behind, strict=True)} == set(product([False, True], repeat=2))
    expected = [min(pair) > 1 for pair in zip(alone, behind, strict=True)]
    assert is_split(subword, pa.array(words).cast(pa.large_binary())).tolist() == expected


def renyi(tokens: list[str], vocab_size: int, alpha: float) -> float:
    counts = Counter(tokens)
    return math.log2(sum((n / len(tokens)) ** alpha for n in counts.values())) / (1 - alpha) / math.log2(vocab_size)


def test_renyi_efficiency_equals_the_published_examples() -> None:
    """The two of the README of tokenization-scorer, by the authors of the paper: of order 3, and |V| is what occurs."""
    for text, published in (
        ("pick @@ed pick @@l @@ed pick @@les", 0.8031528501359657),
        ("pick @@e @@d pick @@l @@e @@d pick @@l @@e @@s", 0.9105681923824472),
    ):
        counts = np.array(list(Counter(text.split()).values()))
        assert renyi_efficiency(counts, len(counts), alpha=3.0) == pytest.approx(published, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=50), st.integers(0, 50), st.sampled_from([0.5, 2.0, 2.5, 4.0])
)
def test_renyi_efficiency_equals_the_formula(counts: list[int], unused: int, alpha: float) -> None:
    tokens = [str(id_) for id_, count in enumerate(counts) for _ in range(count)]
    vocab_size = len(counts) + unused
    found = renyi_efficiency(np.array(counts), vocab_size, alpha)
    if not tokens or vocab_size < 2:
        assert found is None
    else:
        assert found == pytest.approx(renyi(tokens, vocab_size, alpha), abs=1e-9)
        assert 0 <= found <= 1 + 1e-9


def test_renyi_efficiency_is_one_for_a_vocabulary_used_evenly_and_zero_for_one_id() -> None:
    assert renyi_efficiency(np.full(64, 7), 64) == pytest.approx(1)
    assert renyi_efficiency(np.array([0, 9, 0]), 3) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=40))
def test_shares_by_rank_add_up(counts: list[int]) -> None:
    ordered = sorted(filter(None, counts), reverse=True)
    found = rank_shares(np.array(counts, np.int64))
    assert [rank for rank, _, _ in found] == sorted(
        {r for r in (1, 2, 4, 8, 16, 32) if r <= len(ordered)} | ({len(ordered)} if ordered else set())
    )
    for rank, share, so_far in found:
        assert share == pytest.approx(ordered[rank - 1] / sum(ordered))
        assert so_far == pytest.approx(sum(ordered[:rank]) / sum(ordered))


def test_each_id_has_its_own_bytes(subword: SubwordEncoder, reference: Tokenizer) -> None:
    ids = [reference.token_to_id(token) for token in ("Ġthe", "a", "<|endoftext|>")]
    assert token_bytes(subword, np.array(ids)).to_pylist() == [b" the", b"a", b""]
