from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.manifest import OutputFile, write_manifest
from seqmill.pipeline.dedup import DedupConfig, candidates, dedup, exchange, sketch, stage
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.progress import Silent
from seqmill.storage import write_arrow

from . import oracle
from .made import Deduplicated, Records, article, changed, record, word


def test_exact_copies_up_to_white_space_and_composition_are_removed(run_dedup: Callable[..., Deduplicated]) -> None:
    records = [
        {"id": "first", "text": "caf\u00e9  au lait", "source": "web"},
        {"id": "spaces", "text": " café au\n\tlait ", "source": "web"},
        {"id": "decomposed", "text": "cafe\u0301 au lait", "source": "web"},
        {"id": "case", "text": "Café au lait", "source": "web"},
    ]
    found = run_dedup(records, near=False)
    assert set(found.kept_ids()) & {"first", "spaces", "decomposed"} == {"spaces"}  # the longest in bytes, first id
    assert "case" in found.kept_ids()
    assert {reason for reason, _ in found.removed_ids().values()} == {"exact"}


def test_near_copies_are_removed_with_evidence_and_the_longest_is_kept(run_dedup: Callable[..., Deduplicated]) -> None:
    base = article(1)
    records = [
        record("short", base[:190]),
        record("long", [*base, "and", "more"]),
        record("edited", changed(base, 2, 7)),
        record("other", article(2)),
    ]
    found = run_dedup(records)
    assert found.kept_ids() == ["long", "other"]
    assert found.removed_ids() == {"short": ("near", "long"), "edited": ("near", "long")}
    texts = {entry["id"]: entry["text"] for entry in records}
    for id_, kept, similarity in zip(
        *(found.removed[name].to_pylist() for name in ("id", "kept_id", "similarity")), strict=True
    ):
        assert similarity == pytest.approx(oracle.jaccard(texts[id_], texts[kept], 5), abs=1e-6)
        assert similarity >= 0.8
    assert found.kept["cluster_size"].to_pylist() == [3, 1]
    assert found.kept["cluster_id"].to_pylist() == found.kept["doc_id"].to_pylist()
    assert set(found.removed["cluster_id"].to_pylist()) == {found.kept["doc_id"][0].as_py()}


def test_a_candidate_below_the_threshold_is_kept(run_dedup: Callable[..., Deduplicated]) -> None:
    base = article(3)
    records = [record("a", base), record("b", changed(base, 6, 1))]
    similarity = oracle.jaccard(records[0]["text"], records[1]["text"], 5)
    assert 0.7 < similarity < 0.8
    assert len(run_dedup(records, threshold=similarity + 0.01, tag="above").kept) == 2
    # with a lower threshold the same pair goes whenever it is a candidate, which depends on the seed alone
    gone = [len(run_dedup(records, threshold=similarity - 0.01, seed=s, tag=str(s)).removed) for s in range(4)]
    assert 1 in gone


def test_what_is_kept_equals_all_pairs_of_two_thousand_documents(run_dedup: Callable[..., Deduplicated]) -> None:
    """Every pair is compared by the oracle, and edits are so few (Jaccard of 96 / 116 or more) or so many that bands
    miss none: a pair of 0.82 becomes a candidate with 95 %, of 64 bands of 4 rows with all but certainty."""
    records: Records = []
    for k in range(1100):
        base = article(100 + k, 110)
        records.append(record(f"{k}-original", base))
        if k % 3 == 0:
            records.append(record(f"{k}-near", changed(base, 2, k)))
        if k % 5 == 0:
            records.append(record(f"{k}-exact", base))
        if k % 4 == 0:
            records.append(record(f"{k}-far", changed(base, 40, k)))
    assert len(records) > 1900
    found = run_dedup(records, per_file=170, unit_bytes=200_000, bands=64, rows=4)
    alike = oracle.all_similarities([one["text"] for one in records], 5)
    assert not ((alike > 0.3) & (alike < 0.8)).any()
    survivors: list[int] = []
    for k in sorted(range(len(records)), key=lambda k: (-len(records[k]["text"].encode()), k)):
        if not (alike[k, survivors] >= 0.8).any():
            survivors.append(k)
    assert sorted(found.kept_ids()) == sorted(records[k]["id"] for k in survivors)
    assert len(found.removed) > 500


def test_duplicates_in_other_units_are_found_with_four_workers_and_give_the_same_bytes(
    run_dedup: Callable[..., Deduplicated],
) -> None:
    records = [record(f"{k}", changed(article(k % 20), k % 3, k)) for k in range(80)]
    one = run_dedup(records, per_file=10, workers=1, tag="one")
    four = run_dedup(records, per_file=10, workers=4, tag="four")
    assert len(one.removed) > 20
    assert one.files == four.files


def test_the_memory_budget_and_the_cutting_of_ranges_change_no_byte(
    run_dedup: Callable[..., Deduplicated], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(f"{k}", changed(article(k % 20), k % 3, k)) for k in range(80)]
    whole = run_dedup(records, per_file=10, tag="whole")
    monkeypatch.setattr(exchange, "ROWS_PER_RANGE", 13)
    monkeypatch.setattr(sketch, "RUN_ROWS", 50)
    monkeypatch.setattr(candidates, "MOST_BYTES", 4000)
    cut = run_dedup(records, per_file=10, tag="cut", memory_mb=1)
    assert whole.files == cut.files


def test_a_corpus_beyond_the_memory_budget_is_refused_with_the_numbers(
    run_dedup: Callable[..., Deduplicated], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CLUSTER_DOCUMENT_BYTES", 2**20)
    with pytest.raises(UserError, match=r"3 documents need 3 MiB to be clustered .* dedup.memory_mb allows 2"):
        run_dedup([record(str(k), article(k)) for k in range(3)], memory_mb=2)


def test_a_cluster_beyond_the_memory_budget_is_refused_with_the_numbers(
    run_dedup: Callable[..., Deduplicated], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "COMPARING", 2**10)
    records = [record(str(k), changed(article(1), 1, k)) for k in range(3)]
    with pytest.raises(UserError, match=r"a cluster of 3 documents with 588 shingles need 6 MiB to be compared"):
        run_dedup(records, memory_mb=4)


def test_a_bucket_of_thousands_ends_with_what_differs(run_dedup: Callable[..., Deduplicated]) -> None:
    base = article(1, 60)
    found = run_dedup([record(str(k), [*base, word(k)]) for k in range(5000)], per_file=5000, unit_bytes=10**6)
    assert found.manifest["verification"]["largest_bucket"] > 3000
    assert found.manifest["verification"]["candidate_clusters_up_to"] == {"8192": 1}
    assert len(found.kept) < 10


def test_a_new_threshold_repeats_no_sketch(run_dedup: Callable[..., Deduplicated], tmp_path: Path) -> None:
    records = [record("a", article(1)), record("b", changed(article(1), 6, 1))]
    run_dedup(records, threshold=0.9)
    sketches = sorted((tmp_path / "dedup-x" / ".state" / "sketch").glob("*.arrow"))
    before = [path.stat().st_mtime_ns for path in sketches]
    assert len(run_dedup(records, threshold=0.5).removed) == 1
    assert [path.stat().st_mtime_ns for path in sketches] == before


def test_many_empty_documents_are_one_document(tmp_path: Path) -> None:
    """In a folder made by hand: ingest lets no empty document through."""
    count, folder = 50_000, tmp_path / "documents"
    ids = pa.array(range(count))
    columns = {"doc_id": ids.cast(pa.uint64()), "id": ids.cast(pa.string()), "source": pa.array(["web"] * count)}
    batch = pa.record_batch({**columns, "text": pa.array([""] * count, pa.large_string())})
    folder.mkdir()
    rows = write_arrow(folder / "part-00000.arrow", batch.schema, [batch])
    write_manifest(folder, "documents", [OutputFile.of(folder, "part-00000.arrow", rows)])
    manifest = dedup(folder, DedupConfig(), tmp_path / "dedup", LocalExecutor(1), Silent())
    assert manifest["funnel"][0]["reasons"] == {"exact": {"documents": count - 1, "bytes": 0}}
    assert manifest["totals"] == {"documents": 1, "bytes": 0}


def test_local_scope_keeps_copies_in_other_sources(run_dedup: Callable[..., Deduplicated]) -> None:
    base = article(5)
    records = [record(f"{source}-{k}", changed(base, k, k), source) for source in ("books", "web") for k in range(2)]
    records += [record("books-copy", base, "books"), record("web-copy", base, "web")]
    everywhere = run_dedup(records, tag="global")
    inside = run_dedup(records, scope="local", tag="local")
    assert len(everywhere.kept) == 1
    assert sorted(inside.kept["source"].to_pylist()) == ["books", "web"]


def test_groups_compare_their_sources_with_each_other_only(run_dedup: Callable[..., Deduplicated]) -> None:
    base = article(5)
    records = [record(source, base, source) for source in ("books", "cc", "web", "wiki")]
    found = run_dedup(records, scope="groups", groups={"crawl": ["cc", "web"]})
    assert sorted(found.kept["source"].to_pylist()) == ["books", "cc", "wiki"]
    assert found.manifest["overlap"] == [
        {
            "source": "web",
            "kept_from": "input",
            "kept_source": "cc",
            "documents": 1,
            "bytes": len(records[0]["text"]),
        }
    ]


def test_overlap_counts_exact_and_near_removals_by_both_sources(run_dedup: Callable[..., Deduplicated]) -> None:
    base = article(8)
    records = [record("1", base, "books"), record("2", base, "web"), record("3", base[:195], "web")]
    records += [record("4", article(9), "web")]
    found = run_dedup(records)
    size = sum(len(records[k]["text"]) for k in (1, 2))
    assert found.manifest["overlap"] == [
        {"source": "web", "kept_from": "input", "kept_source": "books", "documents": 2, "bytes": size}
    ]


def test_a_source_that_loses_too_much_raises_an_alarm(
    run_dedup: Callable[..., Deduplicated], caplog: pytest.LogCaptureFixture
) -> None:
    records = [record(str(k), article(1), "copies") for k in range(4)] + [record("x", article(2), "fresh")]
    found = run_dedup(records)
    assert found.manifest["alarms"] == [{"source": "copies", "documents": 4, "removed_share": 0.75}]
    assert "source 'copies' lost 75.0 % of its 4 documents" in caplog.text
    assert run_dedup(records, tag="calm", alarm_share=0.8).manifest["alarms"] == []


def test_pages_that_differ_in_their_figures_alone_are_candidates_and_are_kept(
    run_dedup: Callable[..., Deduplicated],
) -> None:
    pages = [" ".join(f"of {k * n} was {k + n}" for n in range(40)) for k in (3, 5)]
    found = run_dedup([{"id": str(k), "text": page, "source": "web"} for k, page in enumerate(pages)])
    assert found.manifest["verification"]["candidates"] == 2
    assert len(found.kept) == 2


@pytest.mark.parametrize("preset", ["slimpajama", "lee", "dclm", "data-juicer"])
def test_every_preset_finds_a_slightly_edited_copy(run_dedup: Callable[..., Deduplicated], preset: str) -> None:
    base = article(1, 400)
    records = [record("long", [*base, "end"]), record("short", base), record("other", article(2))]
    assert run_dedup(records, preset=preset).removed_ids() == {"short": ("near", "long")}


def test_a_part_of_a_longer_document_goes_by_containment(run_dedup: Callable[..., Deduplicated]) -> None:
    whole = article(1, 400)
    records = [record("whole", whole), record("part", whole[:300]), record("mixed", [*whole[:280], *article(7, 60)])]
    alike = oracle.jaccard(records[0]["text"], records[1]["text"], 5)
    assert alike < 0.8
    assert len(run_dedup(records, tag="similar").kept) == 3
    found = run_dedup(records, tag="contained", containment=0.95, bands=100, rows=2)
    assert found.removed_ids() == {"part": ("near", "whole")}
    assert found.removed["similarity"][0].as_py() == pytest.approx(alike, abs=1e-6)


def test_without_a_scope_nothing_is_compared(run_dedup: Callable[..., Deduplicated]) -> None:
    found = run_dedup([record(str(k), article(1)) for k in range(3)], scope="none")
    assert (len(found.kept), len(found.removed)) == (3, 0)


def test_the_preferred_source_survives_even_when_shorter(run_dedup: Callable[..., Deduplicated]) -> None:
    base = article(6)
    records = [record("web", [*base, "tail"], "web"), record("books", base, "books")]
    assert run_dedup(records, tag="longest").kept_ids() == ["web"]
    assert run_dedup(records, source_priority=("books",), tag="priority").kept_ids() == ["books"]


def test_documents_without_words_are_no_near_duplicates_of_each_other(run_dedup: Callable[..., Deduplicated]) -> None:
    records = [{"id": str(k), "text": "?" * (k + 1) + "!", "source": "web"} for k in range(5)]
    assert len(run_dedup(records).kept) == 5


def test_shared_boilerplate_alone_removes_nothing(run_dedup: Callable[..., Deduplicated]) -> None:
    licence = article(9, 120)
    records = [record(str(k), [*licence, *article(200 + k, 150)]) for k in range(10)]
    assert len(run_dedup(records).kept) == 10


def test_an_empty_corpus_stays_empty(run_dedup: Callable[..., Deduplicated], tmp_path: Path) -> None:
    (tmp_path / "raw-x").mkdir()
    (tmp_path / "raw-x" / "empty.jsonl").write_text("")
    found = run_dedup([])
    assert (len(found.kept), len(found.removed)) == (0, 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"preset": "magic"}, "choose one of fineweb"),
        ({"scope": "some"}, "choose one of none, local, global, groups"),
        ({"scope": "groups"}, "needs at least one group"),
        ({"scope": "groups", "groups": {"a": ["x"], "b": ["x"]}}, "is in 'a' and in 'b'"),
        ({"groups": {"a": ["x"]}}, "goes with"),
        ({"bands": 0}, "dedup.bands = 0"),
        ({"alarm_share": 2.0}, "between 0 and 1"),
        ({"threshold": 0.0}, "above 0"),
        ({"threshold": 1.5}, "dedup.threshold = 1.5"),
        ({"containment": 0.0}, "dedup.containment = 0.0"),
        ({"holdout_share": 1.1}, "dedup.holdout_share = 1.1"),
        ({"holdout_ngram": 0}, "dedup.holdout_ngram = 0"),
        ({"holdout": "eval.jsonl"}, "a list of paths is needed"),
        ({"index": "seen", "scope": "none"}, "dedup.index needs"),
        ({"index": "seen", "exact": False, "near": False}, "dedup.index needs"),
    ],
)
def test_impossible_settings_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DedupConfig(**config)
