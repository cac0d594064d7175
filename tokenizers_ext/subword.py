"""Subword tokenizers described by a Hugging Face `tokenizer.json`, behind the Encoder protocol.

Encoding runs in one of two engines; decoding is a gather from a table of token bytes wherever it is a concatenation.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import (
    as_large_binary,
    document_offsets,
    flat_ids,
    id_type,
    list_array,
    offsets_and_bytes,
)
from seqmill.tokenizers_ext.engines import Limits, can_cut_lines, choose_engine, encode_within
from seqmill.tokenizers_ext.formats import read_tokenizer_file
from seqmill.tokenizers_ext.gather import concatenate_pieces, without_first_space
from seqmill.tokenizers_ext.pieces import Pieces, pieces_of
from seqmill.tokenizers_ext.tokenizer_json import (
    Description,
    parse_tokenizer_json,
    reference_tokenizer,
    template_start,
    vocabulary,
    vocabulary_size,
    with_special_tokens_hidden,
)

END_OF_TEXT = "<|endoftext|>"
EOS_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]")
DECODED_AT_ONCE = 1 << 20  # ids that are held as Python integers at a time, unless one document has more


class SubwordEncoder:
    """A `tokenizer.json` behind the Encoder protocol."""

    kind = "subword"

    def __init__(
        self,
        tokenizer_json: bytes,
        special_ids: Mapping[str, int] | None = None,
        parse_special: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """Parse and self-check a tokenizer.

        Args:
            tokenizer_json: the contents of a Hugging Face `tokenizer.json`.
            special_ids: role -> id; by default the usual names for the end and padding tokens are looked up.
            parse_special: whether text that spells a special token becomes its id; documents are data by default.
            limits: how much is held at once; ids do not depend on it.

        Raises:
            UserError: it is damaged, ambiguous, or not to be read by `tokenizers`.
        """
        self.fingerprint = hashlib.sha256(tokenizer_json).hexdigest()
        self._description = parse_tokenizer_json(tokenizer_json)
        self.vocab_size = vocabulary_size(self._description)
        self.special_ids = dict(_find_special_ids(self._description) if special_ids is None else special_ids)
        taken = self._description
        if not parse_special and _finds_whole_words(taken):
            taken = with_special_tokens_hidden(taken, self.fingerprint)
        self._reference = reference_tokenizer(taken, parse_special)
        self._engine = choose_engine(taken, self._reference, parse_special, limits or Limits())
        self._by_lines = can_cut_lines(taken, parse_special)

    @property
    def engine(self) -> str:
        """ "gigatoken", or "tokenizers" where that does not take the tokenizer or would give other ids."""
        return self._engine.name

    def encode(self, texts: pa.Array) -> pa.ListArray:
        """Ids of every document, equal to those of `tokenizers` without special tokens; see `Encoder.encode`."""
        type_ = id_type(self.vocab_size).to_pandas_dtype()
        if not len(texts):
            return list_array(np.zeros(1, np.int64), np.empty(0, type_), self.vocab_size)
        offsets, ids = encode_within(self._engine, *offsets_and_bytes(as_large_binary(texts)), type_, self._by_lines)
        return list_array(offsets, ids, self.vocab_size)

    def decode(self, ids: pa.ListArray) -> pa.LargeBinaryArray:
        """Bytes of every document; see `Encoder.decode`."""
        values, offsets = flat_ids(ids, self.vocab_size), document_offsets(ids)
        pieces = self.pieces
        if pieces is None:
            return self._decode_with_tokenizers(values, offsets)
        documents = concatenate_pieces(values, offsets, pieces.offsets, pieces.data)
        return without_first_space(documents) if pieces.strips_space else documents

    @property
    def start_id(self) -> int | None:
        """The id that its own template puts before a text. Documents are encoded without; models of others that were
        trained with it need it.

        Raises:
            UserError: there are several.
        """
        return template_start(self._description)

    @cached_property
    def pieces(self) -> Pieces | None:
        """The bytes of every id, or None where a document is not the concatenation of its tokens' bytes."""
        return pieces_of(self._description)

    def character_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids uint32[tokens] of a document, and int64[tokens, 2]: the characters that each comes from."""
        encoding = self._reference.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, np.uint32), np.array(encoding.offsets, np.int64).reshape(-1, 2)

    def _decode_with_tokenizers(self, values: np.ndarray, offsets: np.ndarray) -> pa.LargeBinaryArray:
        """Some documents at a time: `tokenizers` takes Python lists only."""
        decoded = []
        first = 0
        while first < len(offsets) - 1:
            fitting = int(np.searchsorted(offsets, offsets[first] + DECODED_AT_ONCE, "right")) - 1
            stop = max(fitting, first + 1)
            lists = [values[a:b].tolist() for a, b in pairwise(offsets[first : stop + 1])]
            texts = pa.array(self._reference.decode_batch(lists), pa.large_string())
            decoded.append(texts.cast(pa.large_binary()))
            first = stop
        return pa.concat_arrays(decoded) if decoded else pa.array([], pa.large_binary())


def load_tokenizer_file(path: Path, parse_special: bool = False) -> SubwordEncoder:
    """The encoder for a tokenizer.json, tiktoken rank file or sentencepiece model without a `seqmill.json`.

    Raises:
        UserError: the file is missing or is no tokenizer.
    """
    try:
        return SubwordEncoder(read_tokenizer_file(path), parse_special=parse_special)
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error


def _finds_whole_words(description: Description) -> bool:
    """Whether the model itself may take a text for a special token; one that only merges bytes never does."""
    model = description["model"]
    return model["type"] != "BPE" or bool(model.get("ignore_merges"))


def _find_special_ids(description: Description) -> dict[str, int]:
    added = {token["content"]: token["id"] for token in description["added_tokens"]}
    ids = dict(vocabulary(description)) | added
    roles = {"eos": EOS_NAMES, "pad": PAD_NAMES}
    named = {role: [ids[name] for name in names if name in ids] for role, names in roles.items()}
    return {role: found[0] for role, found in named.items() if found}
