"""Ray Train's workers are ranks like any other, started from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqmill.errors import UserError

SETTINGS = ("--steps", 4, "--batch-tokens", 320, "--set", "shape.dim=32", "--set", "shape.layers=1")


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_two_workers_of_ray_take_the_updates_of_one_rank(
    packed: Path, tmp_path: Path, seqmill: Callable[..., Any]
) -> None:
    seqmill("train", packed, "--out", "zero", *SETTINGS, "--steps", 1, "--quiet", cwd=tmp_path)
    begun = (*SETTINGS, "--set", "init=zero")  # a relative path, which workers have to find
    done = seqmill("train", packed, "--out", "one", *begun, "--json", "--quiet", cwd=tmp_path)
    by_ray = ("--executor", "ray", "--workers", 2)
    found = seqmill("train", packed, "--out", "two", *begun, *by_ray, "--json", cwd=tmp_path)
    expected, result = json.loads(done.stdout), json.loads(found.stdout)
    assert result["tokens_seen"] == expected["tokens_seen"]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert not (tmp_path / "two" / "ray").exists()
    (told,) = [line for line in found.stderr.splitlines() if line.startswith("train: 4/4 in ")]
    assert f"loss {losses(tmp_path / 'two')[-1]:.3f}" in told
    assert json.loads((tmp_path / "two" / "train.json").read_text())["runs"]["ranks"] == 2


def test_what_a_worker_refuses_is_told_without_the_wrapping_of_ray() -> None:
    from ray.train import WorkerGroupError

    from seqmill.models.training.ray_train import plain_errors

    with pytest.raises(UserError, match=r"^the rows are of another folder$"), plain_errors(Path("run")):
        raise WorkerGroupError("2 workers failed", {1: UserError("the rows are of another folder")})
    with (
        pytest.raises(UserError, match=r"^training on Ray stopped[^\n]*lost.*newest checkpoint in run$"),
        plain_errors(Path("run")),
    ):
        raise WorkerGroupError("1 worker was lost", {0: OSError("connection lost")})


def test_several_local_ranks_are_left_to_torchrun(packed: Path, tmp_path: Path, seqmill: Callable[..., Any]) -> None:
    refused = seqmill("train", packed, "--out", "run", "--workers", 2, cwd=tmp_path, code=2)
    assert "torchrun --nproc-per-node 2 -m seqmill train" in refused.stderr
