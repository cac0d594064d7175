import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.pipeline.execution import Executor, Record
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.funnel import check_funnel
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.substrings import SubstringConfig, cut_substrings, work
from seqmill.storage import read_arrow

from . import oracle
from .corpus import Documents, repetitive_texts, write_documents


class Found:
    """The outcome of a run, after the checks that hold for every run."""

    def __init__(self, documents: Documents, out: Path, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        self.texts = [text.encode() for text, _ in documents]
        self.kept = pa.concat_tables(read_arrow(out / file["name"]) for file in manifest["files"])
        self.spans = pq.read_table(out / "spans.parquet").to_pylist()
        self.removed = pq.read_table(out / "removed.parquet").to_pylist()
        self.files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        check_funnel(manifest["funnel"])
        (entry,) = manifest["funnel"]
        left = [text.encode() for text in self.kept["text"].to_pylist()]
        assert (entry["documents_in"], entry["bytes_in"]) == (len(self.texts), sum(map(len, self.texts)))
        assert (entry["documents_out"], entry["bytes_out"]) == (len(left), sum(map(len, left)))
        marked = sum(span["stop"] - span["start"] for span in self.spans)
        assert marked == manifest["duplicates"]["bytes"] == sum(c["bytes"] for c in manifest["occurrences"].values())
        for span in self.spans:
            length = span["stop"] - span["start"]
            source = self.texts[span["kept_doc_id"]][span["kept_start"] : span["kept_start"] + length]
            assert self.texts[span["doc_id"]][span["start"] : span["stop"]] == source
            assert (span["kept_doc_id"], span["kept_start"]) < (span["doc_id"], span["start"])
            assert (span["id"], span["kept_id"]) == (f"d{span['doc_id']}", f"d{span['kept_doc_id']}")

    def runs(self) -> list[tuple[int, int, int]]:
        """(document, start, stop) of the spans, adjacent ones joined."""
        runs: list[tuple[int, int, int]] = []
        for span in self.spans:
            document, start, stop = span["doc_id"], span["start"], span["stop"]
            if runs and runs[-1][0] == document and runs[-1][2] == start:
                start = runs.pop()[1]
            runs.append((document, start, stop))
        return runs


class Backwards:
    """Runs the last unit first: nothing may depend on the order of completion."""

    def run(self, call: Callable[[Any], Record], arguments: Sequence[Any]) -> Iterator[Record]:
        yield from map(call, reversed(arguments))


Run = Callable[..., Found]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(
        texts: list[str] | Documents,
        per_part: int = 1000,
        per_batch: int = 1000,
        executor: Executor = LocalExecutor(1),  # noqa: B008
        **config: Any,
    ) -> Found:
        documents = [(one, "web") if isinstance(one, str) else one for one in texts]
        for name in ("documents", "out"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        folder = write_documents(tmp_path / "documents", documents, per_part, per_batch)
        settings = SubstringConfig(**{"min_bytes": 8, **config})
        out = tmp_path / "out"
        return Found(documents, out, cut_substrings(folder, settings, out, executor, Silent()))

    return call


@settings(max_examples=20)
@given(texts=repetitive_texts(), min_bytes=st.integers(8, 13), per_part=st.integers(1, 4), per_batch=st.integers(1, 3))
def test_marked_bytes_are_those_of_the_definition(
    run: Run, texts: list[str], min_bytes: int, per_part: int, per_batch: int
) -> None:
    expected = oracle.marked_runs([text.encode() for text in texts], min_bytes)
    found = run(texts, per_part, per_batch, min_bytes=min_bytes, action="annotate")
    assert found.runs() == expected
    taken = [sum(b - a for d, a, b in expected if d == k) for k in range(len(texts))]
    assert found.kept["text"].to_pylist() == texts
    assert found.kept["duplicate_bytes"].to_pylist() == taken
    assert found.removed == []


def test_a_later_copy_is_cut_and_the_first_stays(run: Run) -> None:
    found = run(["one shared sentence of text.", "Before: one shared sentence of text. After."])
    assert found.kept["text"].to_pylist() == ["one shared sentence of text.", "Before:  After."]
    (span,) = found.spans
    assert (span["start"], span["stop"], span["kept_doc_id"], span["kept_start"]) == (8, 36, 0, 0)
    assert found.manifest["funnel"][0]["reasons"] == {"substring": {"documents": 0, "bytes": 28}}


def words(count: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(count))


def test_spans_never_cross_documents(run: Run) -> None:
    found = run(["abcdefghijkl", "abcdef", "ghijkl", "ghijkl"])
    assert found.spans == []


def test_a_document_that_repeats_itself_keeps_one_period(run: Run) -> None:
    assert run(["ha" * 500]).kept["text"].to_pylist() == ["ha"]


def test_cut_text_is_whole_characters(run: Run) -> None:
    # the shared bytes begin and end inside characters that differ: é is C3 A9, ũ is C5 A9
    found = run(["é shared and long ť", "ũ shared and long Ť"])
    assert found.kept["text"].to_pylist() == ["é shared and long ť", "ũŤ"]


def test_documents_with_too_little_left_are_removed_with_evidence(run: Run) -> None:
    shared = words(10, 1)
    texts = [(shared, "books"), (shared, "web"), (f"{shared} tail", "web"), ("tiny", "web"), ("", "web")]
    found = run(texts)
    assert found.kept["id"].to_pylist() == ["d0", "d2", "d3", "d4"]  # short and empty documents were not cut
    assert found.manifest["by_source"] == {
        "books": {
            "kept": {"documents": 1, "bytes": 69},
            "substring": {"documents": 0, "bytes": 0},
            "duplicate": {"documents": 0, "bytes": 0},
        },
        "web": {
            "kept": {"documents": 3, "bytes": 9},
            "substring": {"documents": 1, "bytes": 138},
            "duplicate": {"documents": 2, "bytes": 138},
        },
    }
    assert found.manifest["occurrences"] == {"2-3": {"documents": 2, "bytes": 138}}
    more = run(texts, min_kept_bytes=6)
    first, second = more.removed
    assert first == {
        "doc_id": 1,
        "id": "d1",
        "reason": "substring",
        "kept_doc_id": 0,
        "kept_id": "d0",
        "kept_from": "input",
        "similarity": 1.0,
        "cluster_id": 0,
    }
    assert (second["id"], second["similarity"]) == ("d2", pytest.approx(69 / 74))
    assert more.manifest["funnel"][0]["reasons"] == {"substring": {"documents": 2, "bytes": 69 + 74}}


def test_a_removed_document_names_the_source_of_its_longest_span(run: Run) -> None:
    short, long = words(3, 1), words(9, 2)
    removed = run([short, long, short + long, short]).removed
    assert [(gone["id"], gone["kept_id"]) for gone in removed] == [("d2", "d1"), ("d3", "d0")]


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """Documents that share spans across parts, 90 kB: more anchors than one megabyte of memory compares at once."""
    shared = [words(12, 1000 + k) for k in range(30)]
    draw = random.Random(5)
    texts = [f"{words(30, k)} {draw.choice(shared)} {draw.choice(shared)} 漢{k}" for k in range(230)]
    return [*texts, " " * 5000, "", *(draw.choice(shared) for _ in range(40))]


def test_parts_batches_order_and_memory_change_nothing(run: Run, corpus: list[str]) -> None:
    one = run(corpus, min_bytes=20)
    two = run(corpus, min_bytes=20, per_part=50, per_batch=7, executor=Backwards(), memory_mb=1)
    assert one.spans == two.spans
    assert one.removed == two.removed
    assert one.kept.equals(two.kept)
    assert len(one.removed) == 40
    shared = {key: one.manifest[key] for key in one.manifest if key not in ("files", "fingerprint")}
    assert shared == {key: two.manifest[key] for key in shared}
    assert one.runs() == oracle.marked_runs(one.texts, 20)


def test_a_small_memory_means_more_passes_and_the_same_bytes(run: Run, corpus: list[str], tmp_path: Path) -> None:
    large = run(corpus, min_bytes=16, per_batch=20)
    assert len(list((tmp_path / "out/.state/copies").glob("*.arrow"))) == 1
    small = run(corpus, min_bytes=16, per_batch=20, memory_mb=1)
    assert len(list((tmp_path / "out/.state/copies").glob("*.arrow"))) > 1
    assert small.files == large.files


def test_what_is_done_is_not_done_again(
    run: Run, corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("sample", "find", "cut", "collect"):
        unit = getattr(work, name)
        monkeypatch.setattr(work, name, lambda *given, _unit=unit, _name=name: (done.append(_name), _unit(*given))[1])
    before = run(corpus, per_part=100)
    assert done == ["sample"] * 3 + ["find"] + ["cut"] * 3 + ["collect"]
    done.clear()
    out = tmp_path / "out"
    for lost in ("manifest.json", "part-00001.arrow", "spans.parquet", ".state/anchors/part-00000.repeats.arrow"):
        (out / lost).unlink()
    cut_substrings(tmp_path / "documents", SubstringConfig(min_bytes=8), out, LocalExecutor(1), Silent())
    assert done == ["sample", "cut", "collect"]
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before.files


def test_annotation_replaces_an_earlier_one(run: Run, tmp_path: Path) -> None:
    run([words(9, 1)] * 2, action="annotate")
    out = tmp_path / "again"
    longer = SubstringConfig(min_bytes=100, action="annotate")
    manifest = cut_substrings(tmp_path / "out", longer, out, LocalExecutor(1), Silent())
    table = read_arrow(out / manifest["files"][0]["name"])
    assert table.schema.names.count("duplicate_bytes") == 1
    assert table["duplicate_bytes"].to_pylist() == [0, 0]


@pytest.mark.parametrize("texts", [[], [""], ["", "short", ""]])
def test_a_corpus_without_windows_passes_through(run: Run, texts: list[str]) -> None:
    found = run(texts)
    assert found.kept["text"].to_pylist() == texts
    assert found.spans == found.removed == []


def test_a_content_that_is_too_frequent_for_the_memory_is_refused_with_the_numbers(run: Run) -> None:
    copies = ["abcdefgh"] * 9000
    with pytest.raises(UserError, match=r"memory_mb = 1: 9000 samples .* takes 2 MB; set memory_mb = 2"):
        run(copies, memory_mb=1)
    assert len(run(copies, memory_mb=3, per_part=9000).removed) == 8999


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"min_bytes": 7}, "8 to 65535"),
        ({"min_bytes": 70000}, "8 to 65535"),
        ({"action": "burn"}, "choose one of cut, annotate"),
        ({"min_kept_bytes": 0}, "at least 1"),
        ({"memory_mb": 0}, "memory_mb = 0"),
    ],
)
def test_impossible_settings_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SubstringConfig(**config)
