import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from seqmill.cli.traps import app
from seqmill.errors import UserError
from seqmill.models import TrainConfig, load, score, train
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.pack import PackConfig, pack
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.pipeline.traps import MakeConfig, ScoreConfig, make_traps, score_traps
from seqmill.pipeline.traps.score import min_k_loss
from seqmill.pipeline.traps.table import read_traps, write_traps
from seqmill.storage import read_json
from seqmill.tokenizers_ext import load as load_tokenizer

from .conftest import HOST_BYTES


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def packed_from(documents: Path, tokenizer: Path, folder: Path) -> Path:
    tokenize(documents, tokenizer, TokenizeConfig(), folder / "tokens", LocalExecutor(1), Silent())
    pack(folder / "tokens", PackConfig(seq_len=256), folder / "packed", LocalExecutor(1), Silent())
    return folder / "packed"


@pytest.fixture(scope="module")
def untrained(injected: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint behind one update that changes next to nothing."""
    folder = tmp_path_factory.mktemp("untrained")
    config = TrainConfig(steps=1, batch_tokens=256, learning_rate=1e-9, device="cpu")
    train(packed_from(injected, tokenizer, folder), folder / "model", config)
    return folder / "model"


@pytest.fixture(scope="module")
def scored(untrained: Path, injected: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("scores")
    return out, score_traps(untrained, injected / "traps.parquet", ScoreConfig(bootstrap=200), out)


def test_every_trap_has_the_scores_of_the_model_on_its_text_behind_a_space(
    scored: tuple[Path, dict[str, Any]], untrained: Path, injected: Path, tokenizer: Path
) -> None:
    rows = pq.read_table(scored[0] / "scores.parquet").to_pylist()
    assert [row["trap_id"] for row in rows] == read_traps(injected / "traps.parquet")["trap_id"].to_pylist()
    model, encoder = load(untrained), load_tokenizer(tokenizer)
    for row in rows[::6]:
        ids = encoder.encode(pa.array([f" {row['text']}"]))[0].as_py()
        log_p = score(model, [ids])[0].tolist()
        assert row["loss"] == pytest.approx(-sum(log_p) / len(log_p), rel=1e-5)
        worst = sorted(log_p)[: len(log_p) // 5]
        assert row["min_k"] == pytest.approx(-sum(worst) / len(worst), rel=1e-5)
        assert row["zlib"] == pytest.approx(row["loss"] / (8 * len(zlib.compress(row["text"].encode()))))


def test_groups_are_lengths_and_copies_against_all_non_members_of_the_length(
    scored: tuple[Path, dict[str, Any]],
) -> None:
    report = scored[1]
    assert json.loads(json.dumps(report)) == read_json(scored[0] / "scores.json")
    assert list(report["tests"]) == ["loss", "min_k", "zlib"]
    groups = [(g["tokens"], g["copies"], g["loss"]["members"], g["loss"]["non_members"]) for g in report["groups"]]
    cells = [(length, copies, 4, 12) for length in (20, 40) for copies in (1, 4, 16)]
    assert groups == [(None, None, 24, 24), *cells]


def test_a_model_that_learned_nothing_cannot_tell_members_from_others(scored: tuple[Path, dict[str, Any]]) -> None:
    low, high = scored[1]["groups"][0]["loss"]["auc_ci95"]
    assert low < 0.5 < high


def test_a_reference_that_is_the_model_itself_leaves_a_ratio_of_one(
    untrained: Path, injected: Path, tmp_path: Path
) -> None:
    report = score_traps(untrained, injected / "traps.parquet", ScoreConfig(bootstrap=2), tmp_path, untrained)
    assert list(report["tests"]) == ["loss", "min_k", "ratio"]
    assert report["reference"] == report["checkpoint"]
    assert set(pq.read_table(tmp_path / "scores.parquet")["ratio"].to_pylist()) == {1.0}
    assert report["groups"][0]["ratio"]["auc"] == 0.5


def test_the_least_likely_tokens_are_at_least_one() -> None:
    assert min_k_loss(np.array([-1.0, -3.0, -2.0]), 0.2) == 3
    assert min_k_loss(np.array([-1.0, -3.0, -2.0, -5.0, -0.5]), 0.4) == 4


def test_traps_of_one_kind_alone_cannot_be_scored(untrained: Path, injected: Path, tmp_path: Path) -> None:
    traps = read_traps(injected / "traps.parquet")
    write_traps(tmp_path / "members.parquet", traps.filter(traps["member"]))
    with pytest.raises(UserError, match="24 members among 24 traps"):
        score_traps(untrained, tmp_path / "members.parquet", ScoreConfig(), tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"), [({"min_k": 0.0}, "--min-k"), ({"bootstrap": 1}, "--bootstrap 1"), ({"seed": -1}, "--seed")]
)
def test_impossible_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScoreConfig(**changed)


def test_a_checkpoint_writes_traps_and_judges_them(
    untrained: Path, tokenizer: Path, tmp_path: Path, scored: tuple[Path, dict[str, Any]]
) -> None:
    """An untrained model is close to uniform: all its texts have nearly as high a perplexity as the vocabulary has
    ids, and scoring a trap finds the perplexity that making it found."""
    config = MakeConfig(lengths=(10,), count=6, buckets=1, perplexity=(1000.0, 3000.0), rounds=30)
    manifest = make_traps(tokenizer, tmp_path / "traps.parquet", config, model=untrained)
    assert manifest["source"]["model"] == scored[1]["checkpoint"]
    assert manifest["totals"]["traps"] == 6
    score_traps(untrained, tmp_path / "traps.parquet", ScoreConfig(bootstrap=2), tmp_path)
    for row in pq.read_table(tmp_path / "scores.parquet").to_pylist():
        assert row["perplexity"] == pytest.approx(np.exp(row["loss"]), rel=1e-4)


@pytest.mark.slow
def test_a_model_trained_on_injected_documents_gives_the_members_away(
    documents: Path,
    tokenizer: Path,
    table_of: Callable[[Path], pa.Table],
    documents_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """From the command line: traps are made and injected, every copy arrives in rows, and the trained model knows the
    members, which it saw about 100 times, from those it never saw."""

    def run(*arguments: object) -> dict[str, Any]:
        found = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
        assert found.exit_code == 0, found.stdout
        return json.loads(found.stdout)  # type: ignore[no-any-return]

    traps, hidden, texts = tmp_path / "traps.parquet", tmp_path / "hidden", table_of(documents)["text"].to_pylist()
    hosts = documents_of([text for text in texts if len(text) > HOST_BYTES][:20])
    run("make", "--tokenizer", tokenizer, "--out", traps, "--reference", documents, "--lengths", "25", "--count", 32,
        "--buckets", 4, "--perplexity", "20-220", "--max-jaccard", 0.25, "--seed", 1)  # fmt: skip
    figures = run("inject", hosts, "--traps", traps, "--out", hidden, "--repetitions", "40",
                  "--min-document-bytes", HOST_BYTES, "--workers", 1, "--quiet")  # fmt: skip
    assert figures["copies"] == 16 * 40
    assert figures["bytes"] == figures["bytes_in"] + figures["bytes_added"]
    packed = packed_from(hidden, tokenizer, tmp_path)
    found = run("verify", hidden, "--tokens", tmp_path / "tokens", "--packed", packed)
    assert found["tokens"]["intact"] == found["packed"]["intact"] + found["packed"]["split"] == 16 * 40
    train(packed, tmp_path / "model", TrainConfig(steps=60, batch_tokens=1024, model="bytes-0.2m", device="cpu"))
    report = run("score", tmp_path / "model", "--traps", hidden / "traps.parquet", "--out", tmp_path / "scores")
    for test in ("loss", "min_k", "zlib"):
        everything = report["groups"][0][test]
        assert everything["auc"] > 0.9
        assert everything["auc_ci95"][0] > 0.6
        assert everything["auc_ci95_delong"][0] > 0.6
