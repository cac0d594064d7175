"""The benchmark of prompts: that all systems go on with the same tokens, and how figures are made of the answers."""

import ast
import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from seqmill.errors import UserError
from seqmill.models import load
from seqmill.models.attention import Segments
from seqmill.pipeline.bench import benchmark_module, run_benchmark
from seqmill.tokenizers_ext import train_bpe
from seqmill.tokenizers_ext.subword import SubwordEncoder

DRIVERS = Path(__file__).parents[1] / "benchmarks" / "peers"
EXAMPLES = Path(__file__).parents[1] / "examples" / "corpus"
PRESET, VOCABULARY, COUNT, BATCH = "bytes-0.2m", 300, 9, 4
TEXTS = pa.array(["some words and some more words, 1234\n" * size for size in (1, 30, 3, 12)])
bench = benchmark_module("prefill")
generating = benchmark_module("support.generating")
peers = benchmark_module("support.peers")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine prompts of 1 to 60 tokens, three new tokens each."""
    folder = tmp_path_factory.mktemp("prefill")
    weights, encoder = generating.prepare_model(folder / "model", PRESET, TEXTS, VOCABULARY)
    documents = [np.array(ids) for ids in encoder.encode(TEXTS).to_pylist()]
    workload = bench.of_lengths(lambda rng, count: rng.integers(1, 61, count))(documents, COUNT)
    made: Path = bench.write_work(folder / "work", weights, replace(workload, new_tokens=3), BATCH)
    return made


@pytest.fixture(scope="module")
def drivers() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DRIVERS))
        yield {name: importlib.import_module(name) for name in ("prompts", "prefill_seqmill", "prefill_transformers")}


@pytest.fixture(scope="module")
def alone(work: Path, drivers: dict[str, ModuleType]) -> list[list[int]]:
    """What follows each prompt by itself, every token computed again from the whole text."""
    model = load(json.loads((work / "work.json").read_text())["weights"])
    texts = drivers["prompts"].read_prompts(work)
    for _ in range(3):
        texts = [[*text, next_token(model, text)] for text in texts]
    return [text[-3:] for text in texts]


@torch.no_grad()
def next_token(model: Any, text: list[int]) -> int:
    segments = Segments.of([len(text)], "cpu")
    return int(model.logits(model(torch.tensor(text), segments.positions(), segments))[-1].argmax())


def answer_of(work: Path, drivers: dict[str, ModuleType], name: str, variant: str) -> dict[str, Any]:
    module = drivers[f"prefill_{name}"]
    variants = {"packed": module.packed} if name == "seqmill" else module.VARIANTS
    found: dict[str, Any] = drivers["prompts"].generated(variants[variant], work, torch.device("cpu"))
    return found


@pytest.mark.parametrize("peer", peers.GENERATORS)
def test_every_system_has_a_driver(peer: str) -> None:
    assert ast.parse((DRIVERS / f"prefill_{peer}.py").read_text())
    assert peer in peers.OUR_OWN


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("seqmill", "packed"),
        ("transformers", "padded"),
        ("transformers", "length-sorted"),
        ("transformers", "generate_batch"),
    ],
)
def test_every_way_goes_on_with_the_tokens_of_each_prompt_alone(
    work: Path, drivers: dict[str, ModuleType], alone: list[list[int]], name: str, variant: str
) -> None:
    found = answer_of(work, drivers, name, variant)
    assert found["tokens"] == alone
    assert len({tuple(tokens) for tokens in alone}) > 1
    firsts = found["first_seconds"]
    assert len(firsts) == COUNT
    assert 0 < min(firsts) <= max(firsts) <= found["seconds"]
    assert (found["padding_share"] > 0.05) == (variant in ("padded", "length-sorted"))
    if variant in ("padded", "length-sorted"):
        assert len(set(firsts)) == -(-COUNT // BATCH)  # a batch has its first tokens at once


def test_sorted_batches_have_less_padding_and_padding_stands_on_the_left(
    work: Path, drivers: dict[str, ModuleType]
) -> None:
    ids, mask = drivers["prefill_transformers"].padded([[7], [8, 9, 9]])
    assert ids.tolist() == [[0, 0, 7], [8, 9, 9]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    shares = [answer_of(work, drivers, "transformers", name)["padding_share"] for name in ("padded", "length-sorted")]
    assert shares[1] < shares[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "tpu"}, "--device tpu: prompts are measured on cpu and cuda"),
        ({"peers": ["vllm"]}, "there is no peer 'vllm'; choose from transformers"),
        ({"cases": ["zipf"]}, "there is no case 'zipf'; choose from mmlu-like, log-normal, uniform, corpus"),
        ({"model": "huge"}, "--model huge: neither a folder nor a preset; presets are tiny"),
        ({"documents": 0}, "--documents 0: there is nothing to read"),
        ({"ranks": Path()}, "the benchmark 'prefill' takes no --ranks"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_benchmark("prefill", **options)


@pytest.mark.parametrize("case", bench.CASES)
def test_prompts_are_stretches_of_the_documents_and_the_same_every_time(case: str) -> None:
    documents = [np.arange(start, start + size) for start, size in ((0, 5000), (5000, 300), (5300, 40))]
    first, again = (bench.CASES[case](documents, 50) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.prompts, again.prompts, strict=True))
    lengths = np.array([len(prompt) for prompt in first.prompts])
    assert all(np.array_equal(prompt, np.arange(prompt[0], prompt[0] + len(prompt))) for prompt in first.prompts)
    least, most, middle = {
        "mmlu-like": (30, 1024, (60, 130)),
        "log-normal": (8, 2048, (130, 300)),
        "uniform": (100, 1024, (400, 700)),
        "corpus": (40, 2048, (300, 300)),
    }[case]
    assert least <= lengths.min() <= lengths.max() <= most
    assert middle[0] <= np.median(lengths) <= middle[1]
    assert len(lengths) == (3 if case == "corpus" else 50)


def test_a_folder_of_the_hub_is_measured_as_it_is_and_one_of_ours_is_written_for_both(
    work: Path, tmp_path: Path
) -> None:
    hub = Path(json.loads((work / "work.json").read_text())["weights"])
    contents = train_bpe([TEXTS], VOCABULARY)
    given = tmp_path / "given"
    given.mkdir()
    for name in ("config.json", "model.safetensors"):
        (given / name).write_bytes((hub / name).read_bytes())
    (given / "tokenizer.json").write_bytes(contents)
    weights, encoder = generating.prepare_model(tmp_path / "unused", str(given), TEXTS, VOCABULARY)
    assert weights == given
    assert encoder.encode(TEXTS).equals(SubwordEncoder(contents).encode(TEXTS))
    assert not (tmp_path / "unused").exists()


def answer(seconds: float, firsts: list[float], *tokens: int) -> dict[str, Any]:
    told = {"tokens": [[token] for token in tokens], "seconds": seconds, "first_seconds": firsts}
    return {**told, "padding_share": 0.25, "peak_bytes": 2_000_000, "threads": 1}


def test_speeds_ratios_and_waits_are_medians_over_the_turns() -> None:
    notes: list[str] = []
    ours = [answer(seconds, [0.0, 1.0, seconds], 5, 6, 7) for seconds in (1.0, 4.0, 2.0)]
    slow = [answer(seconds, [1.0, 2.0, seconds], 5, 6, 8) for seconds in (5.0, 8.0, 8.0)]  # 5, 2 and 4 times as long
    rows = list(bench.figures("tiny, uniform", {"seqmill": ours, "slow": slow}, 100, notes))
    found = {(row["case"].removeprefix("tiny, uniform: "), row["system"]): row["value"] for row in rows}
    assert found["speed", "seqmill"] == 50
    assert found["speed", "slow"] == 12.5
    assert found["seqmill beside this one", "slow"] == 4
    assert found["other tokens than ours", "slow"] == 1
    assert found["time to first token, p50", "slow"] == 2
    assert found["time to first token, p95", "seqmill"] == 1.9
    assert found["padding", "slow"] == 25
    assert found["peak memory", "seqmill"] == 2
    assert notes == ["tiny, uniform: 1 of 3 prompts go on with other tokens in slow than in ours"]


@pytest.mark.wide
def test_a_case_is_measured_in_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TURNS", 1)
    options: dict[str, Any] = {"data": EXAMPLES / "jargon.jsonl", "model": PRESET, "documents": 6}
    result = run_benchmark("prefill", cases=["mmlu-like"], **options)
    assert [note for note in result["notes"] if "could not be measured" in note] == []
    assert "6 prompts of" in result["notes"][-1]
    assert "threads 1; 1 turns" in result["notes"][-1]
    assert len({row["system"] for row in result["rows"]}) == 4
    assert result["rows"][0]["value"] > 100
    assert json.dumps(result)
