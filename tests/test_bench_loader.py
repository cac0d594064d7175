"""The benchmark of loaders: that all of them read the same tokens, in whole passes, and resume where they stood."""

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from seqmill.errors import UserError
from seqmill.packing import PackedDataset
from seqmill.pipeline.bench import benchmark_module, run_benchmark

DRIVERS = Path(__file__).parents[1] / "benchmarks" / "peers"
DOCUMENTS, STEP = 200, 1_000_003
bench = benchmark_module("loader")
peers = benchmark_module("support.peers")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench.write_corpus(tmp_path_factory.mktemp("loader") / "corpus", DOCUMENTS)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DRIVERS))
    return importlib.import_module("batches")


@pytest.mark.parametrize("peer", peers.LOADERS)
def test_every_loader_has_a_driver_and_pinned_requirements(peer: str) -> None:
    assert ast.parse((DRIVERS / f"read_{peer.replace('-', '')}.py").read_text())
    if peer not in peers.OUR_OWN:
        wanted = [line.split("#")[0].strip() for line in (DRIVERS / f"{peer}.txt").read_text().splitlines()]
        assert wanted[0].startswith(f"{peer}==")
        assert all(re.fullmatch(r"[\w-]+==[\d.]+", requirement) for requirement in wanted)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cases": ["all"]}, "there is no case 'all'; choose from one-process, one-worker, resume"),
        ({"peers": ["trl"]}, "there is no peer 'trl'; choose from litdata"),
        ({"documents": 0}, "--documents 0: there is nothing to read"),
        ({"documents": 1}, "--documents 1: .* tokens fill no batch of 16384"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_benchmark("loader", **options)


def test_documents_add_up_to_whole_batches(corpus: Path, driver: ModuleType) -> None:
    tokens, lengths = (np.load(corpus / f"{name}.npy") for name in ("tokens", "lengths"))
    assert (driver.ROW, driver.BATCH) == (bench.ROW, bench.BATCH)
    assert len(tokens) == lengths.sum()
    assert len(tokens) % (bench.ROW * bench.BATCH) == 0
    assert lengths.min() > 0
    assert tokens.dtype == np.uint16


@pytest.mark.parametrize(("name", "variant"), [("seqmill", ""), ("datasets", "random access"), ("datasets", "stream")])
def test_a_pass_has_every_token_once_in_an_order_that_is_not_the_stored_one(
    corpus: Path, driver: ModuleType, tmp_path: Path, name: str, variant: str
) -> None:
    system = importlib.import_module(f"read_{name}")
    system.prepare(corpus, tmp_path / "data")
    reader = system.VARIANTS[variant]
    tokens = np.load(corpus / "tokens.npy")
    read = torch.cat([driver.ids(batch).flatten() for batch in reader.open(tmp_path / "data", 0)()]).numpy()
    assert not np.array_equal(read, tokens)
    assert np.array_equal(np.sort(read), np.sort(tokens))
    found = driver.read(reader, tmp_path / "data", 0)
    assert found["tokens"] == len(tokens)
    assert found["seconds"] > 0
    state = reader.save(tmp_path / "data", STEP)
    seconds, count = driver.first_batch(reader, tmp_path / "data", state)
    assert seconds > 0
    assert 0.99 * driver.ROW * driver.BATCH < count <= driver.ROW * driver.BATCH  # our last rows are not full


def test_the_first_batch_behind_a_state_is_that_of_the_step(corpus: Path, driver: ModuleType, tmp_path: Path) -> None:
    system = importlib.import_module("read_seqmill")
    system.prepare(corpus, tmp_path / "data")
    reader = system.VARIANTS[""]
    resumed = next(iter(reader.resume(tmp_path / "data", reader.save(tmp_path / "data", STEP))))
    assert resumed["step"] == STEP
    dataset = PackedDataset(tmp_path / "data", batch_rows=driver.BATCH, seed=driver.SEED, epochs=None)
    assert torch.equal(resumed["input_ids"], dataset.make(STEP)["input_ids"])


def test_speed_is_measured_in_processes_of_their_own() -> None:
    result = run_benchmark("loader", cases=["one-process"], peers=[], documents=DOCUMENTS)
    assert result["notes"] == []
    (row,) = result["rows"]
    assert (row["case"], row["system"], row["unit"]) == ("one process", "seqmill", "M tokens/s")
    assert row["value"] > 0
