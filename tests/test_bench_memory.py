"""The benchmark of memory: that ways and peers are what they say, and that it measures processes of their own."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from seqmill.errors import UserError
from seqmill.models.memory import MemorySettings
from seqmill.pipeline.bench import benchmark_module, run_benchmark

DRIVERS = Path(__file__).parents[1] / "benchmarks" / "peers"
SHAPE = {"vocab_size": 300, "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_dim": 48}
bench = benchmark_module("memory")
peers = benchmark_module("support.peers")


@pytest.mark.parametrize("peer", peers.DECODERS)
def test_every_decoder_has_a_driver(peer: str) -> None:
    assert ast.parse((DRIVERS / f"step_{peer}.py").read_text())
    assert peer in peers.OUR_OWN


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "tpu"}, "--device tpu: memory is measured on cpu and cuda"),
        ({"peers": ["rensa"]}, "there is no peer 'rensa'; choose from transformers"),
        (
            {"cases": ["layer + offload"]},
            r"there is no case on cpu .layer \+ offload.; choose from plain, chunked loss",
        ),
        ({"model": "huge"}, "model = 'huge': there is no such preset"),
        ({"minutes": 3}, "the benchmark 'memory' takes no --minutes"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_benchmark("memory", **options)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DRIVERS))
    return importlib.import_module("step_seqmill")


def test_every_way_that_a_processor_can_go_has_the_same_loss(driver: Any) -> None:
    measured = importlib.import_module("steps").measured
    ways = bench.ON_HOST
    assert (*driver.WAYS,) == bench.ON_CUDA
    found = [measured(driver.by(way), 700, torch.device("cpu"), SHAPE) for way in ways]
    assert [one["loss"] for one in found] == pytest.approx([found[0]["loss"]] * len(ways), rel=1e-5)
    assert all(one["seconds"] > 0 and one["peak_bytes"] > 1 << 20 for one in found)


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    ballast = b"x" * (600 << 20)
    told = "import torch; from steps import peak_bytes; print(peak_bytes(torch.device('cpu')))"
    ended = subprocess.run(
        [sys.executable, "-c", told], env={**os.environ, "PYTHONPATH": str(DRIVERS)}, capture_output=True, check=True
    )
    assert 50 << 20 < int(ended.stdout) < len(ballast)


def test_every_way_is_a_possible_setting(driver: Any) -> None:
    settings = {
        way: MemorySettings(**{key: 8 if value is driver.PIECE else value for key, value in values.items()})
        for way, values in driver.WAYS.items()
    }
    assert all(one.offload == way.endswith("offload") for way, one in settings.items())
    assert len(set(settings.values())) == len(settings) - 1  # "plain" and "chunked loss" differ in the loss alone


@pytest.mark.wide
def test_a_point_is_measured_in_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.LENGTHS, "cpu", (512, 2560))
    monkeypatch.setitem(bench.VOCABULARY, "cpu", 4096)
    result = run_benchmark("memory", cases=["plain"], model="bytes-0.2m", peers=[])
    assert result["notes"] == []
    tokens, seconds = result["rows"]
    assert (tokens["case"], tokens["system"]) == ("bytes-0.2m, plain: longest document", "seqmill")
    assert 1000 < tokens["value"] < (1 << 30) / (4096 * 4)  # the logits of a token alone are 4096 floats
    assert seconds["value"] > 0
    assert [row["higher_is_better"] for row in result["rows"]] == [True, False]
