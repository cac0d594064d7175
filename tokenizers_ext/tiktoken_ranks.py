"""tiktoken rank files (`NAME.tiktoken`) as Hugging Face `tokenizer.json`, so that everything behind is one path.

A rank file holds a token in base64 and its rank a line, and nothing else. The pattern that cuts text into pieces and
the special tokens are published facts of each encoding, known here by the file's name.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.tokenizers_ext.byte_alphabet import printable
from seqmill.tokenizers_ext.merges import last_merges
from seqmill.tokenizers_ext.patterns import CL100K_PATTERN, GPT2_PATTERN, O200K_PATTERN


@dataclass(frozen=True)
class RankEncoding:
    """What a rank file does not say about its encoding."""

    pattern: str  # regular expression whose matches are the pieces that are merged separately
    special: Mapping[str, int] = field(default_factory=dict)  # special token -> id, beyond the ranks or in a gap


ENCODINGS = {
    "r50k_base": RankEncoding(GPT2_PATTERN, {"<|endoftext|>": 50256}),
    "p50k_base": RankEncoding(GPT2_PATTERN, {"<|endoftext|>": 50256}),
    "cl100k_base": RankEncoding(
        CL100K_PATTERN,
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": RankEncoding(O200K_PATTERN, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
}


def encoding_of_name(path: Path) -> RankEncoding:
    """The published facts of the encoding that a rank file is named after.

    Raises:
        UserError: the name is not a known one.
    """
    if path.stem not in ENCODINGS:
        raise UserError(
            f"{path}: a rank file does not say how it cuts text, and {path.stem!r} is no encoding known by name "
            f"({', '.join(ENCODINGS)}): name the file after one of them, or convert it with its pattern: "
            "seqmill.tokenizers_ext.tiktoken_ranks.convert_ranks(contents, RankEncoding(pattern, special))"
        )
    return ENCODINGS[path.stem]


def convert_ranks(contents: bytes, encoding: RankEncoding) -> bytes:
    """A `tokenizer.json` with the ids that tiktoken gives for these ranks.

    Raises:
        UserError: a line that is no base64 and number, tokens or ranks that occur twice, or a byte without a token.
    """
    ranks = _read_ranks(contents)
    taken = set(ranks.values())
    clash = {name: id_ for name, id_ in encoding.special.items() if id_ in taken}
    if clash:
        raise UserError(
            f"special ids {clash} are ranks of the file: this is not the file of the encoding it is named after"
        )
    description: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": name, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for name, id_ in sorted(encoding.special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(encoding.pattern),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # tiktoken looks a whole piece up first: some tokens are reached in no other way
            # `tokenizers` would number special tokens from the end of the vocabulary on, were they not in it
            "vocab": {printable(token): rank for token, rank in ranks.items()} | dict(encoding.special),
            "merges": [[printable(left), printable(right)] for left, right in last_merges(ranks)],
        },
    }
    return json.dumps(description, ensure_ascii=False).encode()


def _pre_tokenizer(pattern: str) -> dict[str, Any]:
    """GPT-2's pattern is built into the ByteLevel pre-tokenizer, where fast engines look for it."""
    own = pattern == GPT2_PATTERN
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": own}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return byte_level if own else {"type": "Sequence", "pretokenizers": [split, byte_level]}


def _read_ranks(contents: bytes) -> dict[bytes, int]:
    """Token -> rank, by increasing rank."""
    ranks: dict[bytes, int] = {}
    lines = contents.splitlines()
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise UserError(
                f"line {number} is no token in base64 and its rank ({error}): the file is damaged or no rank file"
            ) from error
    tokens = sum(map(bool, lines))
    if len(ranks) != tokens or len(set(ranks.values())) != tokens:
        raise UserError(
            f"{tokens} lines hold {len(ranks)} tokens and {len(set(ranks.values()))} ranks: ids would be ambiguous; "
            "every token and every rank may occur once"
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(f"{len(missing)} bytes have no token (the first is {missing[0]:#04x}): the file is cut short")
    return dict(sorted(ranks.items(), key=lambda item: item[1]))
