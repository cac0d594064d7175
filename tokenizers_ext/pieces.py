"""The bytes behind every id, for tokenizers that decode by putting them side by side."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqmill.tokenizers_ext.byte_alphabet import unprintable
from seqmill.tokenizers_ext.tokenizer_json import Description, vocabulary, vocabulary_size

BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Pieces:
    """Bytes by id; special ids have none."""

    offsets: np.ndarray  # int64[vocab_size + 1] into `data`
    data: np.ndarray  # uint8[...]
    strips_space: bool  # whether the first space of a document is an addition of the encoder

    def lengths(self) -> np.ndarray:
        """Bytes of every id, int64[vocab_size]."""
        return np.diff(self.offsets)


def pieces_of(description: Description) -> Pieces | None:
    """None where decoding is no concatenation: tokens are joined by spaces, or by rules of another kind."""
    decoder = description.get("decoder") or {}
    if decoder.get("type") == "ByteLevel":
        return _table(description, _byte_level, strips_space=False)
    steps = [_without_defaults(step) for step in decoder.get("decoders", [])]
    plain = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    if decoder.get("type") == "Sequence" and steps in (plain, [*plain, strip]):
        return _table(description, _with_byte_names, strips_space=strip in steps)
    return None


def _byte_level(token: str) -> bytes:
    """The bytes of a byte-level token; one with characters outside the alphabet stands for itself."""
    try:
        return unprintable(token)
    except KeyError:
        return token.encode()


def _with_byte_names(token: str) -> bytes:
    """The bytes of a sentencepiece token: "▁a" -> b" a", "<0x0A>" -> the line break."""
    name = BYTE_NAME.fullmatch(token)
    return bytes.fromhex(name[1]) if name else token.replace("▁", " ").encode()


def _without_defaults(step: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in step.items() if value is not None}


def _table(description: Description, bytes_of: Any, strips_space: bool) -> Pieces:
    pieces = [b""] * vocabulary_size(description)
    added = {token["id"]: token for token in description["added_tokens"]}
    for token, id_ in vocabulary(description):
        if id_ not in added:
            pieces[id_] = bytes_of(token)
    for id_, token in added.items():
        pieces[id_] = b"" if token["special"] else token["content"].encode()
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])
    return Pieces(offsets, np.frombuffer(b"".join(pieces), np.uint8), strips_space)
