"""Documents as windows of a fixed number of tokens; what is shorter at a document's end is no window.

Example: windows of 4 tokens of documents of 10 and 3 tokens -> two windows of the first, at 0 and 4.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

START = "start"  # column of windows: the first token's place in the document
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # odd: its multiples are distinct for all windows of a document


def window_ids(doc_ids: UInt64s, index: Int64s) -> UInt64s:
    """A number for window `index` of each document, for hashing: that of window 0 is the doc_id.

    Windows of one document never share a number; those of two may (about once in 2^32 windows), and are then told
    apart by doc_id.
    """
    return doc_ids + index.astype(np.uint64) * _GOLDEN


def places(lengths: Int64s, seq_len: int) -> tuple[Int64s, Int64s]:
    """(document, index within it) of every window of documents of these lengths, in order: int64[windows] each."""
    counts = lengths // seq_len
    document = np.repeat(np.arange(len(lengths)), counts)
    return document, np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)


def window_bytes(num_bytes: Int64s, lengths: Int64s, document: Int64s, index: Int64s, seq_len: int) -> Int64s:
    """The bytes of windows, int64[windows]: those of the document shared out by tokens; whole numbers that add up."""
    size, length, start = num_bytes[document], lengths[document], index * seq_len
    return size * (start + seq_len) // length - size * start // length


def check_columns(schema: pa.Schema) -> None:
    """Refuse tokens with lists beside input_ids, which would have to be cut too.

    Raises:
        UserError: naming the column.
    """
    lists = [field.name for field in schema if pa.types.is_nested(field.type) and field.name != "input_ids"]
    if lists or START in schema.names:
        raise UserError(
            f"mode 'sequence' cuts input_ids into windows and cannot cut the column {(lists or [START])[0]!r}; "
            "repeat whole documents (mode 'document'), or tokenize without that column"
        )


def window_schema(schema: pa.Schema) -> pa.Schema:
    """The columns of windows of documents with these columns."""
    return schema.append(pa.field(START, pa.int64()))


def cut(batch: pa.RecordBatch, seq_len: int) -> tuple[pa.RecordBatch, Int64s]:
    """The windows of a batch of documents, and the index of each within its document, int64[windows]."""
    ids = batch.column("input_ids")
    lengths = pc.list_value_length(ids).to_numpy(zero_copy_only=False).astype(np.int64)
    document, index = places(lengths, seq_len)
    # one list array of all windows and tails: cut every document at each multiple of seq_len
    pieces = -(-lengths // seq_len)
    first = np.cumsum(pieces) - pieces
    within = np.arange(int(pieces.sum())) - np.repeat(first, pieces)
    begins = np.repeat(np.cumsum(lengths) - lengths, pieces) + within * seq_len
    offsets = np.append(begins, lengths.sum())
    kind = pa.LargeListArray if pa.types.is_large_list(ids.type) else pa.ListArray
    cuts = kind.from_arrays(pa.array(offsets, ids.offsets.type), ids.flatten())
    num_bytes = batch.column("num_bytes").to_numpy().astype(np.int64)
    replaced = {
        "input_ids": cuts.take(pa.array(first[document] + index)),
        "num_bytes": pa.array(window_bytes(num_bytes, lengths, document, index, seq_len), pa.uint32()),
    }
    rows = pa.array(document)
    columns = [replaced[name] if name in replaced else batch.column(name).take(rows) for name in batch.schema.names]
    schema = window_schema(batch.schema)
    return pa.record_batch([*columns, pa.array(index * seq_len, pa.int64())], schema=schema), index
