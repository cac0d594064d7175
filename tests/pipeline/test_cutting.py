import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seqmill.pipeline import cutting
from seqmill.pipeline.cutting import pack_units, segments_from
from seqmill.pipeline.records import Segment
from seqmill.pipeline.sources import SourceFile

Run = Callable[..., Any]
Write = Callable[[str, bytes | str], Path]


def file(ordinal: int, size: int, format_: str = "jsonl") -> SourceFile:
    return SourceFile(f"{ordinal}", f"/{ordinal}", format_, "", size, "stamp", "source", ordinal)


def test_small_neighbours_share_a_unit_up_to_its_size():
    sizes = [3, 3, 3, 20, 1, 1]
    units = pack_units([Segment(file(i, size)) for i, size in enumerate(sizes)], 8, {})
    assert [unit.name for unit in units] == ["part-00000", "part-00001", "part-00002", "part-00003"]
    assert [[s.file.size for s in segments_from(unit.payload)] for unit in units] == [[3, 3], [3], [20], [1, 1]]


def test_a_unit_has_a_bounded_number_of_segments(monkeypatch):
    monkeypatch.setattr(cutting, "MAX_SEGMENTS", 10)
    units = pack_units([Segment(file(i, 0)) for i in range(25)], 8, {})
    assert [len(unit.payload["segments"]) for unit in units] == [10, 10, 5]


def test_a_payload_is_json_that_gives_its_segments_back():
    segments = [Segment(file(0, 10), 0, 5, 0), Segment(file(0, 10), 5, 10, 2), Segment(file(1, 3))]
    (unit,) = pack_units(segments, 100, {"setting": 1})
    payload = json.loads(json.dumps(unit.payload))
    assert segments_from(payload) == segments
    assert payload["setting"] == 1


def test_many_tiny_files_make_few_parts(run: Run, write: Write):
    for index in range(300):
        folder = write(f"{index:03d}.txt", f"document {index}").parent
    found = run(folder)
    assert len(found.manifest["files"]) == 1
    assert found.texts == [f"document {i}" for i in range(300)]
    assert found.table["doc_id"].to_pylist() == [i << 40 for i in range(300)]
    assert found.table.column("text").num_chunks == 1


def test_documents_and_ids_do_not_depend_on_the_size_of_units(run: Run, write: Write):
    write("a.jsonl", "".join(json.dumps({"text": "x" * (i % 50), "id": i}) + "\n" for i in range(200)))
    write("b.jsonl.gz", "".join(json.dumps({"text": f"y{i}"}) + "\n" for i in range(50)))
    folder = write("c.txt", "z").parent
    tables = [run(folder, unit_bytes=unit_bytes).table for unit_bytes in (700, 5000, 1 << 26)]
    assert all(table.equals(tables[0]) for table in tables)
    assert len(tables[0]) == 4 * 49 + 50 + 1


def test_only_files_larger_than_a_unit_are_scanned(run: Run, write: Write):
    write("a.jsonl", '{"text": "one"}\n' * 10)
    folder = write("b.jsonl", '{"text": "two"}\n').parent
    found = run(folder, unit_bytes=100)
    assert len(list((found.out / ".state").glob("scan-*"))) == 2
    assert len(list((run(folder).out / ".state").glob("scan-*"))) == 0
