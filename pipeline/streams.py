"""Bytes of raw files: opened as they were found, decompressed, and cut at separators with bounded memory."""

import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import zstandard
from fsspec.core import url_to_fs

from seqmill.errors import UserError
from seqmill.pipeline.sources import SourceFile, is_local

BLOCK_BYTES = 4 << 20  # read at a time: large enough for speed, small enough that a unit never holds much
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OVERRUN_BYTES = 64 << 10  # read at a time to finish the last piece of a range
_COMPRESSED_BYTES = 16 << 10  # fed to a decoder at a time: what it decodes from this is lost with a damaged block
_LARGEST_WINDOW = 1 << 31  # `zstd --long=31`, as the large public dumps use it
_GZIP_WITH_HEADER = 31  # zlib's wbits
_CODECS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(_GZIP_WITH_HEADER),
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj(),
}


class Damaged(Exception):  # noqa: N818  (not a failure of the run: what was read before it is kept)
    """A source broke off or is corrupt; an unknown number of its records is lost."""

    def __init__(self, reason: str, detail: str) -> None:
        """`reason`: one of a few fixed texts; `detail`: particulars."""
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.offset = 0  # of the record that was being read
        self.partial = b""  # what there is of it


@contextmanager
def open_source(file: SourceFile) -> Iterator[BinaryIO]:
    """Open a source for reading bytes.

    Raises:
        UserError: it cannot be read, or is not what it was when the run began.
    """
    try:
        if not is_local(file.path):
            filesystem, path = url_to_fs(file.path)
            with filesystem.open(path, "rb") as handle:
                yield handle
            return
        check_unchanged(file)
        with open(file.path, "rb", buffering=0) as handle:
            yield handle
    except OSError as error:
        raise UserError(
            f"cannot read {file.path} ({error}); make it readable and run the same command again"
        ) from error


def check_unchanged(file: SourceFile) -> None:
    """Refuse a local file that was rewritten since the run began.

    Raises:
        UserError: as described, or the file is gone.
    """
    try:
        stat = Path(file.path).stat()
    except OSError as error:
        raise UserError(f"cannot read {file.path} ({error}); put it back and run the same command again") from error
    if stat.st_size != file.size or str(stat.st_mtime_ns) != file.stamp:
        raise UserError(f"{file.path} changed while it was being read; run the same command again when it is complete")


class ByteReader(Protocol):
    """Where decoded bytes come from, in order."""

    def read(self, size: int) -> bytes:
        """The next `size` bytes, give or take; none at the end.

        Raises:
            Damaged: once everything before the damage has been returned.
        """
        ...


def byte_reader(file: SourceFile, handle: BinaryIO, start: int = 0) -> ByteReader:
    """A reader of the decompressed bytes of `file` from `start` on, which is 0 for a compressed one."""
    return _Decoded(decompress(handle, file.compression)) if file.compression else _Plain(handle, start, file.size)


class _Plain:
    """The bytes of a plain file up to the size it had when the run began: a file may grow while it is read."""

    def __init__(self, handle: BinaryIO, start: int, size: int) -> None:
        handle.seek(start)
        self.handle = handle
        self.remaining = size - start

    def read(self, size: int) -> bytes:
        data = self.handle.read(min(size, self.remaining))
        self.remaining -= len(data)
        return data


class _Decoded:
    """The chunks of a decoder, gathered into blocks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.damage: Damaged | None = None

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        missing = size
        while missing > 0 and self.damage is None:
            try:
                chunk = next(self.chunks, b"")
            except Damaged as damage:  # returned bytes come first
                self.damage = damage
                break
            if not chunk:
                break
            parts.append(chunk)
            missing -= len(chunk)
        if self.damage and not parts:
            raise self.damage
        return b"".join(parts)


def decompress(handle: BinaryIO, compression: str) -> Iterator[bytes]:
    """The decoded bytes of all members or frames of a compressed file, in chunks.

    Raises:
        Damaged: the file ends inside a member, or holds something else.
    """
    decoder = None
    decoded = 0
    while chunk := handle.read(_COMPRESSED_BYTES):
        while chunk:
            if decoder is None:
                if compression == "gzip" and decoded and not (chunk := chunk.lstrip(b"\0")):
                    break  # zero padding after the last member, as tape tools write it
                decoder = _CODECS[compression]()
            try:
                data = decoder.decompress(chunk)
            except (zlib.error, zstandard.ZstdError) as error:
                raise Damaged(f"corrupt {compression} stream", f"after {decoded} bytes") from error
            chunk = decoder.unused_data if decoder.eof else b""
            if decoder.eof:
                decoder = None
            if data:
                decoded += len(data)
                yield data
    if decoder is not None:
        raise Damaged(f"truncated {compression} stream", f"after {decoded} bytes")


def pieces(
    reader: ByteReader, separator: bytes, offset: int = 0, stop: int = sys.maxsize
) -> Iterator[tuple[int, list[bytes]]]:
    """The pieces between separators that start before `stop`, as (offset of the first, pieces) of one block each.

    Nothing after the last separator is no piece. Memory: a few blocks, or a few times the longest piece.

    Args:
        reader: at the start of a piece.
        offset: the position of `reader`.

    Raises:
        Damaged: with the offset and the bytes of the piece that was being read.
    """
    rest = b""
    while offset < stop:
        ahead = stop - offset - len(rest)
        wanted = min(BLOCK_BYTES, ahead) if ahead > 0 else _OVERRUN_BYTES
        try:
            # a piece longer than a block is read in steps that double, so that it is searched and copied twice at most
            data = reader.read(max(wanted, len(rest)))
        except Damaged as damage:
            damage.offset, damage.partial = offset, rest
            raise
        if not data:
            if rest:
                yield offset, [rest]
            return
        whole = (rest + data if rest else data).split(separator)
        rest = whole.pop()
        end = offset + sum(map(len, whole)) + len(separator) * len(whole)
        if end > stop:
            whole = _starting_before(stop, offset, whole, len(separator))
        if whole:
            yield offset, whole
        offset = end


def _starting_before(stop: int, offset: int, whole: list[bytes], separator_size: int) -> list[bytes]:
    for index, piece in enumerate(whole):
        if offset >= stop:
            return whole[:index]
        offset += len(piece) + separator_size
    return whole


def can_cut(separator: bytes) -> bool:
    """Whether occurrences of `separator` never overlap, so that they can be found from any position of a file."""
    return not any(separator.startswith(separator[i:]) for i in range(1, len(separator)))


def first_start(handle: BinaryIO, file: SourceFile, separator: bytes, start: int, stop: int) -> int | None:
    """The offset of the first piece that starts in [start, stop) of a plain file, or None."""
    for offset, block in _occurrences(handle, file, separator, start, stop):
        if (found := block.find(separator)) >= 0:
            return offset + found + len(separator)
    return None


def count_starts(handle: BinaryIO, file: SourceFile, separator: bytes, start: int, stop: int) -> int:
    """How many pieces start in [start, stop) of a plain file."""
    blocks = _occurrences(handle, file, separator, start, stop)
    return int(start == 0) + sum(block.count(separator) for _, block in blocks)


def _occurrences(
    handle: BinaryIO, file: SourceFile, separator: bytes, start: int, stop: int
) -> Iterator[tuple[int, bytes]]:
    """Blocks that hold each separator which ends in (0, stop) at or after `start`, exactly once, with their offsets.

    A piece starts where a separator ends, so the blocks run from len(separator) before `start` to `stop` - 1, and
    each repeats the last len(separator) - 1 bytes of the one before it.
    """
    overlap = len(separator) - 1
    position = max(start - len(separator), 0)
    reader = byte_reader(file, handle, position)
    tail = b""
    while position < stop - 1:
        data = reader.read(min(BLOCK_BYTES, stop - 1 - position))
        if not data:
            return
        block = tail + data
        yield position - len(tail), block
        position += len(data)
        tail = block[-overlap:] if overlap else b""
