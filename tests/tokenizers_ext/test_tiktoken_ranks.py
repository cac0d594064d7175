"""Rank files against a plain version of tiktoken's definition, with the pattern language of another library."""

import base64
import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from seqmill.errors import UserError
from seqmill.tokenizers_ext import copy_artifact, load
from seqmill.tokenizers_ext.byte_alphabet import unprintable
from seqmill.tokenizers_ext.merges import last_merges
from seqmill.tokenizers_ext.subword import SubwordEncoder
from seqmill.tokenizers_ext.tiktoken_ranks import ENCODINGS, convert_ranks, encoding_of_name

# The patterns as tiktoken publishes them, other ways to write the same.
PUBLISHED = {
    "r50k_base": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++\Z|\s+(?!\S)|\s",
    "cl100k_base": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++\Z"
        r"|\s*[\r\n]|\s+(?!\S)|\s"
    ),
}
PUBLISHED["p50k_base"] = PUBLISHED["r50k_base"]
PUBLISHED["o200k_base"] = ENCODINGS["o200k_base"].pattern
TEXT = st.text(st.sampled_from([*"aabtheTHE 's'LL09!.\n\r\t\x00/", "é", "日", "👩", "\u0301", "ſ"]), max_size=60)


@pytest.fixture(scope="session")
def ranks(tokenizer_json: bytes) -> dict[bytes, int]:
    """The tokens of a trained vocabulary as ranks, and two that bytes do not merge into."""
    vocab = json.loads(tokenizer_json)["model"]["vocab"]
    tokens = [unprintable(token) for token in sorted(vocab, key=vocab.__getitem__) if token != "<|endoftext|>"]
    return {token: rank for rank, token in enumerate([*tokens, b" Zyzzyva", b"qzxj"])}


def rank_file(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def tiktoken_ids(ranks: dict[bytes, int], pattern: str, text: str) -> list[int]:
    """Whole pieces first; else the lowest pair, the leftmost among equals, until no pair is a token."""
    ids: list[int] = []
    for piece in (match.encode() for match in regex.findall(pattern, text)):
        parts = [piece] if piece in ranks else [piece[k : k + 1] for k in range(len(piece))]
        while len(parts) > 1:
            rank, k = min((ranks.get(a + b, len(ranks)), k) for k, (a, b) in enumerate(pairwise(parts)))
            if rank == len(ranks):
                break
            parts[k : k + 2] = [parts[k] + parts[k + 1]]
        ids += [ranks[part] for part in parts]
    return ids


@pytest.fixture(scope="session")
def encoders(ranks: dict[bytes, int]) -> dict[str, SubwordEncoder]:
    def encoder(name: str) -> SubwordEncoder:
        return SubwordEncoder(convert_ranks(rank_file(ranks), ENCODINGS[name]))

    return {name: encoder(name) for name in ENCODINGS}


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXT | st.text(max_size=20), min_size=1, max_size=4), name=st.sampled_from(sorted(PUBLISHED)))
def test_ids_equal_the_definition_of_tiktoken(
    encoders: dict[str, SubwordEncoder], ranks: dict[bytes, int], texts: list[str], name: str
) -> None:
    found = encoders[name].encode(pa.array(texts)).to_pylist()
    assert found == [tiktoken_ids(ranks, PUBLISHED[name], text) for text in texts]


def test_every_known_encoding_is_encoded_fast_and_has_its_special_ids(encoders: dict[str, SubwordEncoder]) -> None:
    assert {encoder.engine for encoder in encoders.values()} == {"gigatoken"}
    assert {name: encoder.special_ids["eos"] for name, encoder in encoders.items()} == {
        "r50k_base": 50256,
        "p50k_base": 50256,
        "cl100k_base": 100257,
        "o200k_base": 199999,
    }
    assert encoders["cl100k_base"].vocab_size == 100_277
    assert encoders["o200k_base"].vocab_size == 200_019


def test_a_token_that_bytes_do_not_merge_into_is_found_as_a_whole_piece_only(
    encoders: dict[str, SubwordEncoder], ranks: dict[bytes, int]
) -> None:
    encode = encoders["r50k_base"].encode
    assert encode(pa.array([" Zyzzyva", "qzxj"])).to_pylist() == [[ranks[b" Zyzzyva"]], [ranks[b"qzxj"]]]
    assert ranks[b" Zyzzyva"] not in encode(pa.array([" Zyzzyvas"])).to_pylist()[0]


def test_the_special_tokens_of_an_encoding_are_text_in_documents(encoders: dict[str, SubwordEncoder]) -> None:
    encoder = encoders["cl100k_base"]
    ids = encoder.encode(pa.array(["<|endoftext|><|fim_prefix|>"]))
    assert max(ids.to_pylist()[0]) < 600
    assert encoder.decode(ids).to_pylist() == [b"<|endoftext|><|fim_prefix|>"]


def test_the_converted_file_has_the_same_ids_in_tokenizers(ranks: dict[bytes, int], tmp_path: Path) -> None:
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_bytes(rank_file(ranks))
    copy_artifact(path, tmp_path / "artifact")
    theirs = Tokenizer.from_file(str(tmp_path / "artifact" / "tokenizer.json"))
    assert theirs.token_to_id("<|endofprompt|>") == 100_276
    text = "The quick brown fox's 1234 jumps\n\n over <it>"
    loaded = load(tmp_path / "artifact")
    assert loaded.encode(pa.array([text])).to_pylist() == [theirs.encode(text).ids]
    assert loaded.fingerprint == load(path).fingerprint


def test_a_merge_follows_tiktoken_where_a_token_can_be_split_in_two_ways() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5, b"ca": 6, b"cab": 7}
    assert dict(zip(list(ranks)[3:], last_merges(ranks), strict=True)) == {
        b"bc": (b"b", b"c"),
        b"ab": (b"a", b"b"),
        b"abc": (b"a", b"bc"),
        b"ca": (b"c", b"a"),
        b"cab": (b"c", b"ab"),
    }


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'mine' is no encoding.*r50k_base, p50k_base, cl100k_base, o200k_base"):
        encoding_of_name(Path("mine.tiktoken"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda contents: b"", "256 bytes have no token"),
        (lambda contents: contents[:1000], "(bytes have no token|line [0-9]+ is no token)"),
        (lambda contents: contents + b"!!! 7\n", "is no token in base64"),
        (lambda contents: contents + b"QUFB\n", "is no token in base64"),
        (lambda contents: contents + b"QUFBQUFB 3\n", "ambiguous"),
        (lambda contents: contents + contents.splitlines()[5], "ambiguous"),
        (lambda contents: contents + b"QUFBQUFB 50256\n", "special ids"),
    ],
)
def test_damaged_rank_files_are_refused(ranks: dict[bytes, int], damage: object, message: str) -> None:
    assert callable(damage)
    with pytest.raises(UserError, match=message):
        convert_ranks(damage(rank_file(ranks)), ENCODINGS["r50k_base"])
