"""The pieces of a segment between separators, with the rows that they have in their file."""

import sys
from collections.abc import Iterator
from typing import BinaryIO

from seqmill.pipeline.quarantine import Quarantine
from seqmill.pipeline.records import Segment
from seqmill.pipeline.streams import BYTE_ORDER_MARK, Damaged, byte_reader, first_start, open_source, pieces

LINE_END = b"\n"


def numbered_pieces(
    segment: Segment, separator: bytes, quarantine: Quarantine
) -> Iterator[tuple[int, int, list[bytes]]]:
    """Blocks of pieces as (row, offset, pieces); damage ends them and goes to the quarantine."""
    row = segment.first_row
    with open_source(segment.file) as handle:
        try:
            for offset, block in _pieces_of(segment, separator, handle):
                if offset == 0 and block[0].startswith(BYTE_ORDER_MARK):
                    block[0] = block[0][len(BYTE_ORDER_MARK) :]
                    offset = len(BYTE_ORDER_MARK)
                yield row, offset, block
                row += len(block)
        except Damaged as damage:
            quarantine.add_damage(
                segment.file.name, row, damage.reason, damage.partial, offset=damage.offset, detail=damage.detail
            )


def _pieces_of(segment: Segment, separator: bytes, handle: BinaryIO) -> Iterator[tuple[int, list[bytes]]]:
    file, start = segment.file, segment.start
    if start:
        assert segment.stop is not None
        found = first_start(handle, file, separator, start, segment.stop)
        if found is None:
            return
        start = found
    stop = sys.maxsize if segment.stop is None else segment.stop
    yield from pieces(byte_reader(file, handle, start), separator, start, stop)
