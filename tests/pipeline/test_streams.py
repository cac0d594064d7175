import gzip
import io
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.pipeline import streams
from seqmill.pipeline.sources import SourceFile, discover
from seqmill.pipeline.streams import Damaged, byte_reader, can_cut, count_starts, decompress, first_start, pieces


def source(size: int) -> SourceFile:
    return SourceFile("f", "f", "jsonl", "", size, "", "f", 0)


def cut(data: bytes, separator: bytes, start: int, stop: int) -> list[tuple[int, bytes]]:
    """(offset, piece) of all pieces that start in [start, stop)."""
    begin = first_start(io.BytesIO(data), source(len(data)), separator, start, stop) if start else 0
    if begin is None:
        return []
    found = []
    for offset, block in pieces(byte_reader(source(len(data)), io.BytesIO(data), begin), separator, begin, stop):
        for piece in block:
            found.append((offset, piece))
            offset += len(piece) + len(separator)
    return found


@pytest.fixture(params=[1, 3, 1 << 20])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(streams, "BLOCK_BYTES", request.param)
    monkeypatch.setattr(streams, "_OVERRUN_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("separator", [b"\n", b"ab", b"<|x|>"])
@given(data=st.data())
def test_ranges_hold_every_piece_once_wherever_they_are_cut(block_bytes: int, separator: bytes, data: st.DataObject):
    parts = data.draw(st.lists(st.sampled_from([b"", b"a", b"b", b"ba", b"<|x", b"long" * 5]), max_size=8))
    content = separator.join(parts)
    expected, offset = [], 0
    whole = content.split(separator)
    for piece in whole[:-1] if not whole[-1] else whole:
        expected.append((offset, piece))
        offset += len(piece) + len(separator)
    cuts = data.draw(st.lists(st.integers(1, max(len(content) - 1, 1)), max_size=4))
    bounds = sorted({0, len(content), *(c for c in cuts if c < len(content))})
    found, rows = [], []
    for start, stop in pairwise(bounds):
        rows.append(count_starts(io.BytesIO(content), source(len(content)), separator, start, stop))
        found.append(cut(content, separator, start, stop))
    assert list(chain.from_iterable(found)) == expected
    assert [len(block) for block in found] == rows


def test_separators_that_overlap_themselves_are_not_cut_at():
    assert [can_cut(s) for s in (b"\n", b"ab", b"<|endoftext|>")] == [True] * 3
    assert [can_cut(s) for s in (b"\n\n", b"aba", b"--x--")] == [False] * 3


def test_overlapping_separators_match_from_the_left_in_blocks_of_any_size(block_bytes: int):
    data = b"a\n\n\nb\n\n\n\nc\n\n"
    assert [piece for _, piece in cut(data, b"\n\n", 0, len(data))] == data.split(b"\n\n")[:-1]


def test_a_file_that_grows_is_read_to_the_size_it_had():
    assert byte_reader(source(3), io.BytesIO(b"abcdef")).read(10) == b"abc"


def decoded(data: bytes, compression: str) -> tuple[bytes, Damaged | None]:
    chunks = []
    try:
        chunks.extend(decompress(io.BytesIO(data), compression))
    except Damaged as damage:
        return b"", damage
    return b"".join(chunks), None


def test_members_and_frames_follow_each_other():
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    assert decoded(gzip.compress(b"one") + gzip.compress(b"two"), "gzip") == (b"onetwo", None)
    assert decoded(zstandard.compress(b"one") + skippable + zstandard.compress(b"two"), "zstd") == (b"onetwo", None)


def test_zero_padding_after_a_gzip_member_is_no_damage():
    assert decoded(gzip.compress(b"one") + bytes(100_000), "gzip") == (b"one", None)


def test_a_window_of_two_gigabytes_is_accepted():
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    writer = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(writer, closefd=False) as compressor:
        compressor.write(b"text")
    assert decoded(writer.getvalue(), "zstd") == (b"text", None)


@pytest.mark.parametrize(("compression", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_a_stream_that_breaks_off_is_told_from_one_that_ends(compression: str, compress: Callable[[bytes], bytes]):
    data = compress(b"some text " * 50)
    damage = decoded(data[:-3], compression)[1]
    assert damage
    assert damage.reason == f"truncated {compression} stream"
    garbage = decoded(data + b"garbage that is no member", compression)[1]
    assert garbage
    assert garbage.reason == f"corrupt {compression} stream"


def test_everything_decoded_before_the_damage_is_returned_first(tmp_path: Path, write: Callable[..., Path]):
    path = write("a.jsonl", b"")
    whole = zstandard.compress(b"first\n") + zstandard.compress(b"second\nthird\n")
    path = path.rename(path.with_name("a.jsonl.zst"))
    path.write_bytes(whole[:-1])
    file = discover([str(path)]).files[0]
    found = []
    with path.open("rb") as handle, pytest.raises(Damaged) as caught:  # noqa: PT012  (what is found first counts)
        for _, block in pieces(byte_reader(file, handle), b"\n"):
            found += block
    assert found[0] == b"first"
    assert caught.value.reason == "truncated zstd stream"


def test_a_file_that_changed_since_the_run_began_is_refused(write: Callable[..., Path]):
    path = write("a.jsonl", b"1\n")
    file = discover([str(path)]).files[0]
    path.write_bytes(b"12\n")
    with pytest.raises(UserError, match="changed while it was being read"), streams.open_source(file):
        pass
    path.unlink()
    with pytest.raises(UserError, match="put it back"), streams.open_source(file):
        pass
