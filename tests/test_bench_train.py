"""The benchmark of training: that all trainers make the same updates, and how their figures are made of them."""

import ast
import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from seqmill.errors import UserError
from seqmill.models import Model, load
from seqmill.models.config import preset_config
from seqmill.packing import PackedDataset
from seqmill.pipeline.bench import benchmark_module, run_benchmark

DRIVERS = Path(__file__).parents[1] / "benchmarks" / "peers"
EXAMPLES = Path(__file__).parents[1] / "examples" / "corpus"
UPDATES, ROWS, ROW, VOCABULARY, PRESET = 4, 4, 256, 512, "bytes-0.2m"
bench = benchmark_module("train")
peers = benchmark_module("support.peers")

Work = tuple[Path, list[int]]  # what drivers read, and the targets of every update


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"ROW": ROW, "UPDATE": ROWS * ROW, "UPDATES": UPDATES, "VOCABULARY": VOCABULARY, "TURNS": 1}
        for name, size in (sizes | {"MOST_BYTES": 60_000}).items():
            patch.setattr(bench, name, size if name in ("ROW", "TURNS", "MOST_BYTES") else {"cpu": size})
        yield


@pytest.fixture(scope="module")
def work(_small: None, tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("train") / "work"
    return folder, bench.write_work(folder, EXAMPLES / "jargon.jsonl", "cpu", PRESET)


@pytest.fixture(scope="module")
def drivers() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DRIVERS))
        yield {name: importlib.import_module(name) for name in ("updates", "train_seqmill", "train_transformers")}


@pytest.fixture(scope="module")
def ours(work: Work, drivers: dict[str, ModuleType]) -> dict[str, Any]:
    found: dict[str, Any] = drivers["updates"].trained(drivers["train_seqmill"].packed, work[0], torch.device("cpu"))
    return found


@pytest.mark.parametrize("peer", peers.TRAINERS)
def test_every_trainer_has_a_driver(peer: str) -> None:
    assert ast.parse((DRIVERS / f"train_{peer}.py").read_text())
    assert peer in peers.OUR_OWN


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "tpu"}, "--device tpu: training is measured on cpu and cuda"),
        ({"peers": ["rensa"]}, "there is no peer 'rensa'; choose from transformers"),
        ({"cases": ["cuda"]}, "there is no case on cpu 'cuda'; choose from one-thread, all-threads"),
        ({"model": "huge"}, "model = 'huge': there is no such preset"),
        ({"documents": 3}, "the benchmark 'train' takes no --documents"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_benchmark("train", **options)


def test_too_little_text_is_refused_with_the_updates_that_it_fills(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_packed", lambda *_: work[0] / "packed")
    monkeypatch.setitem(bench.UPDATES, "cpu", 10_000)
    with pytest.raises(UserError, match=r"--data few: its tokens fill \d+ updates, 10000 are needed; give more text"):
        bench.write_work(work[0], Path("few"), "cpu", PRESET)


def documents_of(batch: dict[str, Any]) -> list[list[int]]:
    """By the bounds of its segments."""
    sizes = batch["cu_seqlens"].diff().tolist()
    return [part.tolist() for part in batch["input_ids"].split(sizes)]


@pytest.mark.parametrize("is_mixed", [False, True])
def test_all_have_the_same_documents_in_every_update(
    work: Work, drivers: dict[str, ModuleType], is_mixed: bool
) -> None:
    folder, targets = work
    dataset = PackedDataset(folder / "packed", batch_rows=ROWS, seed=bench.SEED, epochs=1)
    ours = [sorted(documents_of(dataset.batch_at(step))) for step in range(UPDATES)]
    updates = list(drivers["updates"].read_updates(folder))
    parts = list(drivers["train_transformers"].micro_batches(updates, 1, is_mixed))
    theirs = [sorted(one["input_ids"] for part in update for one in part) for update in parts]
    assert theirs == ours
    assert [sum(len(document) - 1 for document in update) for update in ours] == targets
    assert {len(update) for update in parts} == {ROWS}
    assert all(one["labels"] == [-100, *one["input_ids"][1:]] for update in parts for part in update for one in part)


def test_the_first_loss_is_that_of_the_same_weights_a_document_at_a_time_in_transformers(
    work: Work, drivers: dict[str, ModuleType], ours: dict[str, Any]
) -> None:
    from transformers import LlamaForCausalLM

    folder, targets = work
    theirs = LlamaForCausalLM.from_pretrained(folder / "weights")
    update = next(drivers["updates"].read_updates(folder))
    total = 0.0
    with torch.no_grad():
        for document in (torch.tensor([document]) for row in update for document in row):
            total += float(theirs(document, labels=document).loss) * (document.numel() - 1)
    assert ours["losses"][0] == pytest.approx(total / targets[0], rel=1e-5)
    assert len(ours["losses"]) == UPDATES
    assert ours["losses"][-1] < ours["losses"][0]
    assert ours["padding_share"] == 0.0
    assert ours["seconds"] > 0


def test_the_first_weights_are_those_of_the_seed(work: Work) -> None:
    folder, _ = work
    ours, theirs = Model(preset_config(PRESET, VOCABULARY), bench.SEED), load(folder / "weights")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def answer(seconds: float, *losses: float) -> dict[str, Any]:
    return {"losses": losses, "seconds": seconds, "padding_share": 0.25, "peak_bytes": 2_000_000, "threads": 1}


def test_speeds_and_ratios_are_medians_over_the_turns() -> None:
    notes: list[str] = []
    ours = [answer(seconds, 8.0, 7.0) for seconds in (1.0, 4.0, 2.0)]
    slow = [answer(seconds, 8.0, 7.1) for seconds in (5.0, 8.0, 8.0)]  # 5, 2 and 4 times as long
    rows = list(bench.figures("tiny, one-thread", {"seqmill": ours, "slow": slow}, 100, notes))
    found = {(row["case"].removeprefix("tiny, one-thread: "), row["system"]): row["value"] for row in rows}
    assert found["speed", "seqmill"] == 50
    assert found["speed", "slow"] == 12.5
    assert found["seqmill beside this one", "slow"] == 4
    assert found["padding", "slow"] == 25
    assert found["peak memory", "seqmill"] == 2
    assert found["loss of the last update", "slow"] == 7.1
    assert "loss of slow 8.000000 to 7.100000, at most 1.4e-02 off ours" in notes[1]


def test_no_speed_is_shown_of_a_trainer_that_computes_something_else() -> None:
    notes: list[str] = []
    answers = {"seqmill": [answer(1.0, 8.0, 7.0)], "other": [answer(0.1, 8.001, 7.0)]}
    assert {row["system"] for row in bench.figures("tiny", answers, 100, notes)} == {"seqmill"}
    assert notes[-1] == "tiny: other has another loss in the first update, so its speed says nothing"


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="transformers' Trainer needs accelerate")
@pytest.mark.parametrize("variant", ["padded", "flattened"])
def test_the_trainer_of_transformers_makes_the_same_updates(
    work: Work, ours: dict[str, Any], drivers: dict[str, ModuleType], variant: str
) -> None:
    found = drivers["updates"].trained(drivers["train_transformers"].VARIANTS[variant], work[0], torch.device("cpu"))
    assert found["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert (found["padding_share"] > 0.1) == (variant == "padded")
    assert found["padding_share"] < 1


@pytest.mark.wide
def test_a_case_is_measured_in_processes_of_its_own() -> None:
    result = run_benchmark("train", data=EXAMPLES / "jargon.jsonl", cases=["one-thread"], model=PRESET, peers=[])
    assert "threads 1; " in result["notes"][0]
    assert [row["system"] for row in result["rows"]] == ["seqmill"] * 4
    assert result["rows"][0]["value"] > 100
    assert json.dumps(result)
