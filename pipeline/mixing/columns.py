"""What mixing reads of documents and tokens tables: sizes per row, and rows of bounded size at a time."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError

Int64s = npt.NDArray[np.int64]

COPY = "copy"
ID_COLUMNS = ("doc_id", "cluster_id")  # move together when folders with equal ids are joined
_CONTENT = {"documents": ("text", "data"), "tokens": ("input_ids",)}


def check_columns(schema: pa.Schema, kind: str, where: str) -> None:
    """Refuse a table that lacks what mixing needs.

    Raises:
        UserError: naming `where` and the missing column.
    """
    wanted = ["doc_id", "source"] + (["num_bytes"] if kind == "tokens" else [])
    missing = [name for name in wanted if name not in schema.names]
    if not any(name in schema.names for name in _CONTENT[kind]):
        missing.append(" or ".join(_CONTENT[kind]))
    if missing:
        raise UserError(
            f"{where} has no column {missing[0]!r}, only {', '.join(schema.names)}; run the stage that wrote it again"
        )


def num_bytes(batch: pa.RecordBatch) -> Int64s:
    """Bytes of content per row, int64[rows]."""
    if "num_bytes" in batch.schema.names:
        return _numpy(batch.column("num_bytes"))
    name = next(name for name in _CONTENT["documents"] if name in batch.schema.names)
    return _numpy(pc.binary_length(batch.column(name)))


def num_tokens(batch: pa.RecordBatch) -> Int64s:
    """Tokens per row, int64[rows]; zeros for documents."""
    if "input_ids" not in batch.schema.names:
        return np.zeros(batch.num_rows, np.int64)
    return _numpy(pc.list_value_length(batch.column("input_ids")))


def row_bytes(batch: pa.RecordBatch) -> Int64s:
    """About the memory each row takes, int64[rows]: exact for strings and lists of numbers, else the mean."""
    total = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        type_ = column.type
        if pa.types.is_string(type_) or pa.types.is_binary(type_):
            total += 4 + _numpy(pc.binary_length(column))
        elif pa.types.is_large_string(type_) or pa.types.is_large_binary(type_):
            total += 8 + _numpy(pc.binary_length(column))
        elif pa.types.is_list(type_) and pa.types.is_primitive(type_.value_type):
            total += 4 + _numpy(pc.list_value_length(column)) * max(1, type_.value_type.bit_width // 8)
        elif pa.types.is_primitive(type_):
            total += max(1, type_.bit_width // 8)
        else:
            total += -(-column.nbytes // max(1, len(column)))
    return total


def bounded_slices(batch: pa.RecordBatch, most_bytes: int) -> Iterator[pa.RecordBatch]:
    """`batch` in slices of at most `most_bytes`, or of one row where that alone is larger."""
    reached = np.cumsum(row_bytes(batch))
    first, before = 0, 0
    while first < batch.num_rows:
        last = max(first + 1, int(np.searchsorted(reached, before + most_bytes, "right")))
        yield batch.slice(first, last - first)
        first, before = last, int(reached[last - 1])


def bounded_takes(batch: pa.RecordBatch, rows: Int64s, most_bytes: int) -> Iterator[pa.RecordBatch]:
    """Rows of `batch` in the order of `rows`, int64[n], as batches of at most `most_bytes` (or one row)."""
    reached = np.cumsum(row_bytes(batch)[rows])
    first, before = 0, 0
    while first < len(rows):
        last = max(first + 1, int(np.searchsorted(reached, before + most_bytes, "right")))
        yield batch.take(pa.array(rows[first:last]))
        first, before = last, int(reached[last - 1])


def as_one_batch(table: pa.Table) -> pa.RecordBatch:
    """`table` as one record batch; it must fit the 2 GiB of a string column."""
    batches = table.combine_chunks().to_batches()
    if not batches:
        return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in table.schema], schema=table.schema)
    (batch,) = batches
    return batch


def _numpy(column: pa.Array) -> Int64s:
    filled = column.fill_null(0) if column.null_count else column
    return filled.to_numpy(zero_copy_only=False).astype(np.int64)
