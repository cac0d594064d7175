"""Dictionaries of windows beside BPE with as many strings, and beside general-purpose compressors, on the same text.

    build      seconds and memory, every vocabulary in a process of its own that has one core
    length     bytes a token of documents kept out of training: of all, of each source and of each language
    rates      MB/s of encoding and decoding on one core, MB being 10^6 bytes of UTF-8 text
    ratio      what documents become: ids of a whole number of bits, zstd, xz and brotli; what a reader needs besides,
               zstd's dictionary or the strings of a vocabulary with a byte for the length of each, counts once

One in eight documents is held out, by a hash of its text: copies of a document are on one side, near copies may not be.
Cold is the first call after the code was loaded, warm the best of later ones; CPU time is the process's own, which does
not count who else uses the machine. No rate is shown of a system whose documents do not come back to the byte. Ends of
documents are not counted as tokens.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.compress.byte_compressors import byte_compressor, zstd_with_dictionary
from seqmill.compress.code_range import code_range
from seqmill.compress.ratios import compressed_sizes
from seqmill.errors import UserError

from .support import corpus, vocabularies
from .support.arguments import require_known
from .support.rows import Row, row

HELD_OUT = 8  # one document in so many
FIELDS = ("source", "lang")
NAMES = {"family": "sources", "source": "source", "lang": "language"}  # a family is what stands before a source's "/"
LEAST_SHARE = 1 / 250  # of the held-out bytes: smaller groups have no row of their own
LEAST_OF_MEAN = 10_000  # held-out bytes of a language that counts in the mean
RATED = {"lang": "en", "family": "code"}  # groups whose rates are shown besides those of all text
DICTIONARY_BYTES = 112_640  # of zstd, its tool's default; it is trained on about a hundred times as much
COMPRESSORS = ("zstd:3", "xz:6", "brotli:11")
ZSTD = "zstd:3"
# FSST's own figures, means over 23 columns of short texts on another machine (Boncz, Neumann and Leis 2020)
FSST = {"encode": (977, "MB/s"), "decode": (1942, "MB/s"), "ratio": (2.28, "x")}


@dataclass(frozen=True)
class Group:
    """Held-out documents that have something in common."""

    name: str
    members: np.ndarray  # bool[held-out documents]
    bytes: int


@dataclass
class Bench:
    """What the cases share: texts, a scratch folder, vocabularies that have been built."""

    scratch: Path
    window: int
    systems: list[str]
    training: pa.LargeStringArray
    held_out: pa.LargeStringArray
    groups: dict[str, list[Group]]  # by field; "all": one group of everything
    notes: list[str] = field(default_factory=list)
    built: dict[str, dict[str, Any]] = field(default_factory=dict)
    rated: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def artifact(self, name: str) -> Path:
        """Where the vocabulary of a system is, or will be."""
        return self.scratch / name

    def build(self, name: str) -> dict[str, Any]:
        """Seconds and memory of building a vocabulary, once."""
        if name not in self.built:
            texts = self.scratch / "training.arrow"
            if not texts.exists():
                vocabularies.write_texts(texts, self.training)
            answer = vocabularies.ask("build", name, texts, self.artifact(name), self.window)
            self.built[name] = {**answer.result, "peak_bytes": answer.cost.peak_bytes}
        return self.built[name]

    def rates(self, name: str, group: Group) -> dict[str, Any]:
        """What `vocabularies.rates` says of a system and a group of documents, once."""
        if (name, group.name) not in self.rated:
            texts = self.scratch / f"held-out-{group.name}.arrow"
            if not texts.exists():
                vocabularies.write_texts(texts, self.held_out.filter(pa.array(group.members)))
            if name != ZSTD:
                self.build(name)
            answer = vocabularies.ask("rates", name, texts, self.artifact(name), self.window)
            self.rated[name, group.name] = answer.result
        return self.rated[name, group.name]

    @property
    def everything(self) -> Group:
        """All held-out documents."""
        return self.groups["all"][0]


def run(
    cases: Sequence[str] = (),
    data: Path | None = None,
    peers: Sequence[str] = (),
    window: int = 16,
    tables: int = 0,
) -> dict[str, Any]:
    """Rows of the chosen cases, and notes.

    Args:
        cases: of `CASES`; default: all.
        data: a file or folder that `seqmill ingest` reads, best with fields source and lang; default: examples/corpus.
        peers: systems, of `vocabularies.SYSTEMS`; default: all.
        window: bits of a window, 9 to 20.
        tables: of a further dictionary with so many tables, one a group of documents; 0: none.

    Raises:
        UserError: a case or a system that does not exist, an impossible window, or too few documents.
        AssertionError: documents of a system do not come back.
    """
    require_known(cases, CASES, "case")
    require_known(peers, vocabularies.SYSTEMS, "system")
    if not 9 <= window <= 20:
        raise UserError(f"--window {window}: dictionaries have windows of 9 to 20 bits here")
    systems = list(peers or vocabularies.SYSTEMS)
    systems += [vocabularies.by_group(tables)] if tables > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        documents = corpus.ingested(data or corpus.EXAMPLES, scratch / "documents", ("lang",))
        bench = _bench(scratch, documents, window, systems)
        rows = [one for name in cases or CASES for one in CASES[name](bench)]
        return {"rows": rows, "notes": bench.notes}


def _bench(scratch: Path, documents: Path, window: int, systems: list[str]) -> Bench:
    texts, labels = corpus.texts_of(documents), corpus.columns(documents, FIELDS)
    out = np.array([is_held_out(text.as_buffer().to_pybytes()) for text in texts], bool)
    if out.all() or not out.any():
        raise UserError(f"{len(texts)} documents are too few to hold one in {HELD_OUT} out; give more with --data")
    held_out, training = texts.filter(pa.array(out)), texts.filter(pa.array(~out))
    lengths = lengths_of(held_out)
    whole = Group("all", np.ones(len(held_out), bool), int(lengths.sum()))
    labels["family"] = [label and label.partition("/")[0] for label in labels["source"]]
    groups = {"all": [whole]} | {
        name: groups_of([label for label, kept in zip(labels[name], out.tolist(), strict=True) if kept], lengths)
        for name in NAMES
    }
    bench = Bench(scratch, window, systems, training, held_out, groups)
    bench.notes.append(
        f"trained on {len(training):,} documents, {corpus.num_bytes(training) / 1e6:.2f} MB; {len(held_out):,} held "
        f"out, {whole.bytes / 1e6:.2f} MB; {code_range(window):,} strings each"
    )
    return bench


def is_held_out(text: bytes) -> bool:
    """Whether a document is kept out of training: by its text alone."""
    return hashlib.blake2b(text, digest_size=1).digest()[0] % HELD_OUT == 0


def lengths_of(texts: pa.LargeStringArray) -> np.ndarray:
    """int64[documents]: UTF-8 bytes of each."""
    return np.array([len(text.as_buffer()) for text in texts], np.int64)


def groups_of(labels: Sequence[str | None], lengths: np.ndarray) -> list[Group]:
    """Documents by label, most bytes first; of those without a label there is no group."""
    known = np.array([label or "" for label in labels])
    found = [Group(str(name), known == name, int(lengths[known == name].sum())) for name in np.unique(known) if name]
    return sorted(found, key=lambda group: (-group.bytes, group.name))


def _build(bench: Bench) -> Iterator[Row]:
    """Seconds and megabytes of a process with one core."""
    for name in bench.systems:
        cost = bench.build(name)
        yield row("build", name, cost["seconds"], "s", False)
        yield row("build, CPU time", name, cost["cpu_seconds"], "s", False)
        if cost["peak_bytes"]:
            yield row("build, peak memory", name, cost["peak_bytes"] / 1e6, "MB", False)


def _length(bench: Bench) -> Iterator[Row]:
    """Bytes a token."""
    lengths = lengths_of(bench.held_out)
    ids = {name: np.array(bench.rates(name, bench.everything)["ids"]) for name in bench.systems}

    def per_token(name: str, group: Group) -> float:
        return group.bytes / max(1, ids[name][group.members].sum())

    case = "bytes a token"
    for name in bench.systems:
        yield row(case, name, per_token(name, bench.everything), "B", True)
    for what in NAMES:
        shown = [group for group in bench.groups[what] if group.bytes >= LEAST_SHARE * lengths.sum()]
        for group in shown:
            for name in bench.systems:
                yield row(f"{case}, {NAMES[what]} {group.name}", name, per_token(name, group), "B", True)
    languages = [group for group in bench.groups["lang"] if group.bytes >= LEAST_OF_MEAN]
    if languages:
        for name in bench.systems:
            mean = math.fsum(per_token(name, group) for group in languages) / len(languages)
            yield row(f"{case}, mean of {len(languages)} languages", name, mean, "B", True)
    bench.notes += _losses(bench, per_token)


def _losses(bench: Bench, per_token: Callable[[str, Group], float]) -> Iterator[str]:
    """Where the best dictionary makes more tokens than each BPE does."""
    ours = [name for name in bench.systems if name not in vocabularies.BPES]
    if not ours:
        return
    best = max(ours, key=lambda name: per_token(name, bench.everything))
    for name in (name for name in bench.systems if name in vocabularies.BPES):
        for what in FIELDS:
            groups = [group for group in bench.groups[what] if group.bytes >= LEAST_OF_MEAN]
            lost = [group.name for group in groups if per_token(best, group) < per_token(name, group)]
            told = ": " + ", ".join(lost) if lost else ""
            yield f"{best} has fewer bytes a token than {name} in {len(lost)} of {len(groups)} {NAMES[what]}s{told}"


def _rates(bench: Bench) -> Iterator[Row]:
    """MB/s on one core; of zstd with every document by itself, and with all as one stream."""
    rated = [group for what, name in RATED.items() for group in bench.groups[what] if group.name == name]
    for group in [bench.everything, *rated]:
        for name in bench.systems:
            yield from _rate_rows(name, group, bench.rates(name, group))
        for scope, found in bench.rates(ZSTD, group).items():
            yield from _rate_rows(f"{ZSTD}, {scope}", group, found)
    for task in ("encode", "decode"):
        yield row(f"{task}, other text", "FSST, published", *FSST[task], True)


def _rate_rows(name: str, group: Group, found: dict[str, Any]) -> Iterator[Row]:
    for task in ("encode", "decode"):
        for state, told in (("cold", "cold"), ("warm", "warm"), ("cpu", "warm, CPU time")):
            seconds = max(found[task][state], 1e-9)
            yield row(f"{task}, {group.name}, {told}", name, group.bytes / 1e6 / seconds, "MB/s", True)


def _ratio(bench: Bench) -> Iterator[Row]:
    """Bytes of text a byte stored, each document by itself, and all as one stream."""
    for name in bench.systems:
        found, whole = bench.rates(name, bench.everything), bench.everything
        vocab_bits = max(1, (code_range(bench.window) - 1).bit_length())
        ids = sum(found["ids"])
        stored = ids * vocab_bits / 8
        yield row(f"ratio, ids of {vocab_bits} bits", name, whole.bytes / stored, "x", True)
        yield row(
            f"ratio, ids of {vocab_bits} bits and the vocabulary", name,
            whole.bytes / (stored + found["vocabulary_bytes"]), "x", True,
        )  # fmt: skip
        yield row("ids that occur", name, 100 * found["ids_used"] / code_range(bench.window), "%", True)
    documents = [text.as_buffer().to_pybytes() for text in bench.held_out]
    compressors = [byte_compressor(name) for name in COMPRESSORS]
    samples = corpus.even_sample(bench.training, 100 * DICTIONARY_BYTES)
    try:
        compressors.append(zstd_with_dictionary([text.as_buffer().to_pybytes() for text in samples], DICTIONARY_BYTES))
    except UserError as error:
        bench.notes.append(str(error))
    for size in compressed_sizes(documents, compressors):
        yield row(f"ratio, {size.scope}", size.system, size.ratio, "x", True)
    yield row("ratio, other text", "FSST, published", *FSST["ratio"], True)


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "build": _build,
    "length": _length,
    "rates": _rates,
    "ratio": _ratio,
}
