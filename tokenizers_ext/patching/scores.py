"""Entropies of documents, from a scorer or given as a column, in pieces of bounded size."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.tokenizers_ext.patching.ngrams import Int64s, Uint8s
from seqmill.tokenizers_ext.patching.scorer import Scorer

PIECE_BYTES = 4 << 20  # of text whose entropies are held at a time


class Piece(NamedTuple):
    """The entropies of consecutive bytes of a batch."""

    first: int  # position of entropy[0]: `start`, or one less to tell the rise there
    start: int
    stop: int
    entropy: npt.NDArray[np.float32]  # nats[stop - first], of each byte given those before it in its document


def entropy_pieces(
    data: Uint8s, offsets: Int64s, source: Scorer | pa.Array | None, piece_bytes: int = PIECE_BYTES
) -> Iterator[Piece]:
    """The entropies of all bytes of a batch.

    Args:
        offsets: int64[documents + 1] into `data`, which may hold more.
        source: a scorer; or a list<float16|float32|float64>, one value a byte, as another model gave it.

    Raises:
        UserError: no source, or given entropies that are not finite or do not fit the documents.
    """
    if source is None:
        raise UserError(
            "patching.scheme = 'entropy' without a model: give patching.model, or patching.entropies, or let "
            "`seqmill tokenize` train a scorer"
        )
    given = None if isinstance(source, Scorer) else _checked(offsets, source)
    begin, end = int(offsets[0]), int(offsets[-1])
    for start in range(begin, end, piece_bytes):
        first, stop = max(start - 1, begin), min(start + piece_bytes, end)
        nats = source.entropies(data, offsets, first, stop) if given is None else given[first - begin : stop - begin]
        yield Piece(first, start, stop, nats.astype(np.float32, copy=False))


def _checked(offsets: Int64s, column: pa.Array) -> np.ndarray:
    """The flat values of a column of entropies.

    Raises:
        UserError: they are of another type, null, infinite or NaN, or not one for each byte.
    """
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise UserError(f"entropies have type {kind}, but lists of float16 or float32 are needed; cast the column")
    values = column.flatten()
    if column.null_count or values.null_count:
        raise UserError(f"{column.null_count + values.null_count} entropies are null: one is needed for each byte")
    sizes, found = np.diff(offsets), np.diff(column.offsets.to_numpy().astype(np.int64))
    if len(sizes) != len(found) or not np.array_equal(sizes, found):
        bad = int(np.argmax(sizes != found)) if len(sizes) == len(found) else 0
        where = f"document {bad} of the batch" if len(sizes) == len(found) else f"a batch of {len(sizes)} documents"
        size, given = (sizes[bad], found[bad]) if len(sizes) == len(found) else (len(sizes), len(found))
        raise UserError(f"{where}: {given} entropies for {size}; give one for each byte of the UTF-8 text")
    flat = values.to_numpy(zero_copy_only=False)
    if not np.isfinite(flat).all():
        raise UserError(
            f"entropies: {int((~np.isfinite(flat)).sum())} values are NaN or infinite; finite nats are needed"
        )
    return flat
