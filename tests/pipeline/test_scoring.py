"""The score stage against transformers, which reads one document at a time with the same weights."""

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scored_corpus import EOS, SOURCES, TEXTS, bits_per_byte, read_alone, save_model, write_documents
from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.pipeline.executors import LocalExecutor, RayExecutor
from seqmill.pipeline.funnel import check_funnel
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.score_columns import ScoringConfig
from seqmill.pipeline.scoring import plan_part, score_corpus
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.storage import read_arrow, write_arrow, write_json

ALIKE: Any = {"abs": 1e-5, "rel": 1e-5}
EVERYTHING = ScoringConfig(pooling="mean", per_token=True, max_tokens=700, unit_bytes=1500)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("byte-model"))


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parts, with empty documents and one that is longer than a pass and than a unit."""
    return write_documents(tmp_path_factory.mktemp("texts") / "documents", TEXTS, SOURCES)


@pytest.fixture(scope="session")
def tokens(model: Path, documents: Path) -> Path:
    """The same, tokenized."""
    out = documents.parent / "tokens"
    tokenize(documents, model / "tokenizer", TokenizeConfig(), out, LocalExecutor(1), Silent())
    return out


@pytest.fixture(scope="session")
def alone(model: Path) -> Callable[[list[int]], tuple[np.ndarray, np.ndarray]]:
    """alone(ids): what transformers finds for them, with nothing beside them."""
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return lambda ids: read_alone(theirs, ids)


@pytest.fixture(scope="session")
def scored(model: Path, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All columns of all documents, by one worker."""
    out = tmp_path_factory.mktemp("scores") / "scores"
    score_corpus(documents, model, EVERYTHING, out, LocalExecutor(1), Silent())
    return out


def table_of(folder: Path) -> pa.Table:
    return pa.concat_tables(read_arrow(folder / file["name"]) for file in open_manifest(folder, "scores")["files"])


def parts_of(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}
    return {**found, "manifest.json": (folder / "manifest.json").read_bytes()}


def run(data: Path, model: Path, out: Path, **settings: Any) -> pa.Table:
    score_corpus(data, model, ScoringConfig(**settings), out, LocalExecutor(1), Silent())
    return table_of(out)


def test_every_document_has_the_numbers_that_transformers_finds_for_it_alone(scored: Path, alone: Any) -> None:
    table = table_of(scored)
    assert table.schema.names == [
        "doc_id", "source", "num_bytes", "tokens", "log_prob", "bits_per_byte", "token_log_probs", "embedding"
    ]  # fmt: skip
    assert table["doc_id"].to_pylist() == list(range(len(TEXTS)))
    assert table["source"].to_pylist() == SOURCES
    for text, row in zip(TEXTS, table.to_pylist(), strict=True):
        log_p, hidden = alone([*text.encode(), EOS])
        assert (row["num_bytes"], row["tokens"]) == (len(text.encode()), len(text.encode()))
        assert row["token_log_probs"] == pytest.approx(log_p.tolist(), **ALIKE)
        assert row["embedding"] == pytest.approx(hidden.mean(axis=0).tolist(), **ALIKE)
        expected = float(log_p.sum(dtype=np.float64)) if len(log_p) else None
        assert row["log_prob"] == (expected if expected is None else pytest.approx(expected, rel=1e-5))
        assert row["bits_per_byte"] == pytest.approx(bits_per_byte(log_p, text), **ALIKE)


def test_without_an_appended_id_a_single_byte_has_no_score_and_no_byte_no_embedding(
    model: Path, documents: Path, alone: Any, tmp_path: Path
) -> None:
    table = run(documents, model, tmp_path / "out", append_eos=False, pooling="last")
    for text, row in zip(TEXTS, table.to_pylist(), strict=True):
        ids = list(text.encode())
        assert row["tokens"] == max(0, len(ids) - 1)
        assert (row["log_prob"] is None) == (row["bits_per_byte"] is None) == (len(ids) < 2)
        assert (row["embedding"] is None) == (not ids)
        if ids:
            log_p, hidden = alone(ids)
            assert row["embedding"] == pytest.approx(hidden[-1].tolist(), **ALIKE)
            assert row["bits_per_byte"] == pytest.approx(bits_per_byte(log_p, text), **ALIKE)


def test_totals_and_funnel_add_up_and_are_those_of_the_sources(scored: Path) -> None:
    manifest = open_manifest(scored, "scores")
    check_funnel(manifest["funnel"])
    rows, totals = table_of(scored).to_pylist(), manifest["totals"]
    by_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append(row)
    assert sorted(manifest["by_source"]) == sorted(by_source)
    for found, some in [(totals, rows), *((manifest["by_source"][name], some) for name, some in by_source.items())]:
        told = [row for row in some if row["log_prob"] is not None]
        size = sum(row["num_bytes"] for row in told)
        assert found == {
            "documents": len(some),
            "bytes": sum(row["num_bytes"] for row in some),
            "scored_documents": len(told),
            "scored_bytes": size,
            "tokens": sum(row["tokens"] for row in some),
            "bits_per_byte": pytest.approx(-sum(row["log_prob"] for row in told) / np.log(2) / size, abs=1e-6),
        }
    (entry,) = manifest["funnel"]
    assert (entry["documents_in"], entry["documents_out"]) == (len(TEXTS), len(TEXTS) - 2)
    assert entry["reasons"] == {"no token to predict": {"documents": 2, "bytes": 0}}


def test_a_folder_of_tokens_gives_the_same_bytes_as_its_documents(
    model: Path, tokens: Path, scored: Path, tmp_path: Path
) -> None:
    score_corpus(tokens, model, EVERYTHING, tmp_path / "out", LocalExecutor(1), Silent())
    expected, found = parts_of(scored), parts_of(tmp_path / "out")
    assert expected.pop("manifest.json") != found.pop("manifest.json")  # which names what was read
    assert found == expected
    assert len(found) > 3


def test_an_interruption_changes_no_byte(model: Path, documents: Path, scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    score_corpus(documents, model, EVERYTHING, out, LocalExecutor(1), Silent())
    assert parts_of(out) == parts_of(scored)
    for name in ("part-00001.arrow", ".state/part-00003.json", "manifest.json"):
        (out / name).unlink()
    score_corpus(documents, model, EVERYTHING, out, LocalExecutor(1), Silent())
    assert parts_of(out) == parts_of(scored)


def test_a_finished_folder_is_left_as_it_is_and_another_model_replaces_it(
    model: Path, documents: Path, tmp_path: Path
) -> None:
    first = run(documents, model, tmp_path / "out")
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("part-*"))]
    assert run(documents, model, tmp_path / "out").equals(first)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("part-*"))] == stamps
    other = run(documents, save_model(tmp_path / "other", seed=2), tmp_path / "out")
    assert not other["log_prob"].equals(first["log_prob"])


def test_permuting_the_documents_permutes_the_scores(model: Path, scored: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(len(TEXTS))
    permuted = write_documents(tmp_path / "permuted", [TEXTS[k] for k in order], [SOURCES[k] for k in order])
    found = run(permuted, model, tmp_path / "out")["bits_per_byte"].to_pylist()
    assert found == pytest.approx(table_of(scored)["bits_per_byte"].take(order).to_pylist(), **ALIKE)


@given(batches=st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=5), unit_bytes=st.integers(1, 60))
def test_pieces_hold_every_row_once_and_begin_where_a_stretch_of_bytes_does(
    batches: list[list[int]], unit_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("plan") / "part.arrow"
    schema = pa.schema({"num_bytes": pa.uint32()})
    write_arrow(path, schema, [pa.record_batch([pa.array(sizes, pa.uint32())], schema=schema) for sizes in batches])
    payload = {"kind": "tokens", "data": {"path": str(path)}, "unit_bytes": unit_bytes}
    pieces = plan_part(payload, path.parent).stats["pieces"]
    sizes = [size for batch in batches for size in batch]
    expected, before = [0], 0
    for row, size in enumerate(sizes):
        if row and before // unit_bytes > (before - sizes[row - 1]) // unit_bytes:
            expected.append(row)
        before += size
    assert pieces == [list(piece) for piece in zip(expected, [*expected[1:], len(sizes)], strict=True)]


def test_a_corpus_without_documents_gives_empty_scores(model: Path, tmp_path: Path) -> None:
    empty = write_documents(tmp_path / "empty", [], [], parts=1)
    table = run(empty, model, tmp_path / "out", pooling="mean", per_token=True)
    assert (len(table), table.schema.field("embedding").type) == (0, pa.list_(pa.float32(), 32))
    manifest = open_manifest(tmp_path / "out")
    assert (manifest["totals"]["documents"], manifest["totals"]["bits_per_byte"]) == (0, None)
    assert manifest["funnel"][0]["reasons"] == {}


def test_tokens_of_another_tokenizer_are_refused_by_name(model: Path, tokens: Path, tmp_path: Path) -> None:
    folder, manifest = tmp_path / "others", open_manifest(tokens)
    shutil.copytree(tokens, folder)
    manifest["tokenizer"]["fingerprint"] = 64 * "0"
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(UserError, match=r"the tokenizer of .*others \(0{16}\) is not the one that the model was"):
        run(folder, model, tmp_path / "out")


def test_an_id_outside_the_vocabulary_is_refused_by_its_document(tmp_path: Path) -> None:
    ascii_only = save_model(tmp_path / "model", vocab_size=128)
    corpus = write_documents(tmp_path / "corpus", ["plain", "naïve"], ["web", "web"], parts=1)
    with pytest.raises(UserError, match=r"document 1 holds the id 195, but the model's vocabulary is 0 \.\. 127"):
        run(corpus, ascii_only, tmp_path / "out", append_eos=False)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_is_neither_documents_nor_tokens_and_what_would_be_lost_is_refused(
    model: Path, documents: Path, scored: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds scores, but documents or tokens are scored"):
        run(scored, model, tmp_path / "out")
    before = parts_of(documents)
    with pytest.raises(UserError, match="holds documents, which would be lost"):
        run(documents, model, documents)
    assert parts_of(documents) == before


def test_a_model_without_weights_or_tokenizer_is_refused(model: Path, documents: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        run(documents, tmp_path / "nothing", tmp_path / "out")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((model / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"there is no .*model.safetensors"):
        run(documents, bare, tmp_path / "out")
    (bare / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="carries no tokenizer"):
        run(documents, bare, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "pooling = 'max'"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"unit_bytes": 0}, "unit_bytes = 0"),
        ({"threads": 0}, "threads = 0"),
        ({"device": "tpu"}, "device = 'tpu'"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScoringConfig(**settings)


def test_a_gpu_is_not_asked_of_tasks_that_hold_none(model: Path, documents: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ray executor, whose tasks hold no GPU.*ScoreBatch"):
        score_corpus(documents, model, ScoringConfig(device="cuda"), tmp_path, RayExecutor(1, None), Silent())
