"""What every tokenizer of the project can do: Arrow text in, Arrow ids out, and exactly back again."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError

INT32_MAX = 2**31 - 1


class Encoder(Protocol):
    """A tokenizer. Documents are data: text that spells a special token is encoded as text, never as its id."""

    @property
    def kind(self) -> str:
        """ "subword", "byte", "kmer", "merged" or "equal-info"."""
        ...

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special ids included."""
        ...

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Role ("eos", "pad") -> id, for the roles that this tokenizer has."""
        ...

    @property
    def fingerprint(self) -> str:
        """64 hex digits that change whenever any id could."""
        ...

    def encode(self, texts: pa.Array) -> pa.ListArray:
        """Ids of every document.

        Args:
            texts: (large_)string or (large_)binary, without nulls.

        Returns:
            list<uint16> when `vocab_size` <= 65,536, else list<uint32>; one list a document, offsets from 0.

        Raises:
            UserError: the array holds nulls or another type, or more than 2**31 - 1 tokens in one call.
        """
        ...

    def decode(self, ids: pa.ListArray) -> pa.LargeBinaryArray:
        """Bytes of every document; special ids add nothing. The inverse of `encode` for lossless tokenizers.

        Raises:
            UserError: an id lies outside the vocabulary.
        """
        ...


def id_type(vocab_size: int) -> pa.DataType:
    """The narrowest unsigned type that holds every id: uint16 exactly when `vocab_size` <= 65,536."""
    return pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()


def as_large_binary(texts: pa.Array) -> pa.LargeBinaryArray:
    """The bytes of a text or binary column, without nulls, with 64-bit offsets.

    Raises:
        UserError: nulls, or a column that is neither text nor binary.
    """
    accepted = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view(), pa.binary_view())
    if texts.type not in accepted:
        raise UserError(f"cannot encode a column of type {texts.type}: string or binary is needed; cast it first")
    if texts.null_count:
        raise UserError(f"cannot encode {texts.null_count} null documents: drop them or fill them with '' first")
    return texts.cast(pa.large_binary())


def offsets_and_bytes(texts: pa.LargeBinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """Views of a binary column's buffers: offsets int64[documents + 1] into bytes uint8[...]. Slices are respected.

    Neither can be written to, whoever made the buffers: kernels are compiled anew for arrays that can.
    """
    _, offsets_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer else np.empty(0, np.uint8)
    offsets.flags.writeable = data.flags.writeable = False
    return offsets, data


def list_array(offsets: np.ndarray, values: np.ndarray, vocab_size: int) -> pa.ListArray:
    """Wrap flat ids as list<uint16|uint32> without a copy where the type already fits.

    Args:
        offsets: int64[documents + 1], starting at 0.
        values: integers[offsets[-1]].

    Raises:
        UserError: more than 2**31 - 1 ids, the limit of a list array's offsets.
    """
    if offsets[-1] > INT32_MAX:
        raise UserError(
            f"{offsets[-1]} tokens in one batch exceed {INT32_MAX}, the limit of an Arrow list; "
            "encode fewer documents at a time, or split the largest document"
        )
    narrow = values.astype(id_type(vocab_size).to_pandas_dtype(), copy=False)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(narrow))


def flat_ids(ids: pa.ListArray, vocab_size: int) -> np.ndarray:
    """The ids of all documents, integers[tokens].

    Raises:
        UserError: one lies outside the vocabulary.
    """
    values: np.ndarray = ids.flatten().to_numpy()
    if len(values) and not 0 <= values.min() <= values.max() < vocab_size:
        outside = values.min() if values.min() < 0 else values.max()
        raise UserError(f"id {outside} is outside the vocabulary of {vocab_size} ids")
    return values


def document_offsets(ids: pa.ListArray) -> np.ndarray:
    """Where each list begins in `ids.flatten()`, and the end of the last: int64[documents + 1], also for a slice."""
    offsets = ids.offsets.to_numpy()
    return offsets.astype(np.int64) - offsets[0]


def append_id(ids: pa.ListArray, special: int) -> pa.ListArray:
    """Put one id behind every list, for example the end-of-document id: [[5, 6], []] with 9 -> [[5, 6, 9], [9]]."""
    offsets = ids.offsets.to_numpy()
    start = offsets[0]
    values = ids.values.to_numpy()[start : offsets[-1]]
    ends = offsets[1:] - start + np.arange(len(ids))  # where each appended id lands
    longer = np.empty(len(values) + len(ids), values.dtype)
    is_text = np.ones(len(longer), bool)
    is_text[ends] = False
    longer[is_text] = values
    longer[ends] = special
    new_offsets = np.concatenate([[0], ends + 1])
    if new_offsets[-1] > INT32_MAX:
        raise UserError(f"{new_offsets[-1]} tokens in one batch exceed {INT32_MAX}; use smaller batches")
    return pa.ListArray.from_arrays(pa.array(new_offsets.astype(np.int32)), pa.array(longer))
