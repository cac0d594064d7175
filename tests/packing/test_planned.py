"""Steps as a plan shares them out: who reads what, in which slot, and whose targets count."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.packing import (
    CostModel,
    PackedDataset,
    PlanSettings,
    StepPlan,
    make_schedule,
    plan_steps,
    read_row_sizes,
    save_step_plan,
)
from seqmill.packing.buckets import Buckets
from seqmill.packing.step_plan import STRATEGIES

LENGTHS = np.random.default_rng(0).integers(1, 60, 150).tolist()
RANKS = 4


@pytest.fixture
def folder(pack: Callable) -> Path:
    return pack(LENGTHS, 32, shards=3).folder


def plan_of(folder: Path, strategy: str, ranks: int = RANKS, seed: int = 0, **settings: Any) -> StepPlan:
    model = CostModel(per_square=1.0, per_token=10.0, per_segment=1.0, per_row=0.0, per_exchanged_token=0.1, unit="s")
    chosen = PlanSettings(ranks, 2, strategy, seed=seed, **settings)
    return plan_steps(read_row_sizes(folder), model, chosen, open_manifest(folder)["fingerprint"])


@pytest.fixture(params=[*STRATEGIES, "shared"])
def plan(folder: Path, request: pytest.FixtureRequest) -> StepPlan:
    """Every strategy; "shared" with rows that no rank has memory for alone."""
    if request.param == "shared":
        plan = plan_of(folder, "groups", memory_tokens=20)
        assert plan.group.max() > 1
        return plan
    return plan_of(folder, request.param)


def steps_of(folder: Path, plan: StepPlan, epochs: int = 1, **options: Any) -> list[list[dict[str, Any]]]:
    """The batches of all ranks, step by step."""
    ranks = [
        list(PackedDataset(folder, plan=plan, rank=rank, world_size=RANKS, epochs=epochs, **options))
        for rank in range(RANKS)
    ]
    return [list(step) for step in zip(*ranks, strict=True)]


def test_every_rank_reads_what_the_plan_says(folder: Path, plan: StepPlan) -> None:
    rows = PackedDataset(folder)
    for number, step in enumerate(steps_of(folder, plan)):
        here = [i for i in range(len(plan.row_id)) if plan.step[i] == number]
        targets = sum(rows.row(int(plan.row_id[i]))["n_loss_tokens"] for i in here)
        for rank, batch in enumerate(step):
            mine = [i for i in here if plan.rank[i] <= rank < plan.rank[i] + plan.group[i]]
            mine.sort(key=lambda i: plan.slot[i])
            assert batch["row_ids"].tolist() == [plan.row_id[i] for i in mine]
            assert batch["global_loss_tokens"] == targets  # rows of a group once
            assert batch["n_loss_tokens"] == int((batch["targets"] != -100).sum())
            slots = max(plan.slot[i] for i in here) + 1
            assert batch["slots"].dtype == batch["slot_ranks"].dtype == torch.int32
            assert len(batch["slots"]) == len(batch["slot_ranks"]) + 1 == slots + 1
            for slot in range(slots):
                tokens = batch["input_ids"][batch["slots"][slot] : batch["slots"][slot + 1]].tolist()
                one = [i for i in mine if plan.slot[i] == slot]
                assert tokens == [t for i in one for t in rows.row(int(plan.row_id[i]))["input_ids"].tolist()]
                shared = [plan.rank[one[0]], plan.group[one[0]]] if one else [rank, 1]
                assert batch["slot_ranks"][slot].tolist() == shared


def test_later_epochs_read_the_same_steps_in_another_order(folder: Path) -> None:
    plan = plan_of(folder, "lpt")
    parts = [
        [tuple(batch["row_ids"].tolist() for batch in step) for step in steps_of(folder, plan, 3, **options)]
        for options in ({"seed": 1}, {"seed": 2}, {"shuffle": False})
    ]
    epochs = [[found[k * plan.steps : (k + 1) * plan.steps] for k in range(3)] for found in parts]
    planned = epochs[2][0]
    assert epochs[2] == [planned] * 3
    assert epochs[0][0] == epochs[1][0] == planned
    assert sorted(epochs[0][1]) == sorted(epochs[1][1]) == sorted(epochs[0][2]) == sorted(planned)
    orders = [epochs[0][1], epochs[0][2], epochs[1][1], planned]
    assert all(one != other for k, one in enumerate(orders) for other in orders[:k])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_planned_run_goes_on_anywhere(folder: Path, tmp_path: Path, workers: int) -> None:
    """From the file of the plan, with workers, and as a copy."""
    path = tmp_path / "plan.arrow"
    save_step_plan(path, plan_of(folder, "columns"))
    options: dict[str, Any] = {"plan": path, "rank": 2, "world_size": RANKS, "epochs": 2}
    whole = [batch["row_ids"].tolist() for batch in PackedDataset(folder, **options)]
    for first in (0, 3, len(whole) - 1):
        dataset = PackedDataset(folder, **options)
        state = json.loads(json.dumps(dataset.state_at(first)))
        assert len(json.dumps(state)) < 300
        dataset.load_state_dict(state)
        copy = pickle.loads(pickle.dumps(dataset))
        for one in (dataset, copy):
            loader: Any = DataLoader(one, batch_size=None, num_workers=workers)
            assert [batch["row_ids"].tolist() for batch in loader] == whole[first:]


def test_what_a_plan_excludes_is_refused(folder: Path, pack: Callable, tmp_path: Path) -> None:
    plan = plan_of(folder, "columns")
    options: dict[str, Any] = {"plan": plan, "world_size": RANKS}
    with pytest.raises(UserError, match=r"among 4 ranks, world_size is 8: plan again for 8 ranks and begin at a new"):
        PackedDataset(folder, plan=plan, world_size=8)
    with pytest.raises(UserError, match="the step plan is of the dataset"):
        PackedDataset(pack([5, 6], 8).folder, **options)
    with pytest.raises(UserError, match=r"the step plan has \d+ rows"):
        PackedDataset(folder, plan=replace(plan, row_id=plan.row_id + 1), world_size=RANKS)
    schedule = make_schedule(Buckets(4, "longest", "carry_to_packer", (16, 12), 0, 0), 16)
    for name, value in {"batch_rows": 8, "shuffle_shards": 1, "schedule": schedule}.items():
        message = "the schedule is of" if name == "schedule" else f"{name} is given together with a plan"
        with pytest.raises(UserError, match=message):
            PackedDataset(folder, **options, **{name: value})
    state = PackedDataset(folder, **options).state_at(2)
    with pytest.raises(UserError, match=f"has plan '{plan.hash}'"):
        PackedDataset(folder, plan=plan_of(folder, "lpt", seed=1), world_size=RANKS).load_state_dict(state)
    with pytest.raises(UserError, match="has no 'batch_rows'"):
        PackedDataset(folder).load_state_dict(state)
    with pytest.raises(UserError, match=r"all shards|rows of any shard\); .* leave out the plan"):
        PackedDataset(folder, **options, cache=tmp_path, cache_bytes=100)


def test_planned_rows_come_from_afar_too(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"plan": plan_of(folder, "groups", memory_tokens=20), "rank": 3, "world_size": RANKS}
    local = [batch["input_ids"].tolist() for batch in PackedDataset(folder, **options)]
    remote = PackedDataset(f"file://{folder}", cache=tmp_path / "cache", cache_bytes=10**6, **options)
    assert [batch["input_ids"].tolist() for batch in remote] == local
