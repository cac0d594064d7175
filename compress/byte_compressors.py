"""General-purpose compressors by name: bytes in, bytes out, one document at a time or all as one stream.

Names are a format and maybe a level: "zstd", "zstd:19", "gzip:9". All release the GIL, and threads may share one.
"""

import bz2
import importlib
import lzma
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import zstandard

from seqmill.errors import UserError


class Stream(Protocol):
    """A compressor of one stream: what it returned, put together and ended by `flush`, is the whole."""

    def compress(self, data: bytes, /) -> bytes:
        """Take more data; whatever is ready, maybe nothing."""
        ...

    def flush(self) -> bytes:
        """All that is left."""
        ...


@dataclass(frozen=True)
class ByteCompressor:
    """A compressor with its settings."""

    name: str
    compress: Callable[[bytes], bytes]  # a document by itself, headers included
    stream: Callable[[], Stream]
    dictionary_bytes: int = 0  # that the reader needs besides


@dataclass(frozen=True)
class Format:
    """What makes compressors of one format."""

    levels: range
    default: int  # what its own tool or library takes
    make: Callable[[str, int], ByteCompressor]  # from name and level


def byte_compressor(name: str) -> ByteCompressor:
    """The compressor called "format" or "format:level".

    Raises:
        UserError: there is no such format or level, or its library is not installed.
    """
    stem, _, given = name.partition(":")
    if stem not in FORMATS:
        raise UserError(f"there is no compressor {name!r}; choose one of {', '.join(FORMATS)}, maybe with a :level")
    known = FORMATS[stem]
    level = int(given) if given.isdecimal() else known.default
    if level not in known.levels or (":" in name and not given.isdecimal()):
        raise UserError(f"compressor {name!r}: levels of {stem} are {known.levels[0]} to {known.levels[-1]}")
    return known.make(name, level)


def zstd_with_dictionary(samples: Sequence[bytes], dictionary_size: int, level: int = 3) -> ByteCompressor:
    """zstd with a dictionary for short documents, trained on samples: not on what is measured with it.

    Args:
        samples: documents like those to come.
        dictionary_size: the most bytes of the dictionary; about a hundred times as much in samples is advised.

    Raises:
        UserError: the samples are too few for a dictionary.
    """
    try:
        trained = zstandard.train_dictionary(dictionary_size, list(samples), level=level)
    except zstandard.ZstdError as error:
        raise UserError(
            f"no zstd dictionary of {dictionary_size} bytes can be trained on {len(samples)} samples of "
            f"{sum(map(len, samples))} bytes: {error}; give more samples or ask for a smaller one"
        ) from error
    stored = len(trained.as_bytes())
    trained.precompute_compress(level=level)
    return _zstd(f"zstd:{level}, dictionary of {stored} bytes", level, trained, stored)


def _zstd(
    name: str, level: int, dictionary: zstandard.ZstdCompressionDict | None = None, dictionary_bytes: int = 0
) -> ByteCompressor:
    own = threading.local()  # a compressor does one thing at a time, and is dear to make

    def compressor() -> zstandard.ZstdCompressor:
        if not hasattr(own, "compressor"):
            own.compressor = zstandard.ZstdCompressor(level, dict_data=dictionary)
        return own.compressor

    def stream() -> Stream:
        return zstandard.ZstdCompressor(level, dict_data=dictionary).compressobj()

    return ByteCompressor(name, lambda data: compressor().compress(data), stream, dictionary_bytes)


def _zlib(wbits: int) -> Callable[[str, int], ByteCompressor]:
    def make(name: str, level: int) -> ByteCompressor:
        return ByteCompressor(
            name, lambda data: zlib.compress(data, level, wbits), lambda: zlib.compressobj(level, zlib.DEFLATED, wbits)
        )

    return make


def _xz(name: str, level: int) -> ByteCompressor:
    return ByteCompressor(
        name, lambda data: lzma.compress(data, preset=level), lambda: lzma.LZMACompressor(preset=level)
    )


def _bz2(name: str, level: int) -> ByteCompressor:
    return ByteCompressor(name, lambda data: bz2.compress(data, level), lambda: bz2.BZ2Compressor(level))


def _brotli(name: str, level: int) -> ByteCompressor:
    try:
        brotli: Any = importlib.import_module("brotli")
    except ModuleNotFoundError as error:
        raise UserError("compressor 'brotli' needs its library: pip install 'seqmill[compress]'") from error

    class BrotliStream:
        def __init__(self) -> None:
            self._compressor = brotli.Compressor(quality=level)

        def compress(self, data: bytes, /) -> bytes:
            return self._compressor.process(data)

        def flush(self) -> bytes:
            return self._compressor.finish()

    return ByteCompressor(name, lambda data: brotli.compress(data, quality=level), BrotliStream)


DEFLATE, GZIP = 15, 31  # zlib's names for its own wrapper and gzip's, with the largest window
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "zstd": Format(range(1, 23), 3, _zstd),
        "xz": Format(range(10), 6, _xz),
        "brotli": Format(range(12), 11, _brotli),
        "gzip": Format(range(1, 10), 6, _zlib(GZIP)),
        "zlib": Format(range(1, 10), 6, _zlib(DEFLATE)),
        "bz2": Format(range(1, 10), 9, _bz2),
    }
)
