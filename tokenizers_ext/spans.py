"""Which bytes of its document each token stands for."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.tokenizers_ext.byte_level import ByteEncoder
from seqmill.tokenizers_ext.encoder import Encoder, as_large_binary, document_offsets, offsets_and_bytes
from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder
from seqmill.tokenizers_ext.subword import SubwordEncoder

UINT32_MAX = 2**32 - 1


@dataclass(frozen=True)
class Spans:
    """Token k of a document is its bytes starts[k] to ends[k]; three columns of equal lists."""

    ids: pa.ListArray  # list<uint16|uint32>, as `Encoder.encode` gives them
    starts: pa.ListArray  # list<uint32>, bytes
    ends: pa.ListArray  # list<uint32>, bytes; behind the last byte


def spans(encoder: Encoder, texts: pa.Array) -> Spans:
    """Encode documents and say where every token comes from.

    Where a document is the concatenation of its tokens' bytes, the spans follow from their lengths: they touch each
    other and cover the document, and a character may be split over several. Where a normaliser changed the document,
    they are those of `tokenizers`: whole characters, which tokens may share or leave out.

    Args:
        encoder: a subword, byte or equal-info tokenizer.
        texts: as for `Encoder.encode`.

    Raises:
        UserError: a tokenizer of another kind, or a document of 4 GiB or more.
    """
    documents = as_large_binary(texts)
    byte_offsets, data = offsets_and_bytes(documents)
    if np.diff(byte_offsets).max(initial=0) > UINT32_MAX:
        raise UserError(f"spans count bytes in 32 bits, a document has {np.diff(byte_offsets).max()}; cut it first")
    ids = encoder.encode(documents)
    flat, offsets = ids.flatten().to_numpy(), document_offsets(ids)
    strips = False
    if isinstance(encoder, ByteEncoder):
        lengths = np.ones(len(flat), np.int64)
    elif isinstance(encoder, EqualInfoEncoder):
        lengths = encoder.lengths_of(flat, offsets)
    elif isinstance(encoder, SubwordEncoder):
        pieces = encoder.pieces
        lengths = pieces.lengths()[flat] if pieces else np.zeros(len(flat), np.int64)
        strips = bool(pieces and pieces.strips_space)
    else:
        raise UserError(f"spans of a {encoder.kind} tokenizer are not known; use a subword, byte or equal-info one")
    ends = np.cumsum(lengths)
    before = np.concatenate([np.zeros(1, np.int64), ends])[offsets]  # bytes of tokens in front of each document
    ends -= np.repeat(before[:-1], np.diff(offsets))
    starts = ends - lengths
    if strips:  # the first token stands for a space more than the document has
        starts, ends = np.maximum(starts - 1, 0), np.maximum(ends - 1, 0)
    if isinstance(encoder, SubwordEncoder):
        for k in np.flatnonzero(_changed(encoder, ids, documents)):
            here = slice(offsets[k], offsets[k + 1])
            starts[here], ends[here] = _from_characters(encoder, data[byte_offsets[k] : byte_offsets[k + 1]])
    lists = [pa.ListArray.from_arrays(ids.offsets, pa.array(part.astype(np.uint32))) for part in (starts, ends)]
    return Spans(ids, *lists)


def _changed(encoder: SubwordEncoder, ids: pa.ListArray, documents: pa.LargeBinaryArray) -> np.ndarray:
    """Documents that are not the concatenation of their tokens' bytes."""
    if encoder.pieces is None:
        return np.ones(len(documents), bool)
    return np.asarray(pc.not_equal(encoder.decode(ids), documents))


def _from_characters(encoder: SubwordEncoder, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans in bytes from those of `tokenizers` in characters."""
    _, characters = encoder.character_offsets(document.tobytes().decode())
    begins = np.flatnonzero((document & 0xC0) != 0x80)  # the first byte of every character
    positions = np.append(begins, len(document))
    return positions[characters[:, 0]], positions[characters[:, 1]]
