"""Several ranks on gloo make the update that one rank makes, and go on where another number of ranks stopped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from safetensors.torch import load_file

from seqmill.errors import UserError
from seqmill.models import Model, TrainConfig, train
from seqmill.models.attention import Segments
from seqmill.models.checkpoint import newest_checkpoint
from seqmill.models.memory import MemorySettings
from seqmill.models.training.ranks import ALONE
from seqmill.packing import PackedDataset, PlanSettings, load_step_plan, plan_steps, read_row_sizes, save_step_plan
from seqmill.packing.costs import CostModel

from .rank_worker import FOR_TWO, RUNS, SHAPE, SMALL, gradients

WORKER = Path(__file__).with_name("rank_worker.py")


def settings_of(name: str) -> TrainConfig:
    """Those of a run, for one rank."""
    return TrainConfig(**{**RUNS[name], "context_parallel": 1})  # type: ignore[arg-type]


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, pack_to: Any) -> Path:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 100, length) for length in rng.integers(2, 60, size=60)]
    return pack_to(tmp_path_factory.mktemp("ranks") / "packed", documents)


def begin_alone(packed: Path, out: Path, name: str) -> None:
    """Leave the checkpoint of update 2."""

    class Stopped(Exception):  # noqa: N818 (it stands for a kill, not for an error)
        pass

    def stop(record: Any) -> None:
        if record.step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(packed, out / name, settings_of(name), stop)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.wide)])
def together(request: pytest.FixtureRequest, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What so many ranks made of everything in rank_worker."""
    ranks, out = request.param, tmp_path_factory.mktemp("together")
    for name in ("resumed-ddp", "resumed-fsdp"):
        begin_alone(packed, out, name)
    sizes, fingerprint = read_row_sizes(packed), PackedDataset(packed).state_dict()["fingerprint"]
    costs = CostModel(1.0, 64.0, 0.0, 0.0, "FLOP", per_exchanged_token=10.0)  # some rows are shared, and some are not
    for name, strategy in (("plan", "columns"), ("groups", "groups")):
        settings = PlanSettings(ranks, rows=2, strategy=strategy)
        save_step_plan(out / f"{name}-{ranks}.arrow", plan_steps(sizes, costs, settings, fingerprint))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, str(WORKER), str(packed), str(out)], env=environment, check=True)
    return out


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("code", ["gradients", "compiled"])
def test_gradients_are_those_of_one_rank(together: Path, packed: Path, parallel: str, code: str) -> None:
    path = together / f"{code}-{parallel}.safetensors"
    if not path.exists():
        assert code == "compiled"
        pytest.skip("four ranks show it")
    found = load_file(path)
    expected = gradients(packed, parallel, ALONE)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 2e-6 * gradient.abs().max() > 0, name


@pytest.mark.parametrize("name", ["ddp", "fsdp", "odd", "muon", "ring", "ulysses", "experts", "lean"])
def test_runs_take_the_updates_of_one_rank(together: Path, packed: Path, tmp_path: Path, name: str) -> None:
    if not (together / name).exists():
        assert name in FOR_TWO
        pytest.skip("two ranks show it")
    train(packed, tmp_path / name, settings_of(name))
    for line, expected in zip(log_of(together / name), log_of(tmp_path / name), strict=True):
        assert (line["step"], line["tokens"], line["lr"]) == (expected["step"], expected["tokens"], expected["lr"])
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert line["objective"] == pytest.approx(expected["objective"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    one, other = (newest_checkpoint(out / name) for out in (together, tmp_path))
    assert one is not None
    assert other is not None
    weights, expected_weights = (load_file(folder / "model.safetensors") for folder in (one, other))
    for parameter, weight in expected_weights.items():
        torch.testing.assert_close(
            weights[parameter], weight, rtol=0, atol=2e-3
        )  # Adam makes much of roundings at first
    states = [json.loads((folder / "state.json").read_text()) for folder in (one, other)]
    assert states[0]["loader"] == states[1]["loader"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_another_number_of_ranks_goes_on_in_the_same_row_order(
    together: Path, packed: Path, tmp_path: Path, parallel: str
) -> None:
    """One rank began, several went on; then one goes on from their checkpoint."""
    straight, resumed = log_of(together / parallel), log_of(together / f"resumed-{parallel}")
    assert [line["tokens"] for line in resumed] == [line["tokens"] for line in straight]
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in straight], rel=1e-5)
    back = shutil.copytree(together / parallel, tmp_path / "back")
    shutil.rmtree(back / "checkpoints" / "step-00000004")
    assert train(packed, back, settings_of(parallel)).resumed_from == 2
    assert [line["tokens"] for line in log_of(back)] == [line["tokens"] for line in straight]
    assert log_of(back)[-1]["loss"] == pytest.approx(straight[-1]["loss"], rel=1e-5)


@pytest.mark.parametrize(("run", "name"), [("planned", "plan"), ("shared", "groups")])
def test_a_plan_tells_the_rows_of_every_update(together: Path, packed: Path, run: str, name: str) -> None:
    """The rows of all ranks are those of the plan, each once: their targets, and the loss and the gradient of the first
    weights on them."""
    (path,) = together.glob(f"{name}-*.arrow")
    ranks, plan, seed = int(path.stem.split("-")[1]), load_step_plan(path), SMALL["seed"]
    datasets = [
        PackedDataset(packed, rank=rank, world_size=ranks, plan=plan, seed=seed, epochs=None) for rank in range(ranks)
    ]
    model, targets_before, sharers = Model(settings_of("ddp").model_config(100), seed=seed), 0, set()
    log = log_of(together / run)
    assert len(log) == SMALL["steps"]
    for step, line in enumerate(log):
        batches = [dataset.batch_at(step) for dataset in datasets]
        sharers |= {count for batch in batches for count in batch["slot_ranks"][:, 1].tolist()}
        rows = [datasets[0].row(row) for row in sorted({row for batch in batches for row in batch["row_ids"].tolist()})]
        targets, nats = sum(row["n_loss_tokens"] for row in rows), torch.zeros(())
        for row in rows:
            hidden = model(row["input_ids"], row["position_ids"], Segments.of(row["cu_seqlens"].diff().tolist()))
            nats = nats + F.cross_entropy(model.logits(hidden), row["targets"], reduction="sum")
        model.zero_grad()
        (nats / targets).backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        assert line["tokens"] == targets_before + targets
        assert line["loss"] == pytest.approx(nats.item() / targets, rel=1e-5)
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
        targets_before += targets
    assert sharers == ({1, 2} if name == "groups" else {1})


def test_a_plan_whose_rows_are_shared_excludes_what_shares_them_otherwise(
    together: Path, packed: Path, tmp_path: Path
) -> None:
    (plan,) = together.glob("groups-*.arrow")
    ranks = int(plan.stem.split("-")[1])
    settings = {**SMALL, "batch_tokens": 128 * ranks, "plan": str(plan)}
    for changes, message in (
        ({"normalisation": "rank-token-mean"}, "rank-token-mean.*has ranks share rows"),
        ({"shape": {**SHAPE, "window": 4}}, "context_kind = 'ring'.*use 'ulysses'"),
        ({"memory": MemorySettings(stream_chunk=8)}, "a streamed layer has all tokens of its row"),
    ):
        with pytest.raises(UserError, match=message):
            train(packed, tmp_path / "run", TrainConfig(**{**settings, **changes}))  # type: ignore[arg-type]


def test_a_plan_for_other_ranks_or_rows_is_refused(together: Path, packed: Path, tmp_path: Path) -> None:
    (plan,) = together.glob("plan-*.arrow")
    with pytest.raises(UserError, match=r"batch_tokens = 320, but .* plans steps with room for \d+ tokens"):
        train(packed, tmp_path / "run", TrainConfig(**{**SMALL, "plan": str(plan)}))
    room = 128 * int(plan.stem.split("-")[1])
    with pytest.raises(UserError, match=r"shares out rows among \d ranks, world_size is 1"):
        train(packed, tmp_path / "run", TrainConfig(**{**SMALL, "batch_tokens": room, "plan": str(plan)}))
