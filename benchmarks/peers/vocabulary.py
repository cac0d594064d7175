"""Reading a byte-level BPE out of a tokenizer.json, with the standard library."""

import json
from pathlib import Path
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def read(tokenizer: Path) -> dict[str, Any]:
    """The description in an artifact folder."""
    described: dict[str, Any] = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    return described


def without_special_tokens(tokenizer: Path) -> str:
    """The description as text, without the added tokens that would be cut out of documents."""
    described = read(tokenizer)
    kept = [token for token in described.get("added_tokens", []) if not token["special"]]
    return json.dumps({**described, "added_tokens": kept})


def ranks(described: dict[str, Any]) -> dict[bytes, int]:
    """Bytes of each token -> id, special tokens left out."""
    special = {token["id"] for token in described.get("added_tokens", [])}
    byte_of = _byte_of_character()
    vocabulary = described["model"]["vocab"].items()
    return {bytes(map(byte_of.__getitem__, token)): id_ for token, id_ in vocabulary if id_ not in special}


def pattern(described: dict[str, Any]) -> str:
    """The regular expression that splits a text."""
    steps = described["pre_tokenizer"].get("pretokenizers", [described["pre_tokenizer"]])
    split = [step["pattern"]["Regex"] for step in steps if step["type"] == "Split"]
    return split[0] if split else GPT2


def _byte_of_character() -> dict[str, int]:
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(0x100 + k): byte for k, byte in enumerate(others)}
