"""The benchmark of tokenizers: that it compares the same ids, and what it cuts its documents from."""

import ast
import importlib
import random
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from seqmill.errors import UserError
from seqmill.pipeline.bench import benchmark_module, run_benchmark
from seqmill.tokenizers_ext import KmerConfig, load, save_kmer, save_subword, train_bpe

ROOT = Path(__file__).parents[1]
DRIVERS = ROOT / "benchmarks" / "peers"
bench = benchmark_module("tokenize")
peers = benchmark_module("support.peers")

TEXTS = [
    "",
    "the cat  sat\n\n on the mat",
    "naïve 日本語 👩\u200d👧 <|endoftext|>",
    "def f(x):\n\treturn x ** 2" * 20,
    "\x00 it's",
]


@pytest.fixture(scope="session")
def driver() -> Any:
    """Import a module of benchmarks/peers as its own process would."""

    def load_driver(name: str) -> ModuleType:
        with pytest.MonkeyPatch.context() as patched:
            patched.syspath_prepend(str(DRIVERS))
            return importlib.import_module(name)

    load_driver("tokens").WARM_SECONDS = 0.0  # type: ignore[attr-defined]
    return load_driver


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    save_subword(folder, train_bpe([TEXTS * 5], 320), {})
    return folder


@pytest.mark.parametrize("peer", [*peers.TOKENIZERS, "python", "seqmill"])
def test_every_tokenizer_has_a_driver_and_if_it_is_foreign_pinned_requirements(peer: str) -> None:
    assert ast.parse((DRIVERS / f"encode_{peer}.py").read_text())
    if peer in (*peers.OUR_OWN, "seqmill"):
        return
    assert re.fullmatch(rf"{peer}==[\d.]+\n", (DRIVERS / f"{peer}.txt").read_text())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cases": ["encode", "all"]}, "there is no case 'all'; choose from encode, short, decode"),
        ({"peers": ["rensa"]}, "there is no peer 'rensa'; choose from gigatoken"),
        ({"ranks": Path("none.tiktoken")}, "--ranks none.tiktoken: there is no such file"),
        ({"dna": Path("none.fasta")}, "--dna none.fasta: there is no such file"),
        ({"truth": Path("x")}, "takes no --truth"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_benchmark("tokenize", **options)


def test_drivers_give_the_ids_of_seqmill_and_the_documents_back(driver: Any, vocabulary: Path) -> None:
    tokens = driver("tokens")
    ours = tokens.encoding(driver("encode_seqmill").arrow(vocabulary), TEXTS)
    gigatoken, tokenizers = driver("encode_gigatoken"), driver("encode_tokenizers")
    for make in (gigatoken.from_awkward, gigatoken.from_list, tokenizers.batch_fast):
        found = tokens.encoding(make(vocabulary), TEXTS)
        assert (found["hash"], found["tokens"]) == (ours["hash"], ours["tokens"]), make
        assert found["cold"] > 0
        assert found["warm"] > 0
    for make in (driver("encode_seqmill").arrow, tokenizers.batch_fast):
        assert tokens.decoding(make(vocabulary), TEXTS)["exact"]
    assert tokens.encoding(tokenizers.batch_fast(vocabulary), [*TEXTS[:-1], "its"])["hash"] != ours["hash"]


@pytest.mark.parametrize("k", [2, 6])
def test_drivers_of_kmers_give_the_ids_of_seqmill(driver: Any, tmp_path: Path, k: int) -> None:
    save_kmer(tmp_path, KmerConfig(k))
    letters = random.Random(1)
    texts = ["".join(letters.choices("ACGT", k=60)) for _ in range(20)]
    tokens = driver("tokens")
    codecs = [
        driver("encode_seqmill").arrow,
        driver("encode_tokenizers").batch_fast,
        driver("encode_python").dictionary,
    ]
    found = [tokens.encoding(make(tmp_path), texts) for make in codecs]
    assert len({each["hash"] for each in found}) == 1
    assert found[0]["tokens"] == 20 * 60 // k


def test_more_kmers_than_a_vocabulary_of_words_holds_are_refused_by_its_driver(driver: Any, tmp_path: Path) -> None:
    save_kmer(tmp_path, KmerConfig(12))
    with pytest.raises(ValueError, match="16,777,216 k-mers are too many"):
        driver("encode_tokenizers").batch_fast(tmp_path)


def test_the_ranks_given_to_tiktoken_are_the_bytes_of_every_id(driver: Any, vocabulary: Path) -> None:
    read = driver("vocabulary")
    encoder = load(vocabulary)
    ranks = read.ranks(read.read(vocabulary))
    assert sorted(ranks.values()) == list(range(1, encoder.vocab_size))  # id 0 ends a text
    pieces = encoder.decode(pa.array([[id_] for id_ in range(encoder.vocab_size)], pa.list_(pa.uint16())))
    assert {piece: id_ for id_, piece in enumerate(pieces.to_pylist()) if id_} == ranks
    assert read.pattern(read.read(vocabulary)) == read.GPT2
    split = {"pretokenizers": [{"type": "Split", "pattern": {"Regex": "x+"}}, {"type": "ByteLevel"}]}
    assert read.pattern({"pre_tokenizer": split}) == "x+"


class Told:
    """A system that tells what it is given to tell."""

    name = "told"

    def __init__(self, **result: Any) -> None:
        self.result = {"variants": {"": {"cold": 2.0, "warm": 1.0, **result}}}

    def ask(self, *_: Any) -> "Told":
        return self


@pytest.mark.parametrize("wrong", [{"hash": "b"}, {"tokens": 8}, {"exact": False}])
def test_other_results_fail_the_benchmark(
    wrong: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {"hash": "a", "tokens": 7, "exact": True}
    monkeypatch.setattr(bench, "replace", lambda system, **_: system)
    monkeypatch.setattr(bench, "seqmill", lambda _: Told(**right))
    work = bench.Bench(tmp_path, [], None, None, 0, [])

    def rows(result: dict[str, Any]) -> list[Any]:
        systems = [(Told(**result), "1.0")]
        return list(bench._compared(work, "encode", "case", tmp_path, tmp_path, True, 6.0, "MB/s", systems))

    shown = [(row["case"], row["system"], row["value"]) for row in rows(right)]
    assert shown == [
        ("case, cold", "seqmill", 3),
        ("case, warm", "seqmill", 6),
        ("case, cold", "told 1.0", 3),
        ("case, warm", "told 1.0", 6),
    ]
    with pytest.raises(AssertionError, match=r"case: told 1\.0 gives another result than seqmill"):
        rows({**right, **wrong})


def test_kmers_are_measured_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "KMERS", (3,))
    monkeypatch.setattr(bench, "DNA_BYTES", 120_000)
    result = run_benchmark(
        "tokenize", cases=["kmers"], peers=[], data=ROOT / "examples" / "corpus" / "udhr" / "glg.txt"
    )
    systems = [(row["case"], row["system"].split()[0]) for row in result["rows"]]
    cases = [f"encode DNA, k = 3, {state}" for state in ("cold", "warm")]
    assert systems == [(case, system) for system in ("seqmill", "python") for case in cases]
    assert all(row["value"] > 0 and row["unit"] == "MB/s" for row in result["rows"])
    assert result["notes"] == ["0.1 MB of DNA, random"]


@pytest.mark.parametrize("count", [0, 1, 30, 500])
def test_short_documents_are_cut_from_the_text(count: int) -> None:
    texts = ["".join(f"word{k} é日 " for k in range(200)), "".join(f"tail{k} " for k in range(40))]
    whole = "\n".join(texts)
    found = bench.short_documents(texts, count)
    assert len(found) == count
    assert all(piece in whole and 95 <= len(piece.encode()) <= 100 for piece in found)
    assert len(set(found[:60])) == len(found[:60])


def test_dna_is_read_from_fasta_without_other_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "DNA_LENGTH", 12)
    (tmp_path / "a.fasta").write_text(
        ">one\nACGTACGTACGTAC\nGTACGTACGTNACGT\n>two\nAAAACCCCGGGGTTTT\n>three\nacgtacgtacgtacgt\n"
    )
    assert bench.dna_documents(tmp_path / "a.fasta") == ["ACGTACGTACGT", "ACGTACGTACGT", "AAAACCCCGGGG"]
    (tmp_path / "b.fasta").write_text(">one\nACGTNACGT\n")
    with pytest.raises(UserError, match="no stretch of 12 bases"):
        bench.dna_documents(tmp_path / "b.fasta")


def test_random_dna_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "DNA_BYTES", 24_000)
    assert bench.dna_documents(None) == bench.dna_documents(None)
    assert [len(document) for document in bench.dna_documents(None)] == [12_000] * 2
