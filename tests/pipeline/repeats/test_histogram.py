"""The histogram against counts made of nothing but the texts, and against loops over random groups."""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from seqmill.cli import app
from seqmill.errors import UserError
from seqmill.manifest import OutputFile, open_manifest, write_manifest
from seqmill.pipeline.dedup import DedupConfig, dedup
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.repeats import histogram
from seqmill.pipeline.repeats.histogram import bin_name, bin_of, table_lines
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.storage import read_arrow, write_arrow
from seqmill.tokenizers_ext import save_byte


class Corpus:
    """Articles of three sources, some of them several times, word for word or with a few words changed."""

    def __init__(self, root: Path) -> None:
        draw = random.Random(0)
        records = []
        for number in range(60):
            words = [f"word{draw.randrange(5000)}" for _ in range(draw.randrange(60, 120))]
            for _ in range(draw.choice([1, 1, 1, 2, 3, 5, 9])):
                text = list(words)
                if number % 3 == 0 and draw.random() < 0.5:
                    text[draw.randrange(len(text))] = "changed"
                source = draw.choice(["books", "code", "web"] if number % 2 else ["web"])
                records.append({"text": draw.choice([" ", "  "]).join(text), "source": source})
        draw.shuffle(records)
        records += [{"text": "", "source": "web"}] * 2 + [{"text": "🙂 é", "source": "code"}]
        raw = root / "raw"
        raw.mkdir()
        for part in range(3):
            lines = [json.dumps({**record, "id": f"{part}-{i}"}) + "\n" for i, record in enumerate(records[part::3])]
            (raw / f"{part}.jsonl").write_text("".join(lines))
        save_byte(root / "tokenizer")
        self.documents, self.dedup, self.tokens = root / "documents", root / "dedup", root / "tokens"
        one, silent = LocalExecutor(1), Silent()
        ingest(IngestConfig((str(raw),), max_bad_fraction=1.0), NormaliseConfig(), self.documents, one, silent)
        dedup(self.documents, DedupConfig(), self.dedup, one, silent)
        tokenize(self.documents, root / "tokenizer", TokenizeConfig(), self.tokens, one, silent)
        self.rows = rows_of(self.documents)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in open_manifest(folder)["files"] for row in read_arrow(folder / file["name"]).to_pylist()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("repeats"))


def slow_bin(copies: int) -> str:
    if copies <= 2:
        return str(copies)
    end = 4
    while end < copies:
        end *= 2
    return f"{end // 2 + 1}-{end}"


def oracle(rows: list[dict[str, Any]], group_of: dict[int, Any], units: list[str]) -> dict[str, Any]:
    """The counts of documents by the size of their group, the long way."""
    size = Counter(group_of[row["doc_id"]] for row in rows)
    sources = defaultdict(set)
    for row in rows:
        sources[group_of[row["doc_id"]]].add(row["source"])
    found: dict[str, Any] = {"all": {}, "by_source": {row["source"]: {} for row in rows}, "cross_source": {}}
    for row in rows:
        group = group_of[row["doc_id"]]
        amount = {"documents": 1, "bytes": len(row["text"].encode()), "tokens": len(row["text"].encode()) + 1}
        scopes = [found["all"], found["by_source"][row["source"]]]
        for scope in scopes + ([found["cross_source"]] if len(sources[group]) > 1 else []):
            count = scope.setdefault(slow_bin(size[group]), dict.fromkeys(units, 0))
            for unit in units:
                count[unit] += amount[unit]
    return found


@pytest.mark.parametrize("kind", ["tokens", "documents"])
def test_the_counts_are_those_of_the_texts_themselves(corpus: Corpus, kind: str) -> None:
    """Exact groups by comparing the texts of all documents; clusters by what the kept documents say of theirs."""
    result = histogram(corpus.dedup, getattr(corpus, kind))
    units = ["documents", "bytes", "tokens"][: 3 if kind == "tokens" else 2]
    assert result["units"] == units
    same_text = {row["doc_id"]: " ".join(row["text"].split()) for row in corpus.rows}
    assert result["exact"] == oracle(corpus.rows, same_text, units)
    removed = pq.read_table(corpus.dedup / "removed.parquet").to_pylist()
    cluster = {row["doc_id"]: row["doc_id"] for row in corpus.rows} | {r["doc_id"]: r["cluster_id"] for r in removed}
    assert result["near"] == oracle(corpus.rows, cluster, units)
    sizes = Counter(cluster.values())
    assert {row["doc_id"]: row["cluster_size"] for row in rows_of(corpus.dedup)} == sizes
    assert len(result["near"]["all"]) > 4
    assert result["near"] != result["exact"]
    assert result["exact"]["cross_source"]
    assert (result["documents"], result["removed"]) == (len(corpus.rows), len(removed))


def test_without_the_folder_before_dedup_documents_are_counted_alone(corpus: Corpus) -> None:
    full, short = histogram(corpus.dedup, corpus.tokens), histogram(corpus.dedup)
    for kind in ("exact", "near"):
        expected = {name: {"documents": count["documents"]} for name, count in full[kind]["all"].items()}
        assert short[kind] == {"all": expected}


def test_bins_end_at_powers_of_two() -> None:
    copies = [*range(1, 300), 2**20, 2**20 + 1]
    assert [bin_name(int(number)) for number in bin_of(np.array(copies))] == [slow_bin(n) for n in copies]


SPAN = st.tuples(st.integers(0, 7), st.integers(0, 30), st.integers(1, 20), st.integers(0, 7), st.integers(0, 2))


@settings(max_examples=25, deadline=None)
@given(st.lists(SPAN, max_size=30))
def test_spans_are_counted_as_loops_would(
    tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, ...]]
) -> None:
    root = tmp_path_factory.mktemp("spans")
    sources = ["ab"[i % 2] for i in range(8)]
    write_folder(root / "documents", list(range(8)), sources)
    write_folder(root / "dedup", list(range(8)), sources)
    write_removed(root / "dedup", [])
    write_spans(root, spans)
    found = histogram(root / "dedup", root / "documents", root)["spans"]
    places = Counter((kept, start) for _, _, _, kept, start in spans)
    crossing = {(kept, start) for doc, _, _, kept, start in spans if sources[doc] != sources[kept]}
    expected: dict[str, Any] = {"all": {}, "by_source": {"a": {}, "b": {}}, "cross_source": {}}
    seen = set()
    for doc, _, length, kept, start in spans:
        name = slow_bin(places[kept, start] + 1)
        scopes = {"all": expected["all"], sources[doc]: expected["by_source"][sources[doc]]}
        if (kept, start) in crossing:
            scopes["cross"] = expected["cross_source"]
        for scope, counts in scopes.items():
            count = counts.setdefault(name, {"spans": 0, "documents": 0, "bytes": 0})
            count["spans"] += 1
            count["bytes"] += length
            count["documents"] += (scope, name, doc) not in seen
            seen.add((scope, name, doc))
    assert found == expected
    assert histogram(root / "dedup", None, root)["spans"] == {"all": expected["all"]}


def write_folder(folder: Path, doc_ids: list[int], sources: list[str]) -> None:
    table = pa.table(
        {
            "doc_id": pa.array(doc_ids, pa.uint64()),
            "text": pa.array(["text"] * len(doc_ids), pa.large_string()),
            "source": pa.array(sources, pa.string()),
        }
    )
    rows = write_arrow(folder / "part-00000.arrow", table.schema, table.to_batches(max_chunksize=3))
    write_manifest(folder, "documents", [OutputFile.of(folder, "part-00000.arrow", rows)])


def write_removed(folder: Path, rows: list[tuple[int, str, int, int]]) -> None:
    names = {"doc_id": pa.uint64(), "reason": pa.string(), "kept_doc_id": pa.uint64(), "cluster_id": pa.uint64()}
    columns = list(zip(*rows, strict=True)) or [[]] * 4
    table = {name: pa.array(values, names[name]) for name, values in zip(names, columns, strict=True)}
    pq.write_table(pa.table(table), folder / "removed.parquet")


def write_spans(folder: Path, spans: list[tuple[int, ...]]) -> None:
    names = ("doc_id", "start", "stop", "kept_doc_id", "kept_start")
    rows = [(doc, start, start + length, kept, at) for doc, start, length, kept, at in spans]
    columns = list(zip(*rows, strict=True)) or [[]] * 5
    table = {name: pa.array(values, pa.uint64()) for name, values in zip(names, columns, strict=True)}
    pq.write_table(pa.table(table), folder / "spans.parquet")


def test_an_empty_corpus_has_an_empty_histogram(tmp_path: Path) -> None:
    for name in ("documents", "dedup"):
        write_folder(tmp_path / name, [], [])
    write_removed(tmp_path / "dedup", [])
    result = histogram(tmp_path / "dedup", tmp_path / "documents")
    assert result["exact"] == result["near"] == {"all": {}, "by_source": {}, "cross_source": {}}
    assert table_lines(result)[0] == "0 documents, 0 removed by dedup"


def test_a_folder_of_other_documents_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the folder that dedup read"):
        histogram(corpus.dedup, corpus.dedup)
    with pytest.raises(UserError, match=r"has no removed\.parquet"):
        histogram(corpus.documents)
    with pytest.raises(UserError, match=r"has no spans\.parquet"):
        histogram(corpus.dedup, None, tmp_path)
    write_spans(tmp_path, [(5, 0, 4, 2**50, 0)])
    with pytest.raises(UserError, match="which the folder before dedup does not have"):
        histogram(corpus.dedup, corpus.documents, tmp_path)
    (tmp_path / "spans.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(UserError, match=r"cannot read .*spans\.parquet"):
        histogram(corpus.dedup, None, tmp_path)


def test_the_command_prints_a_table_and_writes_the_counts(corpus: Corpus, tmp_path: Path) -> None:
    file = tmp_path / "histogram.json"
    asked = ["repeats", "histogram", str(corpus.dedup), "--tokens", str(corpus.tokens), "--out", str(file)]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    expected = histogram(corpus.dedup, corpus.tokens)
    assert json.loads(file.read_text()) == expected
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == f"{expected['documents']} documents, {expected['removed']} removed by dedup"
    alone = expected["exact"]["all"]["1"]["documents"]
    assert any(line.split()[:2] == ["1", f"{alone}"] for line in lines)
    assert "repeated in books" in done.stdout
    assert json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout) == expected


def test_the_sampler_runs_from_the_command_line(corpus: Corpus, tmp_path: Path) -> None:
    asked = ["--tokens", "20000", "--repeat-fraction", "0.2", "--repeats", "4", "--parameters", "124000000"]
    command = ["repeats", "sample", str(corpus.tokens), "--out", str(tmp_path / "out"), *asked, "--workers", "1"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    manifest = open_manifest(tmp_path / "out", "tokens")
    assert f"tokens {manifest['totals']['tokens']:,}" in done.stdout
    assert "4 repeats lie outside the damage band of 124,000,000 parameters: 123.3 to 4,579.9" in done.stdout
    short = CliRunner().invoke(app, [*command[:-2], "--tokens", "99999999", "--json"])
    assert isinstance(short.exception, UserError)
