"""Reading packed rows as torch batches beside other loaders: the same tokens, 8 rows of 2048 a batch, int64 tensors.

    one-process   M tokens per second of whole passes over the shuffled rows, without worker processes
    one-worker    the same with one worker process, of torch's DataLoader or of the system's own loader
    resume        seconds from opening the data in a new process to the first batch at global step 1,000,000

Tokens are random, in documents of lognormal lengths. Ours are packed as always; peers get them one after the other in
full rows, without targets, positions or segment bounds, which our batches have besides. The files are in the page
cache. All systems shuffle, each in its own way: over everything (ours, random access), or within a buffer or chunks.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seqmill.errors import UserError

from .support.arguments import require_documents, require_known
from .support.peers import LOADERS, OURS, PeerError, System, system_of
from .support.rows import Row, row
from .support.scratch import Scratch

DOCUMENTS = 44_400  # of 739 tokens on average: about 2,000 batches
ROW, BATCH = 2048, 8
VOCABULARY = 50_000
STEP = 1_000_000
SEED = 1


@dataclass
class Bench(Scratch):
    """What the cases share: the systems that have the corpus in their formats."""

    systems: list[tuple[System, str, Path]] = field(default_factory=list)  # with version, and its data


def run(
    cases: Sequence[str] = (),
    documents: int = DOCUMENTS,
    peers: Sequence[str] = LOADERS,
) -> dict[str, Any]:
    """Rows of the chosen cases, and notes on what could not be measured.

    Args:
        cases: of `CASES`; default: all.
        documents: how many are packed.
        peers: of `LOADERS`.

    Raises:
        UserError: a case or a peer that does not exist, or documents that do not fill a batch.
    """
    require_known(cases, CASES, "case")
    require_known(peers, LOADERS, "peer")
    require_documents(documents)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        corpus = write_corpus(bench.folder(), documents)
        for name in (OURS, *peers):
            _prepare(bench, name, corpus)
        return {"rows": [one for name in cases or CASES for one in CASES[name](bench)], "notes": bench.notes}


def write_corpus(folder: Path, documents: int) -> Path:
    """tokens.npy and lengths.npy of random documents, cut where whole batches end.

    Raises:
        UserError: there is no whole batch.
    """
    rng = np.random.default_rng(SEED)
    lengths = rng.lognormal(6.0, 1.1, documents).astype(np.int64) + 1
    total = int(lengths.sum()) // (ROW * BATCH) * ROW * BATCH
    if not total:
        raise UserError(
            f"--documents {documents}: their {lengths.sum()} tokens fill no batch of {ROW * BATCH}; give more"
        )
    ends = np.minimum(np.cumsum(lengths), total)
    lengths = np.diff(ends, prepend=0)
    folder.mkdir()
    np.save(folder / "lengths.npy", lengths[lengths > 0])
    np.save(folder / "tokens.npy", rng.integers(0, VOCABULARY, total, np.uint16))
    return folder


def _prepare(bench: Bench, name: str, corpus: Path) -> None:
    """Write the corpus in the format of a system; a peer that cannot becomes a note."""
    data = bench.folder()
    try:
        system = system_of(name, "read")
        answer = system.ask(bench.folder(), "prepare", corpus, data)
    except PeerError as error:
        bench.notes.append(str(error))
        return
    bench.systems.append((system, answer.result["version"], data))


def _reading(case: str, workers: int) -> Callable[[Bench], Iterator[Row]]:
    """Tokens per second of every system and variant."""

    def measure(bench: Bench) -> Iterator[Row]:
        for system, version, data in bench.systems:
            try:
                answer = system.ask(bench.folder(), "read", data, workers)
            except PeerError as error:
                bench.notes.append(f"{case}: {error}")
                continue
            for variant, found in answer.result["variants"].items():
                speed = found["tokens"] / found["seconds"] / 1e6
                yield row(case, system.label(version, variant), speed, "M tokens/s", True)

    return measure


def _resume(bench: Bench) -> Iterator[Row]:
    """Seconds of every system and variant; the state is written by a process before."""
    for system, version, data in bench.systems:
        try:
            for variant in system.ask(bench.folder(), "describe").result["variants"]:
                state = system.ask(bench.folder(), "save", data, STEP, variant).folder / "state.json"
                answer = system.ask(bench.folder(), "resume", data, state, variant)
                case, label = f"first batch at step {STEP:,}", system.label(version, variant)
                yield row(case, label, answer.result["seconds"], "s", False)
        except PeerError as error:
            bench.notes.append(f"resume: {error}")


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "one-process": _reading("one process", 0),
    "one-worker": _reading("one worker", 1),
    "resume": _resume,
}
