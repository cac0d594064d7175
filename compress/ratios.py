"""How small a corpus becomes: general-purpose compressors, and id streams of tokenizers, counted to the byte.

Sizes are those of real output, and what a reader needs besides (a dictionary, a vocabulary) counts once:

    ratio = bytes / (compressed bytes + dictionary bytes)

Documents by themselves can be read in any order; as one stream they compress better and must be read from the start.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.compress.byte_compressors import ByteCompressor
from seqmill.compress.metrics import unigram_entropy
from seqmill.errors import UserError

PER_DOCUMENT, ONE_STREAM = "documents", "stream"


@dataclass(frozen=True)
class CompressedSize:
    """What one compressor makes of a corpus."""

    system: str
    scope: str  # "documents", each by itself, or "stream", all in a row
    documents: int
    bytes: int  # of text
    compressed_bytes: int
    dictionary_bytes: int  # that the reader needs besides

    @property
    def ratio(self) -> float:
        """Bytes of text per byte stored, the dictionary included. Infinite if nothing is stored."""
        stored = self.compressed_bytes + self.dictionary_bytes
        return self.bytes / stored if stored else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits stored per byte of text, the dictionary included. Infinite if there is no text."""
        return 8 * (self.compressed_bytes + self.dictionary_bytes) / self.bytes if self.bytes else math.inf


@dataclass(frozen=True)
class IdStreamSize:
    """What the ids of one tokenizer would take, without any compressor behind it."""

    system: str
    documents: int
    bytes: int  # of text
    tokens: int  # end-of-document ids included, where they were asked for
    vocab_size: int
    ids_used: int  # ids that occur
    entropy_bits: float  # all tokens at the entropy of their frequencies, which a reader must know
    dictionary_bytes: int  # that the reader needs besides: the tokenizer's artifact

    @property
    def fixed_bits(self) -> int:
        """All tokens at the least whole number of bits that tells the vocabulary apart."""
        return self.tokens * max(1, (self.vocab_size - 1).bit_length())

    @property
    def fixed_bits_per_byte(self) -> float:
        """`fixed_bits` and the dictionary, per byte of text."""
        return (self.fixed_bits + 8 * self.dictionary_bytes) / self.bytes if self.bytes else math.inf

    @property
    def entropy_bits_per_byte(self) -> float:
        """`entropy_bits` and the dictionary, per byte of text."""
        return (self.entropy_bits + 8 * self.dictionary_bytes) / self.bytes if self.bytes else math.inf

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token."""
        return self.bytes / self.tokens if self.tokens else math.inf


def compressed_sizes(documents: Iterable[bytes], compressors: Sequence[ByteCompressor]) -> list[CompressedSize]:
    """Two rows for each compressor: every document by itself, and all as one stream. Reads the documents once.

    A document's end is not marked in the stream: who wants documents back needs their lengths besides.
    """
    streams = [compressor.stream() for compressor in compressors]
    alone, together = [0] * len(compressors), [0] * len(compressors)
    count = total = 0
    for document in documents:
        count += 1
        total += len(document)
        for k, compressor in enumerate(compressors):
            alone[k] += len(compressor.compress(document))
            together[k] += len(streams[k].compress(document))
    together = [size + len(stream.flush()) for size, stream in zip(together, streams, strict=True)]
    return [
        CompressedSize(compressor.name, scope, count, total, size, compressor.dictionary_bytes)
        for scope, sizes in ((PER_DOCUMENT, alone), (ONE_STREAM, together))
        for compressor, size in zip(compressors, sizes, strict=True)
    ]


def id_stream_size(
    system: str,
    encode: Callable[[pa.Array], pa.ListArray],
    vocab_size: int,
    batches: Iterable[pa.Array],
    end_id: int | None = None,
    dictionary_bytes: int = 0,
) -> IdStreamSize:
    """What the ids of any tokenizer take.

    Args:
        encode: the tokenizer's own: a column of documents to a list of ids each.
        vocab_size: one more than the largest id.
        batches: documents, (large_)string or (large_)binary without nulls.
        end_id: counted once behind every document; default: documents end without one.
        dictionary_bytes: of the tokenizer's artifact.

    Raises:
        UserError: an id lies outside the vocabulary.
    """
    counts = np.zeros(vocab_size, np.int64)
    documents = total = 0
    for batch in batches:
        ids = encode(batch).flatten().to_numpy()
        if len(ids) and ids.max() >= vocab_size:
            raise UserError(f"{system} gave id {ids.max()}, outside its vocabulary of {vocab_size} ids")
        counts += np.bincount(ids, minlength=vocab_size)
        documents += len(batch)
        total += pc.sum(pc.binary_length(batch)).as_py() or 0
    if end_id is not None:
        counts[end_id] += documents
    tokens = int(counts.sum())
    return IdStreamSize(
        system=system,
        documents=documents,
        bytes=total,
        tokens=tokens,
        vocab_size=vocab_size,
        ids_used=int(np.count_nonzero(counts)),
        entropy_bits=tokens * unigram_entropy(counts) / math.log(2),
        dictionary_bytes=dictionary_bytes,
    )
