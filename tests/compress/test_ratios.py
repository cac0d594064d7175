import math
import zlib

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.compress.byte_compressors import byte_compressor, zstd_with_dictionary
from seqmill.compress.ratios import CompressedSize, IdStreamSize, compressed_sizes, id_stream_size
from seqmill.errors import UserError
from seqmill.tokenizers_ext.byte_level import ByteEncoder


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_sizes_are_those_of_the_output(documents: list[bytes]) -> None:
    alone, together = compressed_sizes(iter(documents), [byte_compressor("zlib:9")])
    total = sum(map(len, documents))
    size = sum(len(zlib.compress(document, 9)) for document in documents)
    assert alone == CompressedSize("zlib:9", "documents", len(documents), total, size, 0)
    stream = len(zlib.compress(b"".join(documents), 9))
    assert together == CompressedSize("zlib:9", "stream", len(documents), total, stream, 0)


def test_every_compressor_has_two_rows_and_similar_documents_gain_from_a_stream() -> None:
    documents = [f"document {k} of a series, much like the others".encode() for k in range(60)]
    names = ["zstd:3", "zstd:19", "xz", "brotli", "gzip", "bz2"]
    rows = compressed_sizes(documents, [byte_compressor(name) for name in names])
    assert [(row.system, row.scope) for row in rows] == [(n, s) for s in ("documents", "stream") for n in names]
    for alone, together in zip(rows[:6], rows[6:], strict=True):
        assert 3 * together.compressed_bytes < alone.compressed_bytes
        assert together.ratio == together.bytes / together.compressed_bytes
        assert together.bits_per_byte == pytest.approx(8 / together.ratio)


def test_a_dictionary_counts_once() -> None:
    documents = [f"document {k} of a series, much like the others".encode() for k in range(500)]
    trained = zstd_with_dictionary(documents, 1024)
    row = compressed_sizes(documents[:10], [trained])[0]
    assert row.dictionary_bytes == trained.dictionary_bytes > 0
    assert row.compressed_bytes == sum(len(trained.compress(document)) for document in documents[:10])
    assert row.ratio == row.bytes / (row.compressed_bytes + row.dictionary_bytes)


def test_ids_of_bytes_worked_by_hand() -> None:
    encoder = ByteEncoder()
    batches = [pa.array([b"aa", b"bb"], pa.binary()), pa.array(["xx", "", "bbbb"])[1:], pa.array([], pa.binary())]
    row = id_stream_size("bytes", encoder.encode, encoder.vocab_size, batches)
    assert row == IdStreamSize("bytes", 4, 8, 8, encoder.vocab_size, 2, pytest.approx(8 * 0.8112781244591328), 0)
    assert row.fixed_bits == 8 * 9  # 256 bytes and the special ids
    assert (row.fixed_bits_per_byte, row.bytes_per_token) == (9.0, 1.0)
    assert row.entropy_bits_per_byte == pytest.approx(0.8112781244591328)


def test_ends_of_documents_and_the_artifact_count_when_asked_for() -> None:
    encoder = ByteEncoder()
    batch = pa.array([b"aa", b"", b"aaa", b""], pa.large_binary())
    row = id_stream_size("bytes", encoder.encode, encoder.vocab_size, [batch], encoder.special_ids["eos"], 100)
    assert (row.tokens, row.bytes, row.ids_used) == (9, 5, 2)
    share = 4 / 9
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert row.entropy_bits_per_byte == pytest.approx((9 * entropy + 800) / 5)
    assert row.fixed_bits_per_byte == (9 * 9 + 800) / 5


def test_a_corpus_without_text_has_no_ratio() -> None:
    assert compressed_sizes([], [byte_compressor("zstd")])[0].bits_per_byte == math.inf
    empty = id_stream_size("bytes", ByteEncoder().encode, 258, [])
    assert (empty.tokens, empty.entropy_bits, empty.entropy_bits_per_byte) == (0, 0.0, math.inf)


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="gave id 98, outside its vocabulary of 98"):
        id_stream_size("bytes", ByteEncoder().encode, 98, [pa.array([b"ab"], pa.large_binary())])
