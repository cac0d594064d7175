"""Read sequences: FASTA and FASTQ, one document a record, its id the first word of the header, its text the bases.

    >chr1 a comment         ->  id "chr1", text "ACGTNNACGT"
    ACGTNN
    ACGT

Case is kept (lower case is soft masking). Of FASTQ the qualities are left out.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from seqmill.pipeline.pieces import LINE_END, numbered_pieces
from seqmill.pipeline.quarantine import Quarantine
from seqmill.pipeline.records import Fields, Segment, checked_text, make_batch

NEXT_RECORD = b"\n>"  # of FASTA: only headers begin with >
LINES = 4  # of a FASTQ record: @header, bases, +, qualities

Record = tuple[int, bytes, bytes]  # row, header, bases


def read_fasta(segment: Segment, fields: Fields, quarantine: Quarantine) -> Iterator[pa.RecordBatch]:
    """The records of FASTA that start in a byte range. Text before the first header goes to the quarantine."""
    for row, offset, pieces in numbered_pieces(segment, NEXT_RECORD, quarantine):
        records: list[Record] = []
        for index, piece in enumerate(pieces, row):
            if index == 0:
                if not piece.startswith(b">"):
                    quarantine.add(segment.file.name, 0, "no FASTA header", piece, offset=offset)
                    continue
                piece = piece[1:]
            header, *lines = piece.split(LINE_END)
            records.append((index, header, b"".join(line.rstrip() for line in lines)))
        yield _batch(segment, fields, quarantine, records)


def read_fastq(segment: Segment, fields: Fields, quarantine: Quarantine) -> Iterator[pa.RecordBatch]:
    """The records of a FASTQ file of four lines a record."""
    waiting: list[bytes] = []
    row = 0
    for _, _, pieces in numbered_pieces(segment, LINE_END, quarantine):
        waiting += [piece.rstrip(b"\r") for piece in pieces]
        whole = len(waiting) // LINES * LINES
        groups = [waiting[first : first + LINES] for first in range(0, whole, LINES)]
        waiting = waiting[whole:]
        good: list[Record] = []
        for index, (header, bases, plus, qualities) in enumerate(groups, row):
            if header[:1] == b"@" and plus[:1] == b"+" and len(bases) == len(qualities):
                good.append((index, header[1:], bases))
            else:
                raw = LINE_END.join((header, bases, plus, qualities))
                quarantine.add(segment.file.name, index, "no FASTQ record", raw)
        row += len(groups)
        yield _batch(segment, fields, quarantine, good)
    if any(waiting):
        quarantine.add(segment.file.name, row, "truncated FASTQ record", LINE_END.join(waiting))


def _batch(segment: Segment, fields: Fields, quarantine: Quarantine, records: Sequence[Record]) -> pa.RecordBatch:
    text, invalid = checked_text(pa.array([bases for _, _, bases in records], pa.large_binary()))
    for bad in np.flatnonzero(invalid).tolist():
        quarantine.add(segment.file.name, records[bad][0], "invalid UTF-8", records[bad][2])
    good = [record for record, is_bad in zip(records, invalid, strict=True) if not is_bad]
    ids = [(header.split(maxsplit=1) or [b""])[0].decode("utf-8", "backslashreplace") for _, header, _ in good]
    rows = np.array([row for row, _, _ in good], np.int64)
    return make_batch(segment, fields, rows, text, {fields.id: pa.array(ids, pa.string())})
