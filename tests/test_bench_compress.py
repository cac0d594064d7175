"""The benchmark of dictionaries: what is held out, what is counted, and that wrong results show no rate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.pipeline.bench import benchmark_module, benchmark_names, run_benchmark
from seqmill.tokenizers_ext import load

bench = benchmark_module("compress")
vocabularies = benchmark_module("support.vocabularies")
processes = benchmark_module("support.processes")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "日本語", "кошка", "were", "told", "that", "x", "=", "f(y)"]


def documents(count: int) -> list[dict[str, str]]:
    """Records of two languages, each of its own half of the words."""
    rng = np.random.default_rng(3)
    found = []
    for k in range(count):
        half = WORDS[: len(WORDS) // 2] if k % 2 else WORDS[len(WORDS) // 2 :]
        text = " ".join(rng.choice(half, 60))
        found.append({"id": str(k), "text": text, "source": f"code/s{k % 3}", "lang": ("en", "xx")[k % 2]})
    return found


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lines") / "documents.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in documents(200)))
    return path


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run here: a process each takes seconds to start."""
    monkeypatch.setattr(vocabularies, "WARM_SECONDS", 0.0)

    def ask(task: str, name: str, texts: Path, artifact: Path, window: int) -> Any:
        column = vocabularies.read_arrow(texts).column(0).combine_chunks()
        found = vocabularies.TASKS[task](name, column, artifact, window)
        return vocabularies.Answer(found, processes.Cost(1.0, 5_000_000))

    monkeypatch.setattr(vocabularies, "ask", ask)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cases": ["length", "all"]}, "there is no case 'all'; choose from build, length, rates, ratio"),
        ({"peers": ["BPE"]}, "there is no system 'BPE'; choose from counts-no-rounds"),
        ({"window": 24}, "--window 24: dictionaries have windows of 9 to 20 bits"),
        ({"dna": Path("x")}, "takes no --dna"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    assert "compress" in benchmark_names()
    with pytest.raises(UserError, match=told):
        run_benchmark("compress", **options)


def test_one_document_cannot_be_divided(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "alone"}\n')
    with pytest.raises(UserError, match="1 documents are too few to hold one in 8 out"):
        run_benchmark("compress", data=tmp_path / "one.jsonl")


def test_one_document_in_eight_is_held_out_by_its_text_alone() -> None:
    texts = [f"text {k}".encode() for k in range(4000)]
    out = [bench.is_held_out(text) for text in texts]
    assert 400 < sum(out) < 600
    assert out == [bench.is_held_out(bytes(text)) for text in texts]


def test_groups_are_ordered_by_their_bytes_and_leave_out_what_has_no_label() -> None:
    groups = bench.groups_of(["b", None, "a", "b", "a"], np.array([1, 100, 2, 3, 4]))
    assert [(group.name, group.bytes) for group in groups] == [("a", 6), ("b", 4)]
    assert groups[0].members.tolist() == [False, False, True, False, True]
    assert bench.groups_of([None, None], np.array([1, 2])) == []


def test_bytes_a_token_are_counted_as_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "LEAST_OF_MEAN", 1)
    texts = pa.array(["aaaa", "bb", "cccccc"], pa.large_string())
    lengths = bench.lengths_of(texts)
    groups = {
        "all": [bench.Group("all", np.ones(3, bool), 12)],
        "family": [],
        "source": bench.groups_of(["s", "s", "s"], lengths),
        "lang": bench.groups_of(["en", "de", "en"], lengths),
    }
    work = bench.Bench(tmp_path, 9, ["pairs", "BPE-gpt2"], texts, texts, groups)
    work.rated = {("pairs", "all"): {"ids": [2, 2, 3]}, ("BPE-gpt2", "all"): {"ids": [4, 1, 3]}}
    rows = {(row["case"], row["system"]): row["value"] for row in bench._length(work)}
    assert rows == {
        ("bytes a token", "pairs"): 1.714,
        ("bytes a token", "BPE-gpt2"): 1.5,
        ("bytes a token, source s", "pairs"): 1.714,
        ("bytes a token, source s", "BPE-gpt2"): 1.5,
        ("bytes a token, language en", "pairs"): 2,
        ("bytes a token, language en", "BPE-gpt2"): 1.429,
        ("bytes a token, language de", "pairs"): 1,
        ("bytes a token, language de", "BPE-gpt2"): 2,
        ("bytes a token, mean of 2 languages", "pairs"): 1.5,
        ("bytes a token, mean of 2 languages", "BPE-gpt2"): 1.714,
    }
    assert work.notes == [
        "pairs has fewer bytes a token than BPE-gpt2 in 0 of 1 sources",
        "pairs has fewer bytes a token than BPE-gpt2 in 1 of 2 languages: de",
    ]


@pytest.mark.usefixtures("in_this_process")
def test_every_system_has_its_rows(lines: Path) -> None:
    systems = ["counts-no-rounds", "pairs-fewest", "BPE-unsplit", "BPE-gpt2"]
    result = run_benchmark("compress", data=lines, peers=systems, window=9, tables=2)
    systems.append("pairs-2-tables")
    values = {(row["case"], row["system"]): row["value"] for row in result["rows"]}
    for name in systems:
        assert values["build", name] > 0
        assert values["build, peak memory", name] == 5
        assert values["bytes a token", name] > 1
        assert values["bytes a token, language en", name] > 1
        assert values["bytes a token, sources code", name] == values["bytes a token", name]
        assert values["encode, all, warm", name] > 0
        assert values["decode, code, warm, CPU time", name] > 0
        assert values["ratio, ids of 9 bits", name] > values["ratio, ids of 9 bits and the vocabulary", name]
    assert values["bytes a token", "pairs-fewest"] >= values["bytes a token", "counts-no-rounds"]
    assert values["encode, all, warm", "zstd:3, documents"] > 0
    assert values["ratio, stream", "zstd:3"] > values["ratio, documents", "zstd:3"] > 1
    assert values["encode, other text", "FSST, published"] == 977


def test_a_process_of_its_own_builds_and_rates(tmp_path: Path) -> None:
    texts = pa.array([record["text"] for record in documents(30)], pa.large_string())
    file = vocabularies.write_texts(tmp_path / "texts.arrow", texts)
    answer = vocabularies.ask("build", "counts-no-rounds", file, tmp_path / "artifact", 10)
    assert answer.result["seconds"] > 0
    assert answer.cost.peak_bytes is None or answer.cost.peak_bytes > 10_000_000
    encoder = load(tmp_path / "artifact")
    assert encoder.vocab_size - len(encoder.special_ids) == 1024
    found = vocabularies.rates("counts-no-rounds", texts, tmp_path / "artifact", 10)
    assert found["ids"] == [len(one) for one in encoder.encode(texts).to_pylist()]


@pytest.mark.parametrize("name", list(vocabularies.SYSTEMS))
def test_all_systems_have_as_many_strings(name: str, tmp_path: Path) -> None:
    letters = np.random.default_rng(1).integers(97, 123, (60, 100), np.uint8)
    texts = pa.array([row.tobytes().decode() for row in letters], pa.large_string())
    vocabularies.system(name)(texts, 9, tmp_path / "artifact")
    encoder = load(tmp_path / "artifact")
    assert encoder.vocab_size - len(encoder.special_ids) == 512
    assert 512 * 2 <= vocabularies.bytes_of_strings(encoder) < 512 * 12
    assert encoder.decode(encoder.encode(texts)).to_pylist() == [text.encode() for text in texts.to_pylist()]


def test_no_rate_is_shown_where_documents_do_not_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Wrong:
        vocab_size = 4

        def encode(self, texts: pa.Array) -> pa.ListArray:
            return pa.array([[1]] * len(texts), pa.list_(pa.uint16()))

        def decode(self, ids: pa.ListArray) -> pa.LargeBinaryArray:
            return pa.array([b"x"] * len(ids), pa.large_binary())

    monkeypatch.setattr(vocabularies, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(vocabularies, "load", lambda _: Wrong())
    with pytest.raises(AssertionError, match="wrong: decoded documents are not the encoded ones"):
        vocabularies.rates("wrong", pa.array(["y"], pa.large_string()), tmp_path, 9)
