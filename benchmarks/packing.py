"""Packing beside its peers: lengths to rows, and rows to shards.

    plan    sequences per second from lengths to the assignment of every sequence to a row, on all cores and on one;
            rows above the lower bound; peak memory of the process
    order   the same of the packers that keep the order of documents
    write   MB of tokens per second from a tokens folder to packed rows, by one process

Lengths are of a lognormal distribution (a median of 400 tokens, a long tail), and those of --data in bytes, drawn with
replacement until there are enough. All packers get the same sequences, documents cut to rows beforehand, as peers
do not cut. Peers are not given more than a million: the slowest takes long for that. seqpacker is not among them: its
source package is built with crates that a machine without a registry of those cannot get.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seqmill.errors import UserError
from seqmill.packing import TokenStore, pack_settings, plan, write_rows
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.tokenizers_ext import save_byte

from .support import corpus
from .support.peers import PACKERS, PeerError, System, installed, ours
from .support.rows import Row, row

DOCUMENTS, MOST_FOR_PEERS = 1_000_000, 1_000_000
CAPACITIES = (2048, 8192, 32768)
WHOLE, IN_ORDER = ("best-fit-decreasing",), ("windowed", "concat", "first-fit")
REPEATS = 3
SEED = 1

Int64s = npt.NDArray[np.int64]


@dataclass
class Bench:
    """What the cases share; notes say what is missing and why."""

    scratch: Path
    documents: Path  # a documents folder
    count: int
    peers: list[tuple[System, str]]  # with version
    notes: list[str] = field(default_factory=list)
    runs: int = 0

    def folder(self) -> Path:
        """A new name in the scratch folder."""
        self.runs += 1
        return self.scratch / f"run-{self.runs}"

    def lengths(self) -> Iterator[tuple[str, Int64s]]:
        """Name and lengths of the corpora, in tokens."""
        rng = np.random.default_rng(SEED)
        yield "lognormal", rng.lognormal(6.0, 1.1, self.count).astype(np.int64) + 1
        texts = corpus.texts_of(self.documents)
        sizes = np.array([len(text.as_buffer()) for text in texts], np.int64)
        yield "real", rng.choice(sizes[sizes > 0], self.count)


def run(
    cases: Sequence[str] = (),
    data: Path | None = None,
    documents: int = DOCUMENTS,
    peers: Sequence[str] = PACKERS,
) -> dict[str, Any]:
    """Rows of the chosen cases, and notes on what could not be measured.

    Args:
        cases: of `CASES`; default: all.
        data: a file or folder that `seqmill ingest` reads; default: examples/corpus.
        documents: how many lengths are packed.
        peers: of `PACKERS`.

    Raises:
        UserError: a case or a peer that does not exist, or no documents.
    """
    for given, known, what in ((cases, tuple(CASES), "case"), (peers, PACKERS, "peer")):
        for name in given:
            if name not in known:
                raise UserError(f"there is no {what} {name!r}; choose from {', '.join(known)}")
    if documents < 1:
        raise UserError(f"--documents {documents}: there is nothing to pack; give 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        ingested = corpus.ingested(data or corpus.EXAMPLES, scratch / "documents")
        bench = Bench(scratch, ingested, documents, [])
        chosen = cases or tuple(CASES)
        if "plan" in chosen:
            _find_peers(bench, peers)
        return {"rows": [one for name in chosen for one in CASES[name](bench)], "notes": bench.notes}


def _find_peers(bench: Bench, names: Sequence[str]) -> None:
    if names and bench.count > MOST_FOR_PEERS:
        bench.notes.append(f"without peers, which are given {MOST_FOR_PEERS:,} documents at most")
        return
    for name in names:
        try:
            system = replace(installed(name), tasks="plan")
            bench.peers.append((system, system.ask(bench.folder(), "describe").result["version"]))
        except PeerError as error:
            bench.notes.append(str(error))


def _plan(bench: Bench) -> Iterator[Row]:
    """The packers of a whole corpus; all cores and one."""
    for name, lengths in bench.lengths():
        for capacity in CAPACITIES:
            yield from _compared(bench, name, lengths, capacity, WHOLE, bench.peers)


def _in_order(bench: Bench) -> Iterator[Row]:
    """The packers of this project that keep the order of documents."""
    for name, lengths in bench.lengths():
        for capacity in CAPACITIES:
            yield from _compared(bench, name, lengths, capacity, IN_ORDER, [])


def _compared(
    bench: Bench,
    name: str,
    lengths: Int64s,
    capacity: int,
    algorithms: Sequence[str],
    peers: Sequence[tuple[System, str]],
) -> Iterator[Row]:
    """Rows of each algorithm in a process of its own, and of each peer with all of its variants."""
    pieces = cut(lengths, capacity)
    lower_bound = -(-int(pieces.sum()) // capacity)
    path = bench.folder().with_suffix(".npy")
    np.save(path, pieces)
    mine = replace(ours(), tasks="plan")
    plans = [
        (f"seqmill {algorithm}, {cores}", replace(mine, one_core=cores == "one core"), (algorithm,))
        for algorithm in algorithms
        for cores in (("all cores", "one core") if algorithm in WHOLE else ("one core",))
    ]
    plans += [(f"{system.name} {version}", system, ()) for system, version in peers]
    case = f"{len(pieces):,} sequences, {name}, rows of {capacity}"
    for label, system, more in plans:
        try:
            answer = system.ask(bench.folder(), "plan", path, capacity, *more)
        except PeerError as error:
            bench.notes.append(f"{case}: {error}")
            continue
        for variant, found in answer.result["variants"].items():
            shown = label if more else f"{label} {variant}"
            yield row(case, shown, len(pieces) / found["seconds"] / 1e6, "million sequences/s", True)
            above = 100 * (found["rows"] / lower_bound - 1)
            yield row(f"{case}: above the lower bound", shown, above, "%", False)
        if answer.cost.peak_bytes:
            yield row(f"{case}: peak memory", label, answer.cost.peak_bytes / 1e6, "MB", False)


def cut(lengths: Int64s, capacity: int) -> Int64s:
    """The lengths of the pieces into which rows of `capacity` cut documents: full ones, and what is left."""
    full, tails = lengths // capacity, lengths % capacity
    pieces = np.repeat(np.full(len(lengths), capacity), full)
    return np.concatenate([tails[tails > 0], pieces])


def _write(bench: Bench) -> Iterator[Row]:
    """From bytes of the corpus as tokens, in the page cache, to shards; MB of the tokens as stored."""
    save_byte(bench.scratch / "bytes")
    tokens = bench.folder()
    tokenize(bench.documents, bench.scratch / "bytes", TokenizeConfig(), tokens, LocalExecutor(1), Silent())
    store = TokenStore.open(tokens)
    for algorithm in (*WHOLE, "concat"):
        packed = plan(store.lengths, CAPACITIES[0], algorithm=algorithm)
        settings = pack_settings(packed, store)
        times = []
        for _ in range(REPEATS + 1):  # the first one loads code
            began = time.perf_counter()
            write_rows(bench.folder().with_suffix(".arrow"), packed, 0, packed.rows, store, settings)
            times.append(time.perf_counter() - began)
        megabytes = packed.tokens * store.dtype.itemsize / 1e6
        yield row(f"rows of {CAPACITIES[0]} written, {algorithm}", "seqmill", megabytes / min(times[1:]), "MB/s", True)


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {"plan": _plan, "order": _in_order, "write": _write}
