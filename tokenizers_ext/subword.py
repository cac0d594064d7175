"""Subword tokenizers described by a Hugging Face `tokenizer.json`.

Encoding runs in gigatoken where it gives the same ids as `tokenizers` on a torture sample, else in `tokenizers`.
Decoding a byte-level vocabulary is a gather from a table of token bytes.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from tokenizers import Tokenizer, pre_tokenizers

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import as_large_binary, list_array
from seqmill.tokenizers_ext.gather import concatenate_pieces

logger = logging.getLogger(__name__)

# Scripts, white space, controls, joiners, digits and things that look like special tokens: where encoders differ.
TORTURE_SAMPLE = (
    "",
    " ",
    "Don't  stop\tnow\r\n\n\nplease!!  ",
    "naïve café Ünïcödé Ελληνικά Русский עברית العربية हिन्दी ไทย 日本語 中文 한국어",
    "e\u0301 \u200b\u200d\ufeff \u00a0\u2028\u3000 👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈 🇩🇪",
    "0123456789 3.14159 1,000,000 0x1F 1e-9 ½ ² Ⅷ ٣",
    "for (i=0;i<n;++i) { x[i] ^= ~y[i] << 3; } // ok_then __init__ $HOME `ls` \\n",
    "<|endoftext|> <s></s> [CLS] <pad> <|im_start|>system",
    "\x00\x01\x7f\x1b[0m",
    "^" * 300 + "a" * 300 + "ab" * 150 + " " * 70,
)
END_OF_TEXT = "<|endoftext|>"
EOS_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]")


class SubwordEncoder:
    """A `tokenizer.json` behind the Encoder protocol."""

    kind = "subword"

    def __init__(self, tokenizer_json: bytes, special_ids: Mapping[str, int] | None = None) -> None:
        """Parse and self-check a tokenizer.

        Args:
            tokenizer_json: the contents of a Hugging Face `tokenizer.json`.
            special_ids: role -> id; by default the usual names for the end and padding tokens are looked up.

        Raises:
            UserError: `tokenizers` cannot read it.
        """
        try:
            self._reference = Tokenizer.from_str(tokenizer_json.decode())
        except Exception as error:  # tokenizers raises plain Exception
            raise UserError(f"not a tokenizer.json that `tokenizers` can read: {error}") from error
        self._reference.encode_special_tokens = True  # documents are data: special tokens come from us, by id
        self._reference.no_truncation()
        self._reference.no_padding()
        self._description: dict[str, Any] = orjson.loads(tokenizer_json)
        self.fingerprint = hashlib.sha256(tokenizer_json).hexdigest()
        self.vocab_size = 1 + max(self._reference.get_vocab(with_added_tokens=True).values())
        self.special_ids = dict(self._find_special_ids() if special_ids is None else special_ids)
        self._encode_flat, self.engine = self._choose_engine()

    def encode(self, texts: pa.Array) -> pa.ListArray:
        """Ids of every document, equal to those of `tokenizers` without special tokens; see `Encoder.encode`."""
        if not len(texts):
            return list_array(np.zeros(1, np.int64), np.empty(0, np.uint32), self.vocab_size)
        offsets, values = self._encode_flat(as_large_binary(texts))
        return list_array(offsets, values, self.vocab_size)

    def decode(self, ids: pa.ListArray) -> pa.LargeBinaryArray:
        """Bytes of every document; see `Encoder.decode`."""
        values = ids.flatten().to_numpy()
        if len(values) and values.max() >= self.vocab_size:
            raise UserError(f"id {values.max()} is outside the vocabulary of {self.vocab_size} ids")
        ends = np.cumsum(np.diff(ids.offsets.to_numpy()), dtype=np.int64)
        offsets = np.concatenate([[0], ends])
        if self._token_bytes is None:
            texts = self._reference.decode_batch([values[a:b].tolist() for a, b in zip(offsets, ends, strict=False)])
            return pa.array(texts, pa.large_string()).cast(pa.large_binary())
        piece_offsets, pieces = self._token_bytes
        return concatenate_pieces(values, offsets, piece_offsets, pieces)

    def _choose_engine(self) -> tuple[Callable[[pa.Array], tuple[np.ndarray, np.ndarray]], str]:
        """gigatoken if it agrees with `tokenizers` on the torture sample, else `tokenizers`."""
        sample = pa.array(TORTURE_SAMPLE, pa.large_binary())
        expected = self._encode_with_tokenizers(sample)
        try:
            fast = _gigatoken_engine(self._description)
            found = fast(sample)
        except Exception as error:  # an unsupported tokenizer may fail in any way: the reference takes over
            logger.info("gigatoken does not take this tokenizer (%s); encoding with tokenizers", error)
            return self._encode_with_tokenizers, "tokenizers"
        if all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True)):
            return fast, "gigatoken"
        logger.warning("gigatoken gives other ids than tokenizers for this tokenizer; encoding with tokenizers")
        return self._encode_with_tokenizers, "tokenizers"

    def _encode_with_tokenizers(self, texts: pa.LargeBinaryArray) -> tuple[np.ndarray, np.ndarray]:
        try:
            strings = texts.cast(pa.large_string()).to_pylist()
        except pa.ArrowInvalid as error:
            raise UserError(f"this tokenizer takes valid UTF-8 only ({error}); use a byte tokenizer") from error
        encodings = self._reference.encode_batch_fast(strings, add_special_tokens=False)
        lists = [encoding.ids for encoding in encodings]
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in lists], dtype=np.int64)])
        values = np.concatenate([np.asarray(ids, np.uint32) for ids in lists])
        return offsets, values

    def _find_special_ids(self) -> dict[str, int]:
        roles = {"eos": EOS_NAMES, "pad": PAD_NAMES}
        found = {role: [self._reference.token_to_id(name) for name in names] for role, names in roles.items()}
        return {
            role: next(id_ for id_ in ids if id_ is not None)
            for role, ids in found.items()
            if any(id_ is not None for id_ in ids)
        }

    @cached_property
    def _token_bytes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Offsets int64[vocab_size + 1] into the bytes of all tokens, or None when decoding is no concatenation.

        A byte-level vocabulary writes every byte as one printable character: 0x20 as "Ġ", 0x0A as "Ċ".
        """
        if (self._description.get("decoder") or {}).get("type") != "ByteLevel":
            return None
        byte_of = byte_of_character()
        special = {token["id"] for token in self._description["added_tokens"] if token["special"]}
        added = {token["id"]: token["content"].encode() for token in self._description["added_tokens"]}
        pieces = [b""] * self.vocab_size
        for token, id_ in self._reference.get_vocab(with_added_tokens=True).items():
            if id_ not in special:
                pieces[id_] = added.get(id_) or bytes(byte_of[character] for character in token)
        offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])
        return offsets, np.frombuffer(b"".join(pieces), np.uint8)


def _gigatoken_engine(description: dict[str, Any]) -> Callable[[pa.Array], tuple[np.ndarray, np.ndarray]]:
    """A function from binary arrays to flat ids, without a Python object per document.

    The special added tokens are left out of the description, so that text never becomes one.
    """
    import awkward
    from gigatoken import Tokenizer as FastTokenizer

    plain = [token for token in description.get("added_tokens", []) if not token["special"]]
    native = FastTokenizer.from_json(orjson.dumps({**description, "added_tokens": plain}))

    def encode(texts: pa.LargeBinaryArray) -> tuple[np.ndarray, np.ndarray]:
        layout = awkward.to_layout(native.encode_batch(awkward.from_arrow(texts))).to_ListOffsetArray64(True)
        offsets = np.asarray(layout.offsets)
        return offsets, np.asarray(layout.content.data)[: offsets[-1]]

    return encode


def byte_of_character() -> dict[str, int]:
    """Printable stand-in -> byte, the alphabet of byte-level BPE (GPT-2): printable Latin-1 stands for itself, the
    68 other bytes follow from U+0100 on in increasing order."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    table = {chr(byte): byte for byte in itself} | {chr(0x100 + k): byte for k, byte in enumerate(others)}
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    return table


def load_tokenizer_json(path: Path) -> SubwordEncoder:
    """The encoder for a `tokenizer.json` that came without a `seqmill.json`.

    Raises:
        UserError: the file is missing or is no tokenizer.json.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: give a tokenizer.json or a folder written by `seqmill tokenizer train`")
    return SubwordEncoder(path.read_bytes())
