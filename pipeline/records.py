"""The table of documents: its columns, and how values of any source become them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.pipeline.sources import SourceFile

BATCH_BYTES = 16 << 20  # of a record batch, about: what a reader maps or holds at a time
COLUMNS = ("doc_id", "id", "text", "source")
ROW_BITS = 40  # of doc_id; the file's ordinal is above them
_LARGEST_EXACT = 1 << 63  # orjson turns longer integers into floats


@dataclass(frozen=True)
class Fields:
    """Where a record keeps what."""

    text: str
    id: str
    source: str
    constant_source: str | None  # of every document, if set
    keep: tuple[str, ...]  # rendered as strings under their own names
    separator: str | None  # of documents in plain text; None: one document a file

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of all fields but the text, each once."""
        names = [self.id, *self.keep]
        if self.constant_source is None:
            names.append(self.source)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Segment:
    """A part of a source that one unit reads."""

    file: SourceFile
    start: int = 0  # byte offset; index of a row group, record batch or slice for columnar formats
    stop: int | None = None  # None: to the end
    first_row: int = 0  # row of the first record that starts in the segment


def document_schema(fields: Fields) -> pa.Schema:
    """The columns of a document table."""
    columns = [
        pa.field("doc_id", pa.uint64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in fields.keep),
    ]
    return pa.schema(columns)


def make_batch(
    segment: Segment, fields: Fields, rows: np.ndarray, text: pa.Array, columns: dict[str, pa.Array]
) -> pa.RecordBatch:
    """A batch of documents.

    Args:
        rows: int64, the rows of the documents in their file.
        text: large_string without nulls, as long as `rows`.
        columns: strings for the fields that the records have, as long as `rows`.
    """
    absent = pa.nulls(len(rows), pa.string())
    source: pa.Array = pa.repeat(fields.constant_source or segment.file.source, len(rows))
    if fields.constant_source is None and fields.source in columns:
        own = columns[fields.source]
        source = own if own.null_count == 0 else own.fill_null(segment.file.source)
    names = {"id": columns.get(fields.id, absent), "text": text, "source": source}
    kept = {name: columns.get(name, absent) for name in fields.keep}
    doc_ids = (np.uint64(segment.file.ordinal) << np.uint64(ROW_BITS)) | rows.astype(np.uint64)
    arrays = [pa.array(doc_ids), *names.values(), *kept.values()]
    return pa.RecordBatch.from_arrays(arrays, schema=document_schema(fields))


def checked_text(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """`values` (binary or strings, no nulls) as large_string, and which of them are invalid UTF-8 (those left out).

    String columns are checked as well: Parquet readers and other writers do not.
    """
    raw = values.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string()), np.zeros(len(raw), bool)
    except pa.ArrowInvalid:
        invalid = np.fromiter((not is_utf8(value.as_buffer()) for value in raw), bool, len(raw))
        return raw.filter(pa.array(~invalid)).cast(pa.large_string()), invalid


def is_utf8(data: Any) -> bool:
    """Whether a bytes-like object is valid UTF-8."""
    try:
        str(data, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def render(value: Any, name: str, line: bytes) -> str | None:
    """A JSON value as a string: strings as they are, null as None, anything else as JSON text.

    Args:
        name: the field of `line` that holds `value`.
        line: the record; read again where orjson lost digits of a long integer.
    """
    if value is None or type(value) is str:
        return value
    if type(value) is float and abs(value) >= _LARGEST_EXACT:
        with suppress(ValueError, RecursionError):  # Python's parser has limits of its own: then the float has to do
            exact = json.loads(line)[name]
            return str(exact) if isinstance(exact, int) else orjson.dumps(exact).decode()
    return orjson.dumps(value).decode()


def render_column(values: pa.Array) -> pa.Array:
    """A column of any type as strings, by the rules of `render`; what JSON lacks (dates, decimals) by `str`."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_integer(values.type):
        return values.cast(pa.string())
    if is_text(values.type):
        try:
            return values.cast(pa.large_binary()).cast(pa.large_string()).cast(pa.string())
        except pa.ArrowInvalid:
            values = values.cast(pa.large_binary())
    return pa.array((_render_any(value) for value in values.to_pylist()), pa.string())


def _render_any(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, bool | float | list | dict):
        return orjson.dumps(value, default=str).decode()
    return str(value)


def is_binary(type_: pa.DataType) -> bool:
    """Whether values of this type are bytes of no stated encoding."""
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_)


def is_text(type_: pa.DataType) -> bool:
    """Whether values of this type can be texts."""
    is_string = pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
    return is_string or is_binary(type_)


def check_columns(segment: Segment, fields: Fields, schema: pa.Schema) -> list[str]:
    """The columns of a columnar source to read: the text first, then the wanted ones that it has.

    Raises:
        UserError: the text column is missing, there twice, or of a type that holds no text.
    """
    name = segment.file.name
    if schema.names.count(fields.text) != 1:
        raise UserError(
            f"{name} has no single column {fields.text!r} (ingest.text_field); its columns are "
            f"{', '.join(map(str, schema.names))}"
        )
    type_ = schema.field(fields.text).type
    if not is_text(type_.value_type if pa.types.is_dictionary(type_) else type_):
        raise UserError(f"{name}: column {fields.text!r} has type {type_}; texts are strings or UTF-8 in binary")
    return list(dict.fromkeys([fields.text, *(field for field in fields.wanted if field in schema.names)]))


def coalesce(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of about `BATCH_BYTES`, so that many small files do not make many small batches."""
    pending: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if batch.num_rows:
            pending.append(batch)
            size += batch.nbytes
        if size >= BATCH_BYTES:
            yield from _joined(pending)
            pending, size = [], 0
    yield from _joined(pending)


def _joined(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    if len(batches) <= 1:
        return list(batches)
    return pa.Table.from_batches(batches).combine_chunks().to_batches()
