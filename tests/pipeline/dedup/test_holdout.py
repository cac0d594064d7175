import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqmill.errors import UserError
from seqmill.pipeline.dedup import holdout
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.repeats import histogram

from . import oracle
from .made import Deduplicated, Records, article, changed, record

RunDedup = Callable[..., Deduplicated]


@pytest.fixture
def evaluation(tmp_path: Path) -> Callable[[Records], str]:
    def write(records: Records) -> str:
        path = tmp_path / "evaluation.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in records))
        return str(path)

    return write


def test_documents_that_equal_resemble_or_hold_a_holdout_document_go(
    run_dedup: RunDedup, evaluation: Callable[[Records], str]
) -> None:
    test_set = [record(f"eval-{k}", article(k, 60)) for k in range(4)]
    near = changed(article(1, 60), 1, 3)
    held_in_page = [*article(50, 300), *article(2, 60), *article(51, 300)]
    records = [
        record("same", article(0, 60)),
        record("similar", near),
        record("page", held_in_page),
        record("half", [*article(52, 100), *article(3, 60)[:30]]),
        record("other", article(53)),
    ]
    found = run_dedup(records, holdout=(evaluation(test_set),))
    assert found.removed_ids() == {
        "same": ("holdout", "eval-0"),
        "similar": ("holdout", "eval-1"),
        "page": ("holdout", "eval-2"),
    }
    assert set(found.removed["kept_from"].to_pylist()) == {"holdout"}
    assert found.removed["cluster_id"].to_pylist() == [None] * 3
    similarity = dict(zip(found.removed["id"].to_pylist(), found.removed["similarity"].to_pylist(), strict=True))
    assert similarity["same"] == similarity["page"] == 1.0
    expected = oracle.jaccard(" ".join(near), test_set[1]["text"], 5)
    assert similarity["similar"] == pytest.approx(expected, abs=1e-6)
    assert found.manifest["holdout"] == {
        "documents": 4,
        "too_short": 0,
        "quarantined": 0,
        "removed": {"exact": 1, "near": 1, "contained": 1},
    }
    assert [entry["stage"] for entry in found.manifest["funnel"]] == ["holdout dedup", "exact dedup", "near dedup"]
    assert found.manifest["funnel"][0]["reasons"]["holdout"]["documents"] == 3


def test_every_copy_of_a_holdout_document_goes_in_every_scope(
    run_dedup: RunDedup, evaluation: Callable[[Records], str]
) -> None:
    paths = (evaluation([record("eval", article(0, 80))]),)
    near = changed(article(0, 80), 1, 1)
    records = [
        record(f"{source}-{k}", words, source) for source in "ab" for k, words in enumerate([article(0, 80), near])
    ]
    for scope in ("global", "local", "none"):
        found = run_dedup(records, tag=scope, holdout=paths, scope=scope)
        assert [reason for reason, _ in found.removed_ids().values()] == ["holdout"] * 4


def test_the_holdout_may_be_a_folder_of_documents_and_workers_change_nothing(
    run_dedup: RunDedup, evaluation: Callable[[Records], str], tmp_path: Path
) -> None:
    raw = evaluation([record(str(k), article(k, 40)) for k in range(30)])
    folder = tmp_path / "evaluation"
    ingest(IngestConfig((raw,), unit_bytes=2000), NormaliseConfig(), folder, LocalExecutor(1), Silent())
    records = [record(str(k), [*article(k, 40), *article(900 + k, k)]) for k in range(60)]
    one = run_dedup(records, per_file=10, tag="one", holdout=(str(folder),))
    two = run_dedup(records, per_file=10, tag="two", workers=2, holdout=(str(folder),))
    assert [reason for reason, _ in one.removed_ids().values()].count("holdout") == 30
    assert one.files == two.files


@pytest.mark.parametrize(("share", "gone"), [(0.5, True), (0.51, False)])
def test_the_share_that_removes_is_reached_exactly(
    run_dedup: RunDedup, evaluation: Callable[[Records], str], share: float, gone: bool
) -> None:
    held = article(1, 25)  # 20 runs of 6 words; its first 15 words hold 10
    records = [record("page", [*article(2, 100), *held[:15]])]
    found = run_dedup(records, holdout=(evaluation([record("eval", held)]),), holdout_ngram=6, holdout_share=share)
    assert len(found.removed) == gone


def test_short_and_empty_holdout_documents_are_counted_and_empty_ones_match_nothing(
    run_dedup: RunDedup, evaluation: Callable[[Records], str]
) -> None:
    test_set: Records = [
        {"id": "empty", "text": " ", "source": "x"},
        {"id": "short", "text": "Yes it is", "source": "x"},
    ]
    records: Records = [
        {"id": "blank", "text": "  ", "source": "web"},
        {"id": "same", "text": "Yes it  is", "source": "web"},
        {"id": "holds", "text": "Yes it is said he and went", "source": "web"},
    ]
    found = run_dedup(records, holdout=(evaluation(test_set),))
    assert found.removed_ids() == {"same": ("holdout", "short")}
    assert found.manifest["holdout"]["too_short"] == found.manifest["holdout"]["documents"]


def test_a_holdout_beyond_the_memory_is_refused_with_the_numbers(
    run_dedup: RunDedup, evaluation: Callable[[Records], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdout, "RUN_BYTES", 2**20)
    with pytest.raises(UserError, match=r"holdout documents need more than .* dedup.memory_mb allows 3; raise it"):
        run_dedup([record("a", article(1))], holdout=(evaluation([record("eval", article(2))]),), memory_mb=3)


def test_changing_the_holdout_repeats_no_sketch(
    run_dedup: RunDedup, evaluation: Callable[[Records], str], tmp_path: Path
) -> None:
    records = [record(str(k), article(k)) for k in range(3)]
    assert len(run_dedup(records, holdout=(evaluation([record("e", article(0))]),)).removed) == 1

    def times() -> list[Any]:
        return [path.stat().st_mtime_ns for path in sorted((tmp_path / "dedup-x/.state/sketch").glob("*.arrow"))]

    before = times()
    assert run_dedup(records, holdout=(evaluation([record("e", article(2))]),)).removed_ids() == {"2": ("holdout", "e")}
    assert times() == before


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("", "dedup.holdout: there are no documents in it"),
        ('{"question": "x"}\n', "dedup.holdout: .* run `seqmill ingest`"),
    ],
)
def test_a_holdout_without_texts_is_refused(run_dedup: RunDedup, tmp_path: Path, contents: str, message: str) -> None:
    (tmp_path / "eval.jsonl").write_text(contents)
    with pytest.raises(UserError, match=message):
        run_dedup([record("a", article(1))], holdout=(str(tmp_path / "eval.jsonl"),))


def test_a_histogram_of_repeats_is_refused_where_copies_lie_outside_of_the_input(
    run_dedup: RunDedup, evaluation: Callable[[Records], str], tmp_path: Path
) -> None:
    run_dedup([record("a", article(1))], holdout=(evaluation([record("eval", article(1))]),))
    with pytest.raises(UserError, match="groups of copies are not known"):
        histogram(tmp_path / "dedup-x")
