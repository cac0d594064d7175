"""Vocabularies of GGUF files against plain byte-pair merging, with the pattern language of another library."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from seqmill.errors import UserError
from seqmill.tokenizers_ext.byte_alphabet import printable
from seqmill.tokenizers_ext.gguf_vocabulary import (
    ADDS_START,
    MERGES,
    MODEL,
    RULE,
    RULES,
    TOKENS,
    TYPES,
    TokenType,
    convert_vocabulary,
)
from seqmill.tokenizers_ext.subword import SubwordEncoder

# The patterns as the models publish them; that of GPT-2 in another way to write it.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++\Z|\s+(?!\S)|\s"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def pieces_of(pattern: str, text: str) -> list[str]:
    found: list[str] = regex.findall(pattern, text)
    return found


CUTS: dict[str, Callable[[str], list[str]]] = {
    "gpt-2": lambda text: pieces_of(WORDS, text),
    "smollm": lambda text: [piece for part in pieces_of(r"\p{N}|\P{N}+", text) for piece in pieces_of(WORDS, part)],
    "llama-bpe": lambda text: pieces_of(LLAMA3, text),
    "qwen2": lambda text: pieces_of(LLAMA3.replace("{1,3}", ""), text),
}
CONTROL, USER, UNUSED = "<|end|>", "<think>", "[PAD9]"
TEXT = st.text(st.sampled_from([*"aabtheTHE 's'LL0123.\n\r\t\x00", "é", "日", "👩", "\u0301", "½", "٣"]), max_size=40)


@pytest.fixture(scope="session")
def metadata(tokenizer_json: bytes) -> dict[str, Any]:
    """A trained vocabulary and four more tokens, the last of which no merge makes."""
    model = json.loads(tokenizer_json)["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].__getitem__), CONTROL, USER, UNUSED, printable(b" qzx")]
    types = [TokenType.NORMAL] * len(tokens)
    types[0] = TokenType.CONTROL
    types[-4:-1] = [TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED]
    merges = [" ".join(merge) for merge in model["merges"]]
    ids = {"tokenizer.ggml.eos_token_id": len(tokens) - 4, "tokenizer.ggml.padding_token_id": 0}
    return {MODEL: "gpt2", RULE: "gpt-2", TOKENS: tokens, TYPES: list(map(int, types)), MERGES: merges, **ids}


def encoder_of(metadata: dict[str, Any], **changes: Any) -> SubwordEncoder:
    return SubwordEncoder(*convert_vocabulary({**metadata, **changes}))


def encoded(encoder: SubwordEncoder, text: str) -> list[int]:
    ids: list[int] = encoder.encode(pa.array([text]))[0].as_py()
    return ids


def merged_ids(metadata: dict[str, Any], rule: str, text: str) -> list[int]:
    """The earliest merge first, the leftmost among equals, until there is none."""
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(metadata[MERGES])}
    ids_of = {token: id_ for id_, token in enumerate(metadata[TOKENS])}
    ids: list[int] = []
    for piece in CUTS[rule](text):
        parts = list(printable(piece.encode()))
        if RULES[rule].takes_whole and "".join(parts) in ids_of:
            parts = ["".join(parts)]
        while len(parts) > 1:
            rank, k = min((ranks.get((parts[k], parts[k + 1]), len(ranks)), k) for k in range(len(parts) - 1))
            if rank == len(ranks):
                break
            parts[k : k + 2] = [parts[k] + parts[k + 1]]
        ids += [ids_of[part] for part in parts]
    return ids


@pytest.mark.parametrize("rule", CUTS)
def test_ids_are_those_of_plain_merging(metadata: dict[str, Any], rule: str) -> None:
    encoder = encoder_of(metadata, **{RULE: rule})

    @settings(max_examples=60)
    @given(text=TEXT)
    def check(text: str) -> None:
        assert encoded(encoder, text) == merged_ids(metadata, rule, text)

    check()
    for text in ("In 1969, it's  the   12345\n\n\t qzx", "", "THE'LL ½٣ 3.14", " qzx qzx"):
        assert encoded(encoder, text) == merged_ids(metadata, rule, text)
        assert encoder.decode(encoder.encode(pa.array([text]))).to_pylist() == [text.encode()]


def test_a_vocabulary_that_begins_texts_with_an_id_says_so_as_tokenizers_does(metadata: dict[str, Any]) -> None:
    start = len(metadata[TOKENS]) - 4
    roles = {"tokenizer.ggml.bos_token_id": start, ADDS_START: True}
    encoder = encoder_of(metadata, **roles)
    assert encoder.start_id == start
    assert encoded(encoder, "the cat") == encoded(encoder_of(metadata), "the cat")
    theirs = Tokenizer.from_str(convert_vocabulary({**metadata, **roles})[0].decode())
    assert theirs.encode("the cat").ids == [start, *encoded(encoder, "the cat")]
    assert encoder_of(metadata, **{**roles, ADDS_START: False}).start_id is None
    assert encoder_of(metadata, **{RULE: "llama-bpe", "tokenizer.ggml.bos_token_id": start}).start_id == start
    assert encoder_of(metadata, **{RULE: "llama-bpe"}).start_id is None
    named = [*metadata[TOKENS][:start], "$A:1", *metadata[TOKENS][start + 1 :]]
    assert encoder_of(metadata, **roles, **{TOKENS: named}).start_id == start
    with pytest.raises(UserError, match=r"add_bos_token is true, but tokenizer\.ggml\.bos_token_id is missing"):
        encoder_of(metadata, **{ADDS_START: True})


def test_only_the_rules_of_llama_take_a_token_that_no_merge_makes(metadata: dict[str, Any]) -> None:
    last = len(metadata[TOKENS]) - 1
    assert encoded(encoder_of(metadata, **{RULE: "llama3"}), " qzx") == [last]
    assert last not in encoded(encoder_of(metadata), " qzx")


@pytest.mark.parametrize("rule", RULES)
def test_control_tokens_stay_text_and_those_of_the_user_do_not(metadata: dict[str, Any], rule: str) -> None:
    encoder = encoder_of(metadata, **{RULE: rule})
    end, user, unused = np.arange(len(metadata[TOKENS]) - 4, len(metadata[TOKENS]) - 1).tolist()
    text = f"a{CONTROL}b{USER}c {UNUSED}"
    ids = encoded(encoder, text)
    assert user in ids
    assert not {end, unused} & set(ids)
    assert encoder.decode(pa.array([ids], pa.list_(pa.uint32()))).to_pylist() == [text.encode()]
    assert encoder.special_ids == {"eos": end, "pad": 0}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({MODEL: "llama"}, "tokenizer.ggml.model = 'llama': only byte-level BPE"),
        ({MODEL: None}, "tokenizer.ggml.model = None"),
        ({RULE: "chameleon"}, "tokenizer.ggml.pre = 'chameleon': how that cuts text is not known here .*smollm"),
        ({TOKENS: []}, "there is no tokenizer.ggml.tokens"),
        ({MERGES: None}, "there is no tokenizer.ggml.merges"),
        ({TYPES: [1, 1]}, r"\d+ tokenizer.ggml.tokens have 2 tokenizer.ggml.token_type"),
        ({MERGES: ["t zzz"]}, "tokenizer.ggml.merges do not fit tokenizer.ggml.tokens"),
        ({MERGES: ["t"]}, "tokenizer.ggml.merges do not fit tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, r"eos_token_id = 1000000, but there are \d+ tokens"),
    ],
)
def test_vocabularies_that_cannot_be_read_are_refused(
    metadata: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        convert_vocabulary({**metadata, **changes})


def test_a_file_without_a_rule_is_not_guessed_at(metadata: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="pre = 'default'"):
        convert_vocabulary({key: value for key, value in metadata.items() if key != RULE})
