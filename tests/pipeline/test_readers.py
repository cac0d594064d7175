import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline import readers, streams

Run = Callable[..., Any]
Write = Callable[[str, bytes | str], Path]

GOOD = '{"text": "one", "id": "a"}\n'


def lines_of(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz", "a.jsonl.zst"])
def test_json_lines_come_through_plain_and_compressed(run: Run, write: Write, name: str):
    found = run(write(name, lines_of({"text": "é\n", "id": 7}, {"text": "b", "id": "x", "source": "s"})))
    assert found.table.to_pydict() == {
        "doc_id": [0, 1],
        "id": ["7", "x"],
        "text": ["é\n", "b"],
        "source": ["a", "s"],
    }


def test_members_and_frames_of_one_file_make_one_list_of_lines(run: Run, write: Write):
    parts = [b'{"text": "one"}\n{"te', b'xt": "two"}\n']
    write("a.jsonl", b"")
    folder = write("b.jsonl", b"").parent
    (folder / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    (folder / "b.jsonl.zst").write_bytes(b"".join(map(zstandard.compress, parts)))
    found = run(folder)
    assert found.texts == ["one", "two"] * 2
    assert found.rows == [0, 1] * 2


def test_byte_order_mark_crlf_and_blank_lines_are_accepted(run: Run, write: Write):
    found = run(write("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n  \n{"text": "two"}'))
    assert found.texts == ["one", "two"]
    assert found.rows == [0, 3]
    assert found.manifest["quarantined"]["blank_lines"] == 2
    assert found.manifest["quarantined"]["documents"] == 0


def test_fields_can_have_other_names_and_be_kept(run: Run, write: Write):
    records = [
        {"content": "one", "key": 12345678901234567890123, "lang": "en", "meta": {"b": [1, None]}},
        {"content": "two", "key": 1.5, "meta": True},
    ]
    path = write("a.jsonl", lines_of(*records))
    found = run(path, text_field="content", id_field="key", source="web", keep_fields=("lang", "meta"))
    assert found.table.drop_columns("doc_id").to_pydict() == {
        "id": ["12345678901234567890123", "1.5"],
        "text": ["one", "two"],
        "source": ["web", "web"],
        "lang": ["en", None],
        "meta": ['{"b":[1,null]}', "true"],
    }
    assert found.manifest["null_fields"] == {"id": 0, "lang": 1, "meta": 0}


BAD_LINES = [
    (b'{"text": "caf\xe9"}', "invalid UTF-8"),
    (b'{"id": 1}', "no text field"),
    (b'{"text": null}', "text is null"),
    (b'{"text": 5}', "text is not a string"),
    (b'{"text": ["a"]}', "text is not a string"),
    (b'{"text": "\\ud800"}', "lone surrogate escape in JSON"),
    (b'{"text": "a", "score": NaN}', "NaN or Infinity in JSON"),
    (b'{"text": "a"', "invalid JSON"),
    (b'["text"]', "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b"[" * 100_000, "invalid JSON"),
    (b"\x00\x00", "invalid JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_quarantined_with_its_place_and_its_neighbours_survive(
    run: Run, write: Write, line: bytes, reason: str
):
    found = run(write("a.jsonl", GOOD.encode() + line + b"\r\n" + GOOD.encode()))
    assert found.texts == ["one", "one"]
    assert found.rows == [0, 2]
    assert found.bad == {reason: 1}
    assert found.manifest["funnel"][0]["reasons"] == {f"bad: {reason}": {"documents": 1, "bytes": len(line)}}
    (entry,) = found.quarantined()
    assert entry == {
        "file": "a.jsonl",
        "row": 1,
        "line": 2,
        "offset": len(GOOD),
        "reason": reason,
        "sample": line[:800].decode("utf-8", "backslashreplace")[:200],
    }


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_lines_too_long_for_orjson_are_judged_alike(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch, line: bytes, reason: str
):
    monkeypatch.setattr(readers, "LONG_LINE_BYTES", 1)
    found = run(write("a.jsonl", b'{"text": "\\ud83d\\ude00 \xc3\xa9", "id": 1}\n' + line + b"\n"))
    assert found.texts == ["\U0001f600 é"]
    assert found.bad == {reason: 1}


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_truncated_file_keeps_its_readable_records_and_counts_as_damaged(run: Run, write: Write, compression: str):
    # frames of their own, so that what is decoded before the damage does not depend on the block size of a library
    compress = {"gz": gzip.compress, "zst": zstandard.compress}[compression]
    name = {"gz": "gzip", "zst": "zstd"}[compression]
    path = write(f"a.jsonl.{compression}", b"")
    path.write_bytes(compress(GOOD.encode() * 3 + b'{"text": "lost') + compress(GOOD.encode())[:8])
    found = run(path)
    assert found.texts == ["one"] * 3
    (damage,) = found.manifest["quarantined"]["damaged_files"]
    assert damage["file"] == f"a.jsonl.{compression}"
    assert damage["reason"] == f"truncated {name} stream"
    assert found.bad == {f"truncated {name} stream": 1}
    (entry,) = found.quarantined()
    assert (entry["row"], entry["offset"], entry["sample"]) == (3, 3 * len(GOOD), '{"text": "lost')
    assert entry["detail"] == f"after {3 * len(GOOD) + 14} bytes"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.txt.zst"])
def test_a_compressed_file_of_garbage_is_one_bad_record(run: Run, write: Write, name: str):
    path = write(name, b"")
    path.write_bytes(b"this is not compressed at all")
    found = run(path)
    assert found.texts == []
    assert [reason.split()[0] for reason in found.bad] == ["corrupt"]
    assert list(found.bad.values()) == [1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.txt.gz", "a.parquet", "a.arrow"])
def test_an_empty_file_has_no_documents(run: Run, write: Write, name: str):
    path = write(name, b"")
    path.write_bytes(b"")
    found = run(path)
    assert found.texts == []
    assert found.bad == {}
    assert found.table.schema.names == ["doc_id", "id", "text", "source"]


def test_a_compressed_file_of_nothing_has_no_documents(run: Run, write: Write):
    write("a.jsonl.gz", b"")
    assert run(write("a.txt.zst", b"").parent).texts == []


def test_plain_text_is_one_document_a_file(run: Run, write: Write):
    write("b.txt", "second\n\nstill second\n")
    write("a.md.zst", "first")
    write("c.txt.gz", b"\xef\xbb\xbfthird")
    found = run(write("d.txt", b"bad \xff").parent)
    assert found.texts == ["first", "second\n\nstill second\n", "third"]
    assert found.table["source"].to_pylist() == ["in", "in", "in"]
    assert found.table["id"].null_count == 3
    assert found.bad == {"invalid UTF-8": 1}


@pytest.mark.parametrize("separator", ["\n\n", "<|endoftext|>", "a"])
@pytest.mark.parametrize("unit_bytes", [1, 7, 1 << 20])
def test_documents_of_separated_text_are_the_pieces_between(run: Run, write: Write, separator: str, unit_bytes: int):
    text = f"one{separator}{separator}two é{separator}\n{separator}three"
    pieces = text.split(separator)
    found = run(write("a.txt", text), separator=separator, unit_bytes=unit_bytes)
    kept = {row: piece for row, piece in enumerate(pieces) if piece.strip()}
    assert found.texts == list(kept.values())
    assert found.rows == list(kept)


def test_a_piece_of_invalid_utf8_does_not_spoil_the_others(run: Run, write: Write):
    found = run(write("a.txt", b"one--\xff\xfe--three"), separator="--")
    assert found.texts == ["one", "three"]
    (entry,) = found.quarantined()
    assert (entry["row"], entry["offset"], entry["sample"]) == (1, 5, "\\xff\\xfe")


def test_urls_are_read_like_files(run: Run):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/raw/a.jsonl": (GOOD * 50).encode(), "/raw/b.jsonl.gz": gzip.compress(GOOD.encode())})
    try:
        found = run("memory://raw", unit_bytes=100)
    finally:
        memory.rm("/raw", recursive=True)
    assert found.texts == ["one"] * 51
    assert found.rows == [*range(50), 0]
    assert len(found.manifest["files"]) > 10


JSON_TEXT = st.text(max_size=12) | st.text('\r\n\t \u2028\x85{}"\\', max_size=6)
LINE = st.one_of(
    JSON_TEXT.map(lambda text: json.dumps({"text": text})),
    JSON_TEXT.map(lambda text: json.dumps({"text": text, "id": text, "n": 1}, ensure_ascii=False)),
    st.sampled_from(["", " ", "\t", '{"text": null}', '{"txt": 1}', "{", "[]", "3"]),
)


def oracle(content: bytes) -> list[tuple[int, str]]:
    """What json.loads makes of the lines: (row, text) of every record with a text that is not blank."""
    found = []
    for row, line in enumerate(content.split(b"\n")):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("text"), str) and record["text"].strip():
            found.append((row, record["text"]))
    return found


@given(
    lines=st.lists(LINE, max_size=8),
    ends=st.sampled_from(["\n", "\r\n"]),
    final=st.booleans(),
    unit_bytes=st.integers(1, 200),
    block_bytes=st.sampled_from([1, 5, 64, 1 << 20]),
)
def test_lines_cut_anywhere_give_what_json_gives_line_by_line(
    run: Run, write: Write, lines: list[str], ends: str, final: bool, unit_bytes: int, block_bytes: int
):
    content = (ends.join(lines) + (ends if final else "")).encode("utf-8", "surrogatepass")
    path = write("a.jsonl", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "BLOCK_BYTES", block_bytes)
        patch.setattr(streams, "_OVERRUN_BYTES", block_bytes)
        found = run(path, unit_bytes=max(unit_bytes, len(content) // 5 + 1))  # a unit is a file: a few are enough
    expected = [(row, text) for row, text in oracle(content) if not text.isspace()]
    assert list(zip(found.rows, found.texts, strict=True)) == expected
