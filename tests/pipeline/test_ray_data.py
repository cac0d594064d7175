"""Tables that Ray Data hands over get the scores that the stage gives their documents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from scored_corpus import EOS, SOURCES, TEXTS, save_model, write_documents
from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.pipeline.executors import LocalExecutor, RayExecutor
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.ray_data import ScoreBatch
from seqmill.pipeline.score_columns import ScoringConfig
from seqmill.pipeline.scoring import score_corpus
from seqmill.storage import read_arrow

ADDED = ["tokens", "log_prob", "bits_per_byte", "token_log_probs", "embedding"]
SETTINGS: dict[str, Any] = {"pooling": "last", "per_token": True, "max_tokens": 700}
ALIKE: Any = {"abs": 1e-5, "rel": 1e-5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("byte-model"))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("texts") / "documents", TEXTS, SOURCES)


@pytest.fixture(scope="module")
def scored(model: Path, documents: Path) -> Path:
    out = documents.parent / "scores"
    score_corpus(documents, model, ScoringConfig(**SETTINGS), out, LocalExecutor(1), Silent())
    return out


def table_of(folder: Path) -> pa.Table:
    return pa.concat_tables(read_arrow(folder / file["name"]) for file in open_manifest(folder)["files"])


def assert_alike(found: pa.Table, expected: pa.Table) -> None:
    assert found["tokens"].equals(expected["tokens"])
    for name in ADDED[1:]:
        assert found.schema.field(name).type == expected.schema.field(name).type
        assert found[name].null_count == expected[name].null_count
        for one, other in zip(found[name].to_pylist(), expected[name].to_pylist(), strict=True):
            assert one == (other if other is None else pytest.approx(other, **ALIKE))


@pytest.fixture
def cluster() -> Iterator[Any]:
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


@pytest.mark.wide
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_ray_changes_no_byte_of_the_stage_and_ray_data_scores_texts_alike(
    cluster: Any, model: Path, documents: Path, scored: Path, tmp_path: Path
) -> None:
    score_corpus(documents, model, ScoringConfig(**SETTINGS), tmp_path / "out", RayExecutor(1, None), Silent())
    for file in [*(file["name"] for file in open_manifest(scored)["files"]), "manifest.json"]:
        assert (tmp_path / "out" / file).read_bytes() == (scored / file).read_bytes()
    dataset = cluster.data.from_arrow(table_of(documents))
    settings = {"checkpoint": str(model), **SETTINGS}
    stage = dataset.map_batches(
        ScoreBatch, fn_constructor_kwargs=settings, concurrency=1, batch_format="pyarrow", batch_size=20
    )
    found = pa.concat_tables(cluster.get(stage.to_arrow_refs())).sort_by("doc_id")
    assert found.schema.names == [*table_of(documents).schema.names, *ADDED]
    assert_alike(found, table_of(scored))


def test_texts_ids_and_nulls_are_scored_without_ray_too(model: Path, documents: Path, scored: Path) -> None:
    stage, expected = ScoreBatch(str(model), **SETTINGS), table_of(scored)
    texts = table_of(documents).select(["text"])
    assert_alike(stage(texts), expected)
    ids = pa.array([[*text.encode(), EOS] for text in TEXTS], pa.list_(pa.int64()))
    assert_alike(stage(texts.append_column("input_ids", ids)), expected)
    alone = stage(pa.table({"input_ids": ids}))
    assert alone["log_prob"].to_pylist() == pytest.approx(stage(texts)["log_prob"].to_pylist(), **ALIKE)
    assert alone["bits_per_byte"].null_count == len(TEXTS)  # of how many bytes nobody says
    some = stage(pa.table({"text": pa.array([TEXTS[7], None, TEXTS[8]])}))
    assert some["bits_per_byte"][1].as_py() is None
    assert_alike(some.select(ADDED).take([0, 2]), expected.slice(7, 2))
    assert stage(texts.slice(0, 0)).schema.equals(stage(texts).schema)


def test_a_table_that_cannot_be_scored_is_refused(model: Path) -> None:
    stage = ScoreBatch(str(model), text="body")
    with pytest.raises(UserError, match=r"columns text, but neither 'body' nor 'input_ids'"):
        stage(pa.table({"text": ["a"]}))
    with pytest.raises(UserError, match="a column 'tokens' already"):
        stage(pa.table({"body": ["a"], "tokens": [1]}))
    with pytest.raises(UserError, match="row 1 holds the id 999"):
        stage(pa.table({"input_ids": [[1], [2, 999]]}))
    with pytest.raises(UserError, match=r"unknown key 'poling'.*did you mean 'pooling'"):
        ScoreBatch(str(model), poling="mean")
