"""Read Parquet, Arrow IPC and saved Hugging Face datasets: cut into pieces, column by column, batch by batch.

A piece is what a segment's `start` and `stop` count: a row group, a record batch, or `SLICE_ROWS` rows of a dataset.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from seqmill.errors import UserError
from seqmill.pipeline.quarantine import Quarantine
from seqmill.pipeline.records import (
    BATCH_BYTES,
    Fields,
    Segment,
    check_columns,
    checked_text,
    make_batch,
    render_column,
)
from seqmill.pipeline.sources import SourceFile, is_local
from seqmill.pipeline.streams import Damaged, check_unchanged

SLICE_ROWS = 1000
_ARROW_FILE_MAGIC = b"ARROW1"


@dataclass(frozen=True)
class Table:
    """An open columnar source."""

    schema: pa.Schema
    pieces: Callable[[], list[tuple[int, int]]]  # (rows, bytes) of each
    # batches of these columns from piece `start` up to `stop` (None: the last)
    batches: Callable[[int, int | None, list[str]], Iterator[pa.RecordBatch]]


def describe(file: SourceFile) -> list[tuple[int, int]]:
    """The (rows, bytes) of each piece of a source; none if it is damaged, which reading it will report.

    Raises:
        UserError: the source cannot be read or has changed.
    """
    try:
        with _opened(file) as table:
            return table.pieces()
    except Damaged:
        return []


def read_columnar(segment: Segment, fields: Fields, quarantine: Quarantine) -> Iterator[pa.RecordBatch]:
    """The documents of a range of pieces.

    Raises:
        UserError: the source cannot be read or has changed; the text column is missing or holds no text.
    """
    row = segment.first_row
    try:
        with _opened(segment.file) as table:
            columns = check_columns(segment, fields, table.schema)
            for batch in table.batches(segment.start, segment.stop, columns):
                for part in _bounded(batch):
                    yield _convert(segment, fields, quarantine, row, part)
                    row += part.num_rows
    except Damaged as damage:
        quarantine.add_damage(segment.file.name, row, damage.reason, b"", detail=damage.detail)


def _convert(
    segment: Segment, fields: Fields, quarantine: Quarantine, row: int, batch: pa.RecordBatch
) -> pa.RecordBatch:
    values = batch.column(fields.text)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    bad = values.is_null().to_numpy(zero_copy_only=False)
    text, invalid = checked_text(values.drop_null())
    for index in np.flatnonzero(bad):
        quarantine.add(segment.file.name, row + int(index), "text is null", b"")
    present = np.flatnonzero(~bad)
    for index in present[invalid]:
        raw = values[int(index)].as_buffer().to_pybytes()
        quarantine.add(segment.file.name, row + int(index), "invalid UTF-8", raw)
    good = present[~invalid]
    if len(good) < len(values):
        batch = batch.take(pa.array(good))
    columns = {name: render_column(batch.column(name)) for name in fields.wanted if name in batch.schema.names}
    return make_batch(segment, fields, row + good, text, columns)


def _bounded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Slices of about `BATCH_BYTES`, going by the average row."""
    rows = max(1, batch.num_rows * BATCH_BYTES // max(batch.nbytes, 1))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


@contextmanager
def _opened(file: SourceFile) -> Iterator[Table]:
    """Open a source by its format.

    Raises:
        Damaged: the content makes no sense, when opening it or later.
        UserError: the file cannot be read or has changed.
    """
    try:
        if file.format == "hf":
            yield _saved_dataset(file)
            return
        with _open_random_access(file) as handle:
            yield _parquet(handle) if file.format == "parquet" else _arrow(handle)
    except pa.ArrowInvalid as error:
        raise Damaged(f"corrupt {file.format} file", _particulars(error)) from error
    except OSError as error:
        if error.errno is None and not isinstance(error, FileNotFoundError | PermissionError):
            # how pyarrow reports broken metadata and pages
            raise Damaged(f"corrupt {file.format} file", _particulars(error)) from error
        raise UserError(
            f"cannot read {file.path} ({error}); make it readable and run the same command again"
        ) from error


def _particulars(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _open_random_access(file: SourceFile) -> Any:
    if is_local(file.path):
        check_unchanged(file)
        return pa.memory_map(file.path)
    filesystem, path = url_to_fs(file.path)
    return pa.PythonFile(filesystem.open(path, "rb"), mode="r")


def _parquet(handle: Any) -> Table:
    file = pq.ParquetFile(handle)
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]

    def batches(start: int, stop: int | None, columns: list[str]) -> Iterator[pa.RecordBatch]:
        wanted = range(start, len(groups) if stop is None else stop)
        rows = sum(groups[index].num_rows for index in wanted)
        size = sum(groups[index].total_byte_size for index in wanted)
        batch_rows = max(1, min(rows, rows * BATCH_BYTES // max(size, 1)))
        yield from file.iter_batches(batch_rows, list(wanted), columns=columns)

    return Table(file.schema_arrow, lambda: [(g.num_rows, g.total_byte_size) for g in groups], batches)


def _arrow(handle: Any) -> Table:
    """The file format goes by its magic; anything else is read as a stream."""
    is_file = handle.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
    handle.seek(0)
    reader = pa.ipc.open_file(handle) if is_file else pa.ipc.open_stream(handle)

    def every(start: int, stop: int | None) -> Iterator[pa.RecordBatch]:
        if is_file:
            for index in range(start, reader.num_record_batches if stop is None else stop):
                yield reader.get_batch(index)
            return
        for index, batch in enumerate(reader):
            if stop is not None and index >= stop:
                return
            if index >= start:
                yield batch

    def batches(start: int, stop: int | None, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for batch in every(start, stop):
            yield batch.select(columns)

    return Table(reader.schema, lambda: [(batch.num_rows, batch.nbytes) for batch in every(0, None)], batches)


def _saved_dataset(file: SourceFile) -> Table:
    """A dataset in the order of its indices, if it was shuffled or selected from."""
    from datasets import load_from_disk

    dataset = load_from_disk(file.path).with_format("arrow")
    rows = len(dataset)

    def pieces() -> list[tuple[int, int]]:
        counts = [min(SLICE_ROWS, rows - start) for start in range(0, rows, SLICE_ROWS)]
        return [(count, file.size * count // rows) for count in counts]

    def batches(start: int, stop: int | None, columns: list[str]) -> Iterator[pa.RecordBatch]:
        chosen = dataset.select_columns(columns)
        last = rows if stop is None else min(stop * SLICE_ROWS, rows)
        step = max(1, min(SLICE_ROWS, rows * BATCH_BYTES // max(dataset.data.nbytes, 1)))
        for first in range(start * SLICE_ROWS, last, step):
            yield from chosen[first : min(first + step, last)].combine_chunks().to_batches()

    return Table(dataset.features.arrow_schema, pieces, batches)
