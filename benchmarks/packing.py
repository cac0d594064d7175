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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seqmill.packing import TokenStore, pack_settings, plan, write_rows
from seqmill.pipeline.executors import LocalExecutor
from seqmill.pipeline.progress import Silent
from seqmill.pipeline.tokenize import TokenizeConfig, tokenize
from seqmill.tokenizers_ext import save_byte

from .support import corpus
from .support.arguments import require_documents, require_known
from .support.peers import OURS, PACKERS, PeerError, System, described, system_of
from .support.rows import Row, row
from .support.scratch import Scratch
from .support.timing import best_seconds

DOCUMENTS, MOST_FOR_PEERS = 1_000_000, 1_000_000
CAPACITIES = (2048, 8192, 32768)
WHOLE, IN_ORDER = ("best-fit-decreasing",), ("windowed", "concat", "first-fit")
SEED = 1

Int64s = npt.NDArray[np.int64]


@dataclass
class Bench(Scratch):
    """What the cases share: the documents, how many are packed, and the peers."""

    documents: Path  # a documents folder
    count: int
    peers: list[tuple[System, str]]  # with version

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
    require_known(cases, CASES, "case")
    require_known(peers, PACKERS, "peer")
    require_documents(documents, "pack")
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
    found = described(names, "plan", bench.scratch, bench.notes)
    bench.peers += [(system, told["version"]) for system, told in found]


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
    mine = system_of(OURS, "plan")
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
        yield _written(bench, store, algorithm)


def _written(bench: Bench, store: TokenStore, algorithm: str) -> Row:
    packed = plan(store.lengths, CAPACITIES[0], algorithm=algorithm)
    settings = pack_settings(packed, store)
    seconds = best_seconds(
        lambda: write_rows(bench.folder().with_suffix(".arrow"), packed, 0, packed.rows, store, settings)
    )
    megabytes = packed.tokens * store.dtype.itemsize / 1e6
    return row(f"rows of {CAPACITIES[0]} written, {algorithm}", "seqmill", megabytes / seconds, "MB/s", True)


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {"plan": _plan, "order": _in_order, "write": _write}
