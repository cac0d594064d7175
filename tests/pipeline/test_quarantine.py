import json
from pathlib import Path

from seqmill.pipeline.quarantine import Quarantine, merge_stats, remove_stale


def test_counts_are_exact_and_the_sample_is_bounded(tmp_path: Path):
    quarantine = Quarantine(limit=2)
    for row in range(5):
        quarantine.add("a.jsonl", row, "broken", b"x" * row, offset=row * 10)
    assert quarantine.write(tmp_path, "part-00000") == {"quarantine/part-00000.jsonl": 2}
    lines = [json.loads(line) for line in (tmp_path / "quarantine/part-00000.jsonl").read_text().splitlines()]
    assert lines[1] == {"file": "a.jsonl", "row": 1, "line": 2, "offset": 10, "reason": "broken", "sample": "x"}
    assert len(lines) == 2
    stats = quarantine.stats()
    assert (stats["documents"], stats["bytes"]) == (5, 10)
    assert stats["reasons"]["broken"] == {"documents": 5, "bytes": 10, "first": {"file": "a.jsonl", "line": 1}}


def test_nothing_is_written_when_nothing_is_bad(tmp_path: Path):
    assert Quarantine(limit=2).write(tmp_path, "part-00000") == {}
    assert list(tmp_path.iterdir()) == []


def test_samples_show_undecodable_bytes_and_end_after_200_characters(tmp_path: Path):
    quarantine = Quarantine(limit=3)
    quarantine.add("f", 0, "r", b"a\xff\xed\xa0\x80")
    quarantine.add("f", 1, "r", "é".encode() * 1000)
    quarantine.add("f", 2, "r", "\U0001f600".encode() * 201)
    quarantine.write(tmp_path, "u")
    samples = [json.loads(line)["sample"] for line in (tmp_path / "quarantine/u.jsonl").read_text().splitlines()]
    assert samples == ["a\\xff\\xed\\xa0\\x80", "é" * 200, "\U0001f600" * 200]


def test_merging_keeps_the_first_example_in_the_order_of_units():
    first, second = Quarantine(limit=0), Quarantine(limit=0)
    first.add("a", 7, "r", b"12")
    second.add("b", 1, "r", b"3")
    second.add_damage("b", 2, "torn", b"", detail="after 9 bytes")
    merged = merge_stats([first.stats(), second.stats()])
    assert merged["reasons"]["r"] == {"documents": 2, "bytes": 3, "first": {"file": "a", "line": 8}}
    assert merged["damaged_files"] == [{"file": "b", "reason": "torn", "detail": "after 9 bytes"}]
    assert merged["documents"] == 3


def test_files_of_earlier_runs_are_removed(tmp_path: Path):
    for unit in ("part-00000", "part-00001"):
        quarantine = Quarantine(limit=1)
        quarantine.add("f", 0, "r", b"")
        quarantine.write(tmp_path, unit)
    remove_stale(tmp_path, ["quarantine/part-00001.jsonl", "part-00000.arrow"])
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == ["part-00001.jsonl"]
