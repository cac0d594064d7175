import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from seqmill.errors import UserError
from seqmill.pipeline.bench import benchmark_module, benchmark_names, run_benchmark

ROOT = Path(__file__).parents[1]
DRIVERS = ROOT / "benchmarks" / "peers"
injected = benchmark_module("support.injected")
mutated = benchmark_module("support.mutated")
peers = benchmark_module("support.peers")
processes = benchmark_module("support.processes")
quality = benchmark_module("support.quality")


def test_only_whole_benchmarks_are_listed() -> None:
    assert {"dedup", "stages", "tokenize"} <= set(benchmark_names())
    assert not {"support", "peers", "injected"} & set(benchmark_names())


@pytest.mark.parametrize("peer", peers.PEERS)
def test_every_peer_has_a_driver_that_parses_and_pinned_requirements(peer: str) -> None:
    assert ast.parse((DRIVERS / f"run_{peer.replace('-', '')}.py").read_text())
    wanted = [line.split("#")[0].strip() for line in (DRIVERS / f"{peer}.txt").read_text().splitlines()]
    assert re.match(rf"{peer}(\[\w+\])?==", wanted[0])
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\d.]+", requirement) for requirement in wanted)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("nothing", {}, "there is no benchmark 'nothing'"),
        ("stages", {"peers": ["rensa"]}, "takes no --peers"),
        ("dedup", {"cases": ["quality", "all"]}, "there is no case 'all'"),
        ("dedup", {"documents": 9_999}, "--documents 9999"),
        ("dedup", {"peers": ["minhash"]}, "there is no peer 'minhash'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run_benchmark(name, **options)


def test_a_peer_that_cannot_be_installed_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(peers.FOLDER, str(tmp_path))
    monkeypatch.setattr(peers.sys, "executable", "/bin/false")
    with pytest.raises(peers.PeerError, match="rensa cannot be installed"):
        peers.installed("rensa")
    assert not list(tmp_path.rglob(peers.INSTALLED))


def test_a_driver_answers_with_its_result_and_its_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver of the same protocol, without a peer: documents of equal length are its duplicates."""
    (tmp_path / "run_length.py").write_text(
        f"import sys; sys.path.insert(0, {str(DRIVERS)!r})\n"
        "from protocol import main, read_documents\n"
        "def dedup(documents, scratch):\n"
        "    found = [(id_, str(len(text))) for id_, text in read_documents(documents)]\n"
        "    return lambda: found\n"
        "main('pytest', {'all': len}, {'14x8': dedup})\n"
    )
    monkeypatch.setattr(peers, "DRIVERS", tmp_path)
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps({"id": str(k), "text": "é" * (k // 2)}) + "\n" for k in range(6)))
    length = peers.System("length", Path(sys.executable))
    assert length.ask(tmp_path / "a", "describe").result["recipes"] == ["14x8"]
    assert length.ask(tmp_path / "b", "signatures", lines).result["seconds"]["all"] >= 0
    answer = length.ask(tmp_path / "c", "dedup", lines, "14x8")
    assert answer.clusters() == {"0": "0", "1": "0", "2": "1", "3": "1", "4": "2", "5": "2"}
    assert answer.cost.cpu_seconds > 0
    with pytest.raises(peers.PeerError, match="length dedup: KeyError: 'usual'"):
        length.ask(tmp_path / "d", "dedup", lines, "usual")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory of a process tree is read from /proc")
def test_the_peak_memory_is_that_of_the_whole_process_tree() -> None:
    hold = "import time; held = bytearray(b'x' * 40_000_000); time.sleep(0.6)"
    both = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {hold!r}]); {hold}; child.wait()"
    peak = processes.run_on_one_core([sys.executable, "-c", both]).peak_bytes
    assert peak is not None
    assert peak > 80_000_000


def text_of(seed: int, words: int) -> str:
    """Words of letters, all different."""
    letters = [chr(97 + k) for k in range(26)]
    return " ".join(
        letters[seed % 26] + letters[k // 676 % 26] + letters[k // 26 % 26] + letters[k % 26] for k in range(words)
    )


@pytest.mark.parametrize("similarity", [0.7, 0.8, 0.9])
def test_injected_pairs_have_the_similarity_they_state(similarity: float) -> None:
    sources = injected.passages(text_of(seed, 650) for seed in range(5))
    assert len(sources) == 10
    made = list(injected.pairs(sources, similarity, 40, seed=7))
    assert len({other for _, other, _ in made}) == 40
    for text, other, stated in made:
        shingles = [set(zip(*(one.split()[k:] for k in range(5)), strict=False)) for one in (text, other)]
        exact = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
        assert exact == stated == pytest.approx(similarity, abs=0.005)
    assert made == list(injected.pairs(sources, similarity, 40, seed=7))


def test_passages_that_repeat_themselves_are_no_source_of_pairs() -> None:
    assert injected.passages(["to be or not to be " * 200]) == []


def test_pairs_that_cannot_be_made_are_an_error() -> None:
    with pytest.raises(ValueError, match="only 0 of 3 pairs"):
        list(injected.pairs([["same"] * 300], 0.8, 3, seed=1))


def test_mutated_documents_are_as_many_of_each_kind_as_stated(tmp_path: Path) -> None:
    texts = [text_of(seed, 1030) for seed in range(26)]
    made = mutated.write_mutations(texts, 2000, tmp_path / "a", seed=3)
    assert made["passages"] == 260
    lines = (tmp_path / "a" / "part-00000.jsonl").read_text().splitlines()
    documents = [json.loads(line)["text"].split() for line in lines]
    passages = [tuple(text.split()[k : k + 100]) for text in texts for k in range(0, 1000, 100)]
    at = {(k, word): passage for passage in passages for k, word in enumerate(passage)}

    def kind(document: list[str]) -> str:
        """By what is left of the passage that most of its words come from."""
        origin = Counter(at.get(place) for place in enumerate(document)).most_common(1)[0][0]
        if origin is None:
            return "far"
        changed = sum(a != b for a, b in zip(document, origin, strict=True))
        return "copy" if changed == 0 else "near" if changed <= 2 else "far"

    assert len(documents) == 2000
    assert Counter(map(kind, documents)) == {name: made[name] for name in mutated.KINDS}
    assert mutated.write_mutations(texts, 2000, tmp_path / "b", seed=3) == made
    assert (tmp_path / "b" / "part-00000.jsonl").read_text().splitlines() == lines


@pytest.fixture
def truth(tmp_path: Path) -> Any:
    labelled = [
        ("a", "b", "version", "near-dup"),
        ("a", "c", "version", "near-dup"),
        ("d", "e", "repackaged", "near-dup"),
        ("b", "f", "boilerplate", "not-dup"),
        ("f", "g", "boilerplate", "not-dup"),
        ("d", "g", "translation", "not-dup"),
        ("a", "f", "version", "similar"),
    ]
    records = [dict(zip(("a", "b", "relation", "label"), pair, strict=True)) for pair in labelled]
    (tmp_path / "labelled_pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    similar = 'id_a\tid_b\tjaccard_w5\na\tb\t0.95\na\t"x\t0.8\nd\te\t0.9\na\tf\t0.55\n'
    (tmp_path / "all_pairs_jaccard_ge_050.tsv").write_text(similar)
    return quality.read_truth(tmp_path)


CLUSTERS = {"a": "1", "b": "1", "f": "1", "c": "2", "d": "3", '"x': "4", "g": "4"}  # e is alone


def test_labels_are_scored_as_by_hand(truth: Any) -> None:
    # together: a-b (right), b-f (wrong), a-f (does not count); missed: a-c, d-e
    scores = quality.label_scores(CLUSTERS, truth.labelled)
    assert (scores.right, scores.found, scores.wanted) == (1, 2, 3)
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx((1 / 2, 1 / 3, 2 / 5))


def test_relations_are_counted_as_by_hand(truth: Any) -> None:
    assert quality.merged(CLUSTERS, truth.labelled) == {
        ("boilerplate", "not-dup"): (1, 2),
        ("repackaged", "near-dup"): (0, 1),
        ("translation", "not-dup"): (0, 1),
        ("version", "near-dup"): (1, 2),
        ("version", "similar"): (1, 1),
    }


def test_similar_pairs_are_scored_as_by_hand(truth: Any) -> None:
    # clusters of 3 and 2 state 3 + 1 pairs; of the three pairs of 0.8 or more only a-b is among them
    scores = quality.similarity_scores(CLUSTERS, truth.similar, 0.8)
    assert (scores.right, scores.found, scores.wanted) == (1, 4, 3)
    assert scores.f1 == pytest.approx(2 / 7)


def test_nothing_found_scores_nothing(truth: Any) -> None:
    scores = quality.label_scores({}, truth.labelled)
    assert (scores.precision, scores.recall, scores.f1) == (0, 0, 0)


def test_the_share_of_candidates_is_measured_beside_the_theory(monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark_module("dedup")
    monkeypatch.setattr(module, "PAIRS", 300)
    rows = run_benchmark("dedup", cases=["recall"], data=ROOT / "examples" / "corpus" / "jargon.jsonl")["rows"]
    shares = {(row["case"][-3:], row["system"]): row["value"] for row in rows}
    assert len(shares) == 6
    assert shares["0.8", "expected, 1-(1-s^8)^14"] == pytest.approx(0.924, abs=0.01)
    assert shares["0.7", "seqmill"] == pytest.approx(0.565, abs=0.12)  # four standard deviations of 300 draws
    assert shares["0.9", "seqmill"] > 0.98
