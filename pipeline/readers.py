"""Read the formats of text: every record becomes a row of a batch or an entry of the quarantine."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from seqmill.pipeline import columnar, sequences
from seqmill.pipeline.pieces import LINE_END, numbered_pieces
from seqmill.pipeline.quarantine import Quarantine
from seqmill.pipeline.records import Fields, Segment, checked_text, is_utf8, make_batch, render
from seqmill.pipeline.streams import BYTE_ORDER_MARK, Damaged, byte_reader, open_source

Reader = Callable[[Segment, Fields, Quarantine], Iterator[pa.RecordBatch]]
LONG_LINE_BYTES = 1 << 30  # orjson refuses lines of 2 GiB
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89abAB]")


def read_segment(segment: Segment, fields: Fields, quarantine: Quarantine) -> Iterator[pa.RecordBatch]:
    """The documents of a segment in order, with the columns of `records.document_schema`, in bounded batches.

    Raises:
        UserError: the source cannot be read, has changed since the run began, or lacks the text column.
    """
    if segment.file.size:
        yield from READERS[segment.file.format](segment, fields, quarantine)


def read_jsonl(segment: Segment, fields: Fields, quarantine: Quarantine) -> Iterator[pa.RecordBatch]:
    """The records of JSON Lines that start in a byte range; blank lines are numbered but are no records."""
    for row, offset, lines in numbered_pieces(segment, LINE_END, quarantine):
        yield _parse_lines(segment, fields, quarantine, row, offset, lines)


def read_text(segment: Segment, fields: Fields, quarantine: Quarantine) -> Iterator[pa.RecordBatch]:
    """Plain text: the whole file as one document, or the pieces between separators that start in a byte range."""
    if fields.separator is None:
        yield from _read_whole(segment, fields, quarantine)
        return
    separator = fields.separator.encode()
    for row, offset, texts in numbered_pieces(segment, separator, quarantine):
        yield _decode_texts(segment, fields, quarantine, row, offset, texts, len(separator))


READERS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "text": read_text,
    "fasta": sequences.read_fasta,
    "fastq": sequences.read_fastq,
    "parquet": columnar.read_columnar,
    "arrow": columnar.read_columnar,
    "hf": columnar.read_columnar,
}


def _parse_lines(
    segment: Segment, fields: Fields, quarantine: Quarantine, row: int, offset: int, lines: list[bytes]
) -> pa.RecordBatch:
    """The only loop over lines. It does as little as it can: everything about bad lines is in `_why_bad`."""
    loads = orjson.loads if max(map(len, lines)) < LONG_LINE_BYTES else _load_long
    name = fields.text
    rows: list[int] = []
    texts: list[str] = []
    records: list[tuple[dict[str, Any], bytes]] = []
    for index, line in enumerate(lines, row):
        try:
            record = loads(line)
            text = record[name]
        except (ValueError, TypeError, KeyError):
            text = None
        if type(text) is str:
            rows.append(index)
            texts.append(text)
            records.append((record, line))
        elif not line or line.isspace():
            quarantine.blank_lines += 1
        else:
            raw = line.removesuffix(b"\r")
            quarantine.add(segment.file.name, index, _why_bad(raw, name), raw, offset=offset)
        offset += len(line) + len(LINE_END)
    columns = {
        field: pa.array([render(record.get(field), field, line) for record, line in records], pa.string())
        for field in fields.wanted
    }
    return make_batch(segment, fields, np.array(rows, np.int64), pa.array(texts, pa.large_string()), columns)


def _load_long(line: bytes) -> Any:
    """What orjson would make of a line too long for it.

    Raises:
        ValueError: it is invalid UTF-8 or JSON, holds NaN or Infinity, or an escaped lone surrogate.
    """
    constants: list[str] = []
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=constants.append)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if constants:
        raise ValueError(constants[0])
    if _ESCAPED_SURROGATE.search(line):
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    return record


def _why_bad(line: bytes, name: str) -> str:
    """The reason why a line that is not blank gave no text."""
    if not is_utf8(line):
        return "invalid UTF-8"
    try:
        record = (orjson.loads if len(line) < LONG_LINE_BYTES else _load_long)(line)
    except ValueError:
        return _why_invalid(line)
    if not isinstance(record, dict):
        return "not a JSON object"
    if name not in record:
        return "no text field"
    return "text is null" if record[name] is None else "text is not a string"


def _why_invalid(line: bytes) -> str:
    """Tells plain errors from what Python's own parser lets pass against the standard."""
    constants: list[str] = []
    try:
        record = json.loads(line, parse_constant=constants.append)
    except (ValueError, RecursionError):
        return "invalid JSON"
    if constants:
        return "NaN or Infinity in JSON"
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "lone surrogate escape in JSON"
    return "invalid JSON"


def _read_whole(segment: Segment, fields: Fields, quarantine: Quarantine) -> Iterator[pa.RecordBatch]:
    with open_source(segment.file) as handle:
        reader = byte_reader(segment.file, handle)
        parts: list[bytes] = []
        try:
            while data := reader.read(sys.maxsize):
                parts.append(data)
        except Damaged as damage:
            quarantine.add_damage(segment.file.name, 0, damage.reason, b"".join(parts), offset=0, detail=damage.detail)
            return
    whole = parts[0] if len(parts) == 1 else b"".join(parts)
    if whole:
        yield _decode_texts(segment, fields, quarantine, 0, 0, [whole.removeprefix(BYTE_ORDER_MARK)], 0)


def _decode_texts(
    segment: Segment,
    fields: Fields,
    quarantine: Quarantine,
    row: int,
    offset: int,
    texts: list[bytes],
    separator_size: int,
) -> pa.RecordBatch:
    text, invalid = checked_text(pa.array(texts, pa.large_binary()))
    if invalid.any():
        starts = offset + np.cumsum([0, *(len(t) + separator_size for t in texts[:-1])])
        for index in np.flatnonzero(invalid):
            where = int(starts[index])
            quarantine.add(segment.file.name, row + int(index), "invalid UTF-8", texts[index], offset=where)
    return make_batch(segment, fields, row + np.flatnonzero(~invalid), text, {})
