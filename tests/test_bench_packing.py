"""The benchmark of packers: that it gives all of them the same sequences, and measures in processes of their own."""

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqmill.errors import UserError
from seqmill.packing import plan
from seqmill.pipeline.bench import benchmark_module, run_benchmark

ROOT = Path(__file__).parents[1]
DRIVERS = ROOT / "benchmarks" / "peers"
DATA = ROOT / "examples" / "corpus" / "udhr" / "glg.txt"
bench = benchmark_module("packing")
peers = benchmark_module("support.peers")


@pytest.mark.parametrize("peer", peers.PACKERS)
def test_every_packer_has_a_driver_and_pinned_requirements(peer: str) -> None:
    assert ast.parse((DRIVERS / f"plan_{peer}.py").read_text())
    wanted = [line.split("#")[0].strip() for line in (DRIVERS / f"{peer}.txt").read_text().splitlines()]
    assert wanted[0].startswith(f"{peer}==")
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", requirement) for requirement in wanted)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cases": ["plan", "all"]}, "there is no case 'all'; choose from plan, order, write"),
        ({"peers": ["rensa"]}, "there is no peer 'rensa'; choose from trl"),
        ({"documents": 0}, "--documents 0: there is nothing to pack"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_benchmark("packing", **options)


@pytest.mark.parametrize("capacity", [1, 7, 2048])
def test_sequences_are_the_pieces_that_a_plan_makes(capacity: int) -> None:
    lengths = np.array([0, 1, 6, 7, 8, 14, 3000, 4096])
    packed = plan(lengths, capacity)
    assert sorted(bench.cut(lengths, capacity).tolist()) == sorted((packed.stop - packed.start).tolist())


def test_the_rows_of_a_driver_are_those_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DRIVERS))
    driver = importlib.import_module("sequences")
    ours = importlib.import_module("plan_seqmill")
    lengths = np.random.default_rng(0).integers(1, 65, 500)
    for algorithm in ("best-fit-decreasing", "concat"):
        found = driver.measured(ours.by(algorithm), lengths, 64)
        assert found["rows"] == plan(lengths, 64, algorithm=algorithm).rows
        assert found["seconds"] > 0


def test_plans_and_rows_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CAPACITIES", (64,))
    monkeypatch.setattr(bench, "IN_ORDER", ("concat",))
    result = run_benchmark("packing", cases=["order", "write"], peers=[], data=DATA, documents=50)
    assert result["notes"] == []
    assert all(row["value"] == 0 for row in result["rows"] if row["unit"] == "%")  # concatenation wastes nothing
    assert all(row["value"] > 0 for row in result["rows"] if row["unit"] != "%")
    assert {row["unit"] for row in result["rows"]} >= {"million sequences/s", "%", "MB/s"}
