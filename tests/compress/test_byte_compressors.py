import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.compress.byte_compressors import FORMATS, byte_compressor, zstd_with_dictionary
from seqmill.errors import UserError

READERS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    "xz": lzma.decompress,
    "brotli": brotli.decompress,
    "gzip": gzip.decompress,
    "zlib": zlib.decompress,
    "bz2": bz2.decompress,
}

HEADER = 10  # bytes of gzip that name the time and the system


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(FORMATS)), st.lists(st.binary(max_size=50), max_size=5), st.data())
def test_documents_and_streams_come_back_at_every_level(name: str, parts: list[bytes], draw: st.DataObject) -> None:
    level = draw.draw(st.sampled_from(FORMATS[name].levels))
    compressor = byte_compressor(f"{name}:{level}")
    whole = b"".join(parts)
    assert READERS[name](compressor.compress(whole)) == whole
    stream = compressor.stream()
    assert READERS[name](b"".join([*map(stream.compress, parts), stream.flush()])) == whole


def test_a_name_without_a_level_takes_the_default() -> None:
    data = bytes(range(256)) * 40
    assert byte_compressor("zstd").compress(data) == zstandard.ZstdCompressor(3).compress(data)
    assert byte_compressor("gzip").compress(data)[HEADER:] == gzip.compress(data, 6)[HEADER:]


@pytest.mark.parametrize("name", ["snappy", "zstd:23", "zstd:0", "xz:", "gzip:best", ":3", "gzip:-1"])
def test_unknown_compressors_and_levels_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        byte_compressor(name)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "brotli", None)
    with pytest.raises(UserError, match=r"seqmill\[compress\]"):
        byte_compressor("brotli")


SAMPLES = [f'{{"user": {k}, "name": "someone number {k * 7919 % 1000}", "active": true}}'.encode() for k in range(2000)]


def test_a_dictionary_makes_short_documents_smaller_and_its_bytes_are_counted() -> None:
    trained = zstd_with_dictionary(SAMPLES[::2], 4096)
    assert 0 < trained.dictionary_bytes <= 4096
    plain = byte_compressor("zstd:3")
    assert 2 * sum(len(trained.compress(d)) for d in SAMPLES[1::2]) < sum(len(plain.compress(d)) for d in SAMPLES[1::2])


def test_threads_share_a_compressor_and_get_the_same_bytes() -> None:
    for compressor in (zstd_with_dictionary(SAMPLES, 4096), *map(byte_compressor, FORMATS)):
        expected = [compressor.compress(document) for document in SAMPLES[:100]]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(compressor.compress, SAMPLES[:100])) == expected


def test_too_few_samples_for_a_dictionary_are_refused() -> None:
    with pytest.raises(UserError, match="2 samples of 2 bytes"):
        zstd_with_dictionary([b"a", b"b"], 4096)
