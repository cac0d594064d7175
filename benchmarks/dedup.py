"""Deduplication beside its peers: datatrove, text-dedup, datasketch and rensa, on the same documents, one core each.

    signatures  text to MinHash signatures of 112 permutations
    whole       from the same JSON lines to what is kept: speed, and memory of the process tree
    scaling     time and memory from 10,000 documents up, a corpus grown from real text by seeded edits
    quality     against pairs that are known to be duplicates or not; needs a folder of truth
    recall      pairs of exactly known similarity: the share that become candidates, beside the theory

All systems take word 5-grams. The recipe `14x8` has the same bands everywhere; `usual` is the peer's own, at a
threshold of 0.8. MB are 10^6 bytes of UTF-8 text. A second is wall time of one process with one worker; where the
machine is busy, read the rate per CPU second.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError

from .peers.protocol import BUDGETS, SAME_BANDS
from .support import corpus, injected, mutated
from .support.arguments import require_known
from .support.kernels import band_keys_of, candidate_probability
from .support.peers import PEERS, PeerError, System, described, ours
from .support.quality import Truth, label_scores, merged, read_truth, similarity_scores
from .support.rows import Row, row
from .support.scratch import Scratch
from .support.timing import best_seconds

SAMPLE_BYTES = 8_000_000  # of text for rates of signatures; the slowest peer takes ten seconds
SMALLEST, LARGEST = 10_000, 1_000_000  # documents of the scaling case, by factors of ten
SIMILARITIES, PAIRS = (0.7, 0.8, 0.9), 4_000
SIMILAR = 0.8
SEED = 1


@dataclass
class Bench(Scratch):
    """What the cases share: the documents, and the systems."""

    documents: Path  # a documents folder
    truth: Truth | None
    most: int  # documents of the scaling case
    peers: list[tuple[System, dict[str, Any]]]  # with version and recipes

    def json_lines(self) -> Path:
        """All documents as peers read them."""
        path = self.scratch / "documents.jsonl"
        return path if path.exists() else corpus.as_json_lines(self.documents, path)


def run(
    cases: Sequence[str] = (),
    data: Path | None = None,
    truth: Path | None = None,
    documents: int = LARGEST,
    peers: Sequence[str] = PEERS,
) -> dict[str, Any]:
    """Rows of the chosen cases, and notes on what could not be measured.

    Args:
        cases: of `CASES`; default: all.
        data: a file or folder that `seqmill ingest` reads; default: examples/corpus.
        truth: a folder as described in support/quality.py, about the documents of `data`.
        documents: the most that the scaling case goes to.
        peers: of `PEERS`.

    Raises:
        UserError: a case or a peer that does not exist, or too few documents.
    """
    require_known(cases, CASES, "case")
    require_known(peers, PEERS, "peer")
    if documents < SMALLEST:
        raise UserError(f"--documents {documents}: the scaling case starts at {SMALLEST:,}")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        ingested = corpus.ingested(data or corpus.EXAMPLES, scratch / "documents")
        bench = Bench(scratch, ingested, read_truth(truth) if truth else None, documents, [])
        chosen = cases or tuple(CASES)
        if {"signatures", "whole", "quality"} & set(chosen):
            bench.peers += described(peers, "run", scratch, bench.notes)
        return {"rows": [one for name in chosen for one in CASES[name](bench)], "notes": bench.notes}


def _signatures(bench: Bench) -> Iterator[Row]:
    """MB of text per second. Shingles included; ours reads an Arrow column, peers read Python strings."""
    texts = corpus.even_sample(corpus.texts_of(bench.documents), SAMPLE_BYTES)
    megabytes = corpus.num_bytes(texts) / 1e6

    def rate(system: str, seconds: float) -> Row:
        return row("signatures, 112 permutations", system, megabytes / seconds, "MB/s/core", True)

    yield rate("seqmill", best_seconds(lambda: band_keys_of(texts)))
    path = corpus.write_numbered(bench.folder().with_suffix(".jsonl"), texts.to_pylist())
    for system, told in bench.peers:
        try:
            answer = system.ask(bench.folder(), "signatures", path)
        except PeerError as error:
            bench.notes.append(str(error))
            continue
        for variant, seconds in answer.result["seconds"].items():
            yield rate(system.label(told["version"], variant), seconds)


def _whole(bench: Bench) -> Iterator[Row]:
    """Everything from reading to what is kept, and the memory it takes."""
    megabytes = corpus.num_bytes(corpus.texts_of(bench.documents)) / 1e6
    path = bench.json_lines()
    _compile(bench)
    for name, warm in (("in a fresh process", ()), ("in a process that has done it before", ("warm",))):
        alone = ours().ask(bench.folder(), "dedup", bench.documents, "documents", *warm)
        rate = megabytes / alone.result["seconds"]
        yield row(f"dedup of an Arrow folder, {name}", "seqmill", rate, "MB/s/core", True)
    for system, told in ((ours(), None), *bench.peers):
        try:
            answer = system.ask(bench.folder(), "dedup", path, SAME_BANDS)
        except PeerError as error:
            bench.notes.append(str(error))
            continue
        name = f"{system.name} {told['version']}" if told else system.name
        yield row("dedup of JSON lines", name, megabytes / answer.result["seconds"], "MB/s/core", True)
        yield row("dedup of JSON lines, per CPU second", name, megabytes / answer.cost.cpu_seconds, "MB/s", True)
        if answer.cost.peak_bytes:
            yield row("dedup of JSON lines, peak memory", name, answer.cost.peak_bytes / 1e6, "MB", False)


def _compile(bench: Bench) -> None:
    """Let numba compile what dedup needs, once, as an installation has done after its first run."""
    texts = corpus.texts_of(bench.documents).slice(0, 100).to_pylist()
    path = corpus.write_numbered(bench.folder().with_suffix(".jsonl"), texts)
    ours().ask(bench.folder(), "dedup", path, SAME_BANDS)


def _scaling(bench: Bench) -> Iterator[Row]:
    """Ours alone: time and memory of `dedup` on documents in Arrow, under two budgets of memory."""
    _compile(bench)
    texts = corpus.texts_of(bench.documents).to_pylist()
    size = SMALLEST
    while size <= bench.most:
        raw = bench.folder()
        made = mutated.write_mutations(texts, size, raw, SEED)
        bench.notes.append(f"{size:,} documents: " + ", ".join(f"{count:,} {kind}" for kind, count in made.items()))
        documents = corpus.ingested(raw, bench.folder())
        for budget in BUDGETS:
            answer = ours().ask(bench.folder(), "dedup", documents, f"budget {budget}")
            case = f"dedup of {size:,} documents, budget {budget} MiB"
            yield row(case, "seqmill", answer.result["seconds"] / size * 1e6, "us/document", False)
            if answer.cost.peak_bytes:
                yield row(f"{case}, peak memory", "seqmill", answer.cost.peak_bytes / 1e6, "MB", False)
        size *= 10


def _quality(bench: Bench) -> Iterator[Row]:
    """Precision and recall on known pairs; the same documents for all, every recipe of every peer."""
    if bench.truth is None:
        bench.notes.append("quality needs --truth FOLDER (and the documents it speaks of by --data)")
        return
    path = bench.json_lines()
    plans = [(ours(), "", SAME_BANDS)]
    plans += [(system, told["version"], recipe) for system, told in bench.peers for recipe in told["recipes"]]
    for system, version, recipe in plans:
        try:
            clusters = system.ask(bench.folder(), "dedup", path, recipe).clusters()
        except PeerError as error:
            bench.notes.append(str(error))
            continue
        yield from _quality_rows(f"{system.name} {version} {recipe}".replace("  ", " "), clusters, bench.truth)


def _quality_rows(system: str, clusters: dict[str, str], truth: Truth) -> Iterator[Row]:
    labels = label_scores(clusters, truth.labelled)
    lexical = similarity_scores(clusters, truth.similar, SIMILAR)
    for case, scores in (("labelled pairs", labels), (f"pairs of similarity {SIMILAR}", lexical)):
        for name in ("precision", "recall", "f1"):
            yield row(f"{case}: {name}", system, getattr(scores, name), "", True)
    for (relation, label), (together, pairs) in merged(clusters, truth.labelled).items():
        wanted = label == "near-dup"
        if wanted:
            yield row(f"{relation}: recall", system, together / pairs, "", True)
        else:
            yield row(f"{relation}, {label}: merged", system, together, f"of {pairs:,} pairs", False)


def _recall(bench: Bench) -> Iterator[Row]:
    """Pairs of exact similarity 0.7, 0.8 and 0.9 that share a band, beside the expected share."""
    sources = injected.passages(corpus.texts_of(bench.documents).to_pylist())
    for similarity in SIMILARITIES:
        made = list(injected.pairs(sources, similarity, PAIRS, SEED))
        first, second = (band_keys_of(pa.array([pair[k] for pair in made], pa.large_string())) for k in (0, 1))
        expected = candidate_probability(np.array([pair[2] for pair in made])).mean()
        case = f"candidates among {PAIRS:,} pairs of similarity {similarity}"
        yield row(case, "seqmill", (first == second).any(axis=1).mean(), "", True)
        yield row(case, "expected, 1-(1-s^8)^14", expected, "", True)


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "signatures": _signatures,
    "whole": _whole,
    "scaling": _scaling,
    "quality": _quality,
    "recall": _recall,
}
