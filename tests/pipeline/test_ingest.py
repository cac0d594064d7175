import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pools import local
from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.pipeline import records
from seqmill.pipeline.execution import Progress, Record
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.storage import read_arrow, read_metadata

Run = Callable[..., Any]
Write = Callable[[str, bytes | str], Path]


class CountingExecutor:
    """Notes which units are run."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, call: Callable[[Any], Record], arguments: Sequence[Any]) -> Iterable[Record]:
        for argument in arguments:
            self.ran.append(argument.unit.name)
            yield call(argument)


def corpus(write: Write) -> Path:
    write("a.jsonl", "".join(json.dumps({"text": f"text {i}", "id": i}) + "\n" for i in range(100)))
    write("b.jsonl.zst", "".join(json.dumps({"text": f"more {i}"}) + "\n" for i in range(20)) + '{"text": null}\n')
    return write("c/d.txt", "plain\n").parent.parent


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and ".state" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_manifest_says_what_was_read_lost_and_written(run: Run, write: Write):
    folder = corpus(write)
    write("e.jsonl", '{"text": ""}\n{"text": "\\u00a0"}\n{"text": "ab"}\n')
    write("LICENSE", "x")
    manifest = run(folder, normalise=NormaliseConfig(min_bytes=3)).manifest
    assert [source["name"] for source in manifest["inputs"]] == ["a.jsonl", "b.jsonl.zst", "c/d.txt", "e.jsonl"]
    assert manifest["skipped_inputs"] == ["LICENSE"]
    assert manifest["funnel"] == [
        {
            "stage": "ingest",
            "documents_in": 125,
            "bytes_in": 690 + 130 + 14 + 6 + 4,
            "documents_out": 124,
            "bytes_out": 690 + 130 + 6 + 4,
            "reasons": {"bad: text is null": {"documents": 1, "bytes": 14}},
        },
        {
            "stage": "normalise",
            "documents_in": 124,
            "bytes_in": 830,
            "documents_out": 121,
            "bytes_out": 826,
            "reasons": {"empty": {"documents": 2, "bytes": 2}, "short": {"documents": 1, "bytes": 2}},
            "rewritten_documents": 0,
        },
    ]
    assert manifest["totals"] == {"documents": 121, "bytes": 826}
    assert manifest["null_fields"] == {"id": 21}
    assert manifest["quarantined"]["reasons"]["text is null"]["first"] == {"file": "b.jsonl.zst", "line": 21}


def test_ids_join_the_ordinal_of_the_file_and_the_row(run: Run, write: Write):
    ids = run(corpus(write)).table["doc_id"].to_pylist()
    assert ids == [*range(100), *((1 << 40) + row for row in range(20)), 2 << 40]


def test_parts_can_be_opened_and_carry_their_kind_and_fingerprint(run: Run, write: Write):
    found = run(corpus(write), unit_bytes=500)
    open_manifest(found.out, "documents")
    described = [read_metadata(read_arrow(path).schema) for path in sorted(found.out.glob("part-*.arrow"))]
    assert {entry["kind"] for entry in described} == {"documents"}
    assert len({entry["fingerprint"] for entry in described}) == 1


def test_a_unit_without_documents_writes_an_empty_part(run: Run, write: Write):
    found = run(write("a.jsonl", "\n" * 1000), unit_bytes=500)
    assert [file["rows"] for file in found.manifest["files"]] == [0, 0]


def test_outputs_depend_neither_on_place_time_nor_workers(tmp_path: Path, run: Run, write: Write, progress: Progress):
    folder = corpus(write)
    elsewhere = tmp_path / "clone/of/in"
    elsewhere.parent.mkdir(parents=True)
    subprocess.run(["cp", "-r", folder, elsewhere], check=True)
    os.utime(elsewhere / "a.jsonl", (1, 1))
    one = run(folder, unit_bytes=700)
    config = IngestConfig((str(elsewhere),), unit_bytes=700, max_bad_fraction=1.0)
    ingest(config, NormaliseConfig(), tmp_path / "two", local(2), progress)
    assert len(contents(one.out)) > 5
    assert contents(one.out) == contents(tmp_path / "two")


def test_batches_are_bounded_whatever_the_size_of_a_unit(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "BATCH_BYTES", 2000)
    monkeypatch.setattr("seqmill.pipeline.streams.BLOCK_BYTES", 1000)
    found = run(write("a.jsonl", (json.dumps({"text": "x" * 90}) + "\n") * 200))
    sizes = [chunk.nbytes for chunk in found.table["text"].chunks]
    assert len(sizes) > 5
    assert max(sizes) < 4000


def resumed(folder: Path, out: Path, progress: Progress, **config: Any) -> tuple[list[str], dict[str, bytes]]:
    executor = CountingExecutor()
    settings = IngestConfig((str(folder),), **{"unit_bytes": 500, "max_bad_fraction": 1.0, **config})
    ingest(settings, NormaliseConfig(), out, executor, progress)
    return executor.ran, contents(out)


def test_a_finished_run_does_nothing_again_and_a_lost_part_is_redone_alone(
    tmp_path: Path, write: Write, progress: Progress
):
    folder, out = corpus(write), tmp_path / "out"
    first, whole = resumed(folder, out, progress)
    assert {name[:5] for name in first} == {"scan-", "part-"}
    assert resumed(folder, out, progress) == ([], whole)
    (out / "part-00002.arrow").unlink()
    assert resumed(folder, out, progress) == (["part-00002"], whole)
    (out / "quarantine").rename(out / "lost")
    ran, again = resumed(folder, out, progress)
    assert len(ran) == 1
    assert {name: again[name] for name in whole} == whole


def test_a_changed_input_is_read_again(tmp_path: Path, write: Write, progress: Progress):
    folder, out = corpus(write), tmp_path / "out"
    resumed(folder, out, progress)
    write("c/d.txt", "other\n")
    ran, _ = resumed(folder, out, progress)
    assert ran == [max(path.stem for path in out.glob("part-*"))]
    assert read_arrow(out / f"{ran[0]}.arrow")["text"].to_pylist()[-1] == "other\n"


def test_parts_of_a_finer_cut_do_not_stay(tmp_path: Path, write: Write, progress: Progress):
    folder, out = corpus(write), tmp_path / "out"
    resumed(folder, out, progress)
    _, again = resumed(folder, out, progress, unit_bytes=1 << 20)
    _, fresh = resumed(folder, tmp_path / "fresh", progress, unit_bytes=1 << 20)
    assert again == fresh


def test_too_many_bad_records_stop_the_run_with_a_way_out(tmp_path: Path, write: Write, progress: Progress):
    folder, out = corpus(write), tmp_path / "out"
    write("b.jsonl", '{"text": "good"}\n{"txt": 1}\n{"txt": 2}\n{"text": 3}\n')
    resumed(folder, out, progress)
    words = (
        r"4 of 126 records cannot be read \(3.17%\), ingest.max_bad_fraction = 0.03 allows 3.00%; most often: "
        r"no text field \(2 times, first b.jsonl:2\)\. Samples are in .*quarantine.*raise ingest.max_bad_fraction"
    )
    with pytest.raises(UserError, match=words):
        resumed(folder, out, progress, max_bad_fraction=0.03)
    assert not (out / "manifest.json").exists()
    assert resumed(folder, out, progress, max_bad_fraction=0.032)[0] == []
    assert (out / "manifest.json").exists()


def test_the_limit_is_taken_literally_for_a_tiny_corpus(run: Run, write: Write):
    path = write("a.jsonl", '{"text": "a"}\n' * 9 + "{}\n")
    with pytest.raises(UserError, match=r"1 of 10 records"):
        run(path, max_bad_fraction=0.001)
    assert len(run(path, max_bad_fraction=0.1).texts) == 9


def test_the_quarantine_keeps_as_many_records_as_asked(run: Run, write: Write):
    path = write("a.jsonl", "{}\n" * 50)
    assert len(run(path, quarantine_sample=7).quarantined()) == 7
    none = run(path, quarantine_sample=0)
    assert none.quarantined() == []
    assert none.bad == {"no text field": 50}


FULL_DISK = """
import resource, sys
from pathlib import Path
from seqmill.errors import UserError
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent

resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    ingest(IngestConfig((sys.argv[1],)), NormaliseConfig(), Path(sys.argv[2]), LocalExecutor(1), Silent())
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_an_error_that_leaves_nothing_half_written(tmp_path: Path, write: Write):
    path = write("a.jsonl", (json.dumps({"text": "x" * 1000}) + "\n") * 1000)
    command = [sys.executable, "-P", "-c", FULL_DISK, str(path), str(tmp_path / "out")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in found.stdout
    assert "Nothing was left under a final name" in found.stdout
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inputs": ()}, "ingest.inputs = .*: name at least one"),
        ({"inputs": ("",)}, "ingest.inputs = .*: name at least one"),
        ({"format": "csv"}, "ingest.format = 'csv': choose one of auto, jsonl"),
        ({"separator": ""}, "ingest.separator = '': leave it out"),
        ({"unit_bytes": 0}, "ingest.unit_bytes = 0: use at least 1"),
        ({"max_bad_fraction": 1.5}, "ingest.max_bad_fraction = 1.5: use a fraction"),
        ({"max_bad_fraction": float("nan")}, "ingest.max_bad_fraction = nan: use a fraction"),
        ({"quarantine_sample": -1}, "ingest.quarantine_sample = -1: use 0"),
        ({"keep_fields": ("text",)}, "ingest.keep_fields: 'text' would be there twice"),
        ({"keep_fields": ("a", "b", "a")}, "ingest.keep_fields: 'a' would be there twice"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, words: str):
    with pytest.raises(UserError, match=words):
        IngestConfig(**{"inputs": ("x",), **settings})
