import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pools import local
from seqmill.errors import UserError
from seqmill.manifest import write_manifest
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.filters import FilterConfig, filter_documents, with_preset
from seqmill.pipeline.funnel import UNITS, check_funnel
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.settings import build
from seqmill.storage import read_arrow

from . import oracle

PROSE = "The cat sat with a friend of mine.\nThey have to be home by nine, and that is late!\n"


class Filtered:
    """The outcome of one run, after checking that every count adds up."""

    def __init__(self, documents: Path, out: Path, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        self.before = read_parts(documents)
        self.kept = read_parts(out)
        self.removed = pq.read_table(out / "removed.parquet")
        self.files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        (self.funnel,) = manifest["funnel"]
        self.reasons = self.funnel["reasons"]
        self.check()

    def check(self) -> None:
        check_funnel([self.funnel])
        for when, table in (("in", self.before), ("out", self.kept)):
            assert self.funnel[f"documents_{when}"] == len(table)
            assert self.funnel[f"bytes_{when}"] == size_of(table)
        ids = [*self.kept["doc_id"].to_pylist(), *self.removed["doc_id"].to_pylist()]
        assert sorted(ids) == self.before["doc_id"].to_pylist()
        assert self.removed["doc_id"].to_pylist() == sorted(self.removed["doc_id"].to_pylist())
        by_reason: dict[str, dict[str, int]] = {}
        for source, counts in self.manifest["by_source"].items():
            entered = self.before.filter(pc.equal(self.before["source"], source))
            assert sum(count["documents"] for count in counts.values()) == len(entered)
            assert sum(count["bytes"] for count in counts.values()) == size_of(entered)
            for reason, count in counts.items():
                total = by_reason.setdefault(reason, dict.fromkeys(UNITS, 0))
                for unit in UNITS:
                    total[unit] += count[unit]
        kept = by_reason.pop("kept", dict.fromkeys(UNITS, 0))
        assert kept == self.manifest["totals"] == {"documents": len(self.kept), "bytes": size_of(self.kept)}
        assert by_reason == self.reasons
        evidenced = self.removed["reason"].value_counts().to_pylist()
        counted = {reason: count["documents"] for reason, count in self.reasons.items() if count["documents"]}
        assert {row["values"]: row["counts"] for row in evidenced} == counted

    def gone(self) -> dict[str, str]:
        return dict(zip(self.removed["id"].to_pylist(), self.removed["reason"].to_pylist(), strict=True))

    def texts(self) -> dict[str, str]:
        return dict(zip(self.kept["id"].to_pylist(), self.kept["text"].to_pylist(), strict=True))


def read_parts(folder: Path) -> pa.Table:
    names = [file["name"] for file in json.loads((folder / "manifest.json").read_text())["files"]]
    return pa.concat_tables(read_arrow(folder / name) for name in names)


def size_of(table: pa.Table) -> int:
    return sum(len(text.encode()) for text in table["text"].to_pylist())


@pytest.fixture
def run_filter(tmp_path: Path) -> Callable[..., Filtered]:
    def call(texts: dict[str, str], workers: int = 1, unit_bytes: int = 3000, tag: str = "x", **table: Any) -> Filtered:
        raw, documents, out = (tmp_path / f"{name}-{tag}" for name in ("raw", "documents", "out"))
        raw.mkdir(exist_ok=True)
        records = [{"id": k, "text": text, "source": k[0], "url": f"u{k}"} for k, text in texts.items()]
        (raw / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        settings = IngestConfig((str(raw),), keep_fields=("url",), unit_bytes=unit_bytes)
        ingest(settings, NormaliseConfig(), documents, LocalExecutor(1), Silent())
        config = build(FilterConfig, with_preset(table), "filter")
        return Filtered(documents, out, filter_documents(documents, config, out, local(workers), Silent()))

    return call


MIXED = {
    "a1": PROSE * 3,
    "a2": "short",
    "a3": "\n".join(f"Line {k} of this page is a sentence. So is this one!" for k in range(30)) + "\nno end here",
    "b1": "\n".join(f"Sentence {k} here is one of the many. Write to me{k}@mail.org or 8.8.8.{k}." for k in range(20)),
    "b2": "one two three four five six. " * 40,
    "b3": "日本語の文章です。" * 30,
    "c1": "- a bullet line of the page\n- and another that we have to drop\n" * 10,
    "c2": "We have a { here that ends the page. " * 5,
    "c3": "🦆" * 60 + " 👍🏽\u200d e\u0301",
}


def test_by_default_everything_passes(run_filter: Callable[..., Filtered]) -> None:
    found = run_filter(MIXED)
    assert found.reasons == {}
    assert found.kept.equals(found.before)
    assert found.kept.schema.names == ["doc_id", "id", "text", "source", "url"]


def test_removed_documents_are_evidenced_with_measure_and_limit(run_filter: Callable[..., Filtered]) -> None:
    found = run_filter(MIXED, length={"min_words": 3, "max_bytes": 1500})
    assert found.gone() == {"a2": "length: few words", "c3": "length: few words", "a3": "length: many bytes"}
    rows = {row["id"]: row for row in found.removed.to_pylist()}
    assert {row["source"] for row in rows.values()} == {"a", "c"}
    assert (rows["a2"]["value"], rows["a2"]["limit"]) == (1, 3)
    assert (rows["a3"]["value"], rows["a3"]["limit"]) == (len(MIXED["a3"].encode()), 1500)
    assert found.texts() == {k: v for k, v in MIXED.items() if k not in rows}


def test_every_part_has_one_row_group_of_evidence(run_filter: Callable[..., Filtered], tmp_path: Path) -> None:
    run_filter(MIXED, preset="gopher")
    parts = json.loads((tmp_path / "out-x" / "manifest.json").read_text())["files"]
    assert pq.ParquetFile(tmp_path / "out-x" / "removed.parquet").num_row_groups == len(parts) > 1


def test_c4_drops_lines_and_counts_their_bytes(run_filter: Callable[..., Filtered]) -> None:
    found = run_filter(MIXED, preset="c4")
    assert found.gone()["c2"] == "c4: curly bracket"
    assert found.gone()["b3"] == "c4: few sentences"
    assert found.texts()["a3"] == MIXED["a3"].removesuffix("\nno end here")
    assert found.reasons["c4 line: no terminal mark"] == {"documents": 0, "bytes": len("no end here")}
    for id_, text in found.texts().items():
        assert (text, "kept") == oracle.c4(MIXED[id_])[:2]


def test_no_empty_document_is_left_where_few_sentences_are_allowed(run_filter: Callable[..., Filtered]) -> None:
    found = run_filter({"a": "no end", "b": PROSE}, preset="c4", c4={"enabled": True, "min_sentences": 0})
    assert found.gone() == {"a": "c4: no line left"}


def test_masked_items_are_counted_and_bytes_add_up_though_they_grow(run_filter: Callable[..., Filtered]) -> None:
    mask = {"kinds": ["email", "ip"], "email": "<AN-ADDRESS-OF-SOMEONE>"}
    found = run_filter(MIXED, mask=mask)
    changed = found.texts()["b1"]
    assert changed.count("<AN-ADDRESS-OF-SOMEONE>") == changed.count("<IP>") == 20
    masked = found.manifest["masked"]
    assert set(masked) == {"b"}
    removed = sum(len(f"me{k}@mail.org") for k in range(20))
    assert masked["b"]["email"] == {
        "items": 20, "removed_bytes": removed, "inserted_bytes": 20 * len("<AN-ADDRESS-OF-SOMEONE>"),
    }  # fmt: skip
    assert found.reasons["mask: email"] == {"documents": 0, "bytes": removed - 20 * len("<AN-ADDRESS-OF-SOMEONE>")}
    assert found.reasons["mask: email"]["bytes"] < 0 < found.reasons["mask: ip"]["bytes"]


def test_languages_are_added_as_columns_and_sifted(run_filter: Callable[..., Filtered]) -> None:
    texts = {
        "e": PROSE,
        "d": "Der Hund und die Katze gehen nach Hause, weil es schon sehr spät ist und der Weg noch weit.",
        "j": MIXED["b3"],
        "x": "123 456",
    }
    found = run_filter(texts, language={"enabled": True})
    assert found.kept.schema.names[-2:] == ["language", "language_score"]
    assert found.kept.schema.field("language_score").type == pa.float32()
    assert found.kept["language"].to_pylist()[:3] == ["en", "de", "ja"]
    again = {"enabled": True, "keep": ["en", "de"], "min_score": 0.6}
    found = run_filter(texts, tag="keep", preset="gopher", gopher_quality={"min_words": 1}, language=again)
    assert found.gone()["j"] == "language: not kept"
    assert found.gone()["x"].startswith("language: ")
    assert found.gone()["d"] == "gopher: few stop words"  # the text passed as German, and met the rules behind
    assert found.texts() == {"e": PROSE}


def test_the_same_bytes_come_from_any_number_of_workers(run_filter: Callable[..., Filtered], tmp_path: Path) -> None:
    table = {"preset": "fineweb", "gopher_quality": {"min_words": 1, "min_stop_words": 0}, "mask": {"kinds": ["ip"]}}
    one = run_filter(MIXED, tag="one", **table)
    again = run_filter(MIXED, tag="one", **table)
    (tmp_path / "out-one" / "part-00001.arrow").unlink()
    repaired = run_filter(MIXED, tag="one", **table)
    assert one.files == again.files == repaired.files
    two = run_filter(MIXED, tag="two", workers=2, **table)
    assert two.files == one.files


@pytest.mark.parametrize("preset", ["none", "gopher", "c4", "fineweb"])
def test_every_preset_copes_with_a_folder_where_all_goes(run_filter: Callable[..., Filtered], preset: str) -> None:
    found = run_filter({"a": "\u3000x", "b": "🦆"}, preset=preset, mask={"kinds": ["email", "ip"]})
    assert len(found.kept) == (2 if preset == "none" else 0)
    found = run_filter({"c": "x" * 3_000_000}, preset=preset, tag="long", unit_bytes=1 << 30)
    assert len(found.kept) == (1 if preset == "none" else 0)


def test_a_corpus_without_parts_stays_one(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    write_manifest(documents, "documents", [], totals={"documents": 0, "bytes": 0})
    config = build(FilterConfig, with_preset({"preset": "fineweb"}), "filter")
    manifest = filter_documents(documents, config, tmp_path / "out", LocalExecutor(1), Silent())
    assert manifest["totals"] == {"documents": 0, "bytes": 0}
    assert pq.read_table(tmp_path / "out" / "removed.parquet").num_rows == 0


def test_a_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        filter_documents(tmp_path, FilterConfig(), tmp_path / "out", LocalExecutor(1), Silent())
