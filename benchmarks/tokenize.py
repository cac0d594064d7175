"""Tokenizers beside their peers, on the same text, each system in processes of its own.

    encode   a corpus, in one call: with a BPE of 32,000 ids trained on it, and with the tokenizer of --ranks
    short    documents of 100 bytes
    decode   what `encode` made
    foreign  the model that sentencepiece trains on the corpus
    kmers    DNA in k-mers of 6 and 12 bases, one core
    train    a byte-level BPE of 32,000 ids: seconds, and memory of the process
    merging  what merging a batch of 32 x 512 ids costs beside encoding it

Cold is the first call after loading, warm the best of later ones; MB are 10^6 bytes of UTF-8 text. seqmill reads
an Arrow column and returns one, gigatoken does so with awkward arrays, all others read and return Python lists. No rate
is shown of a system whose ids, or decoded bytes, are not those of seqmill: the benchmark fails.
"""

import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.storage import read_json
from seqmill.tokenizers_ext import KmerConfig, copy_artifact, save_kmer, save_subword

from .support import corpus
from .support.arguments import require_known
from .support.merging import merging_rows
from .support.peers import TOKENIZERS, Answer, PeerError, System, described, ours, system_of
from .support.rows import Row, row
from .support.scratch import Scratch

VOCAB_SIZE = 32_000
SHORT_BYTES, SHORT_DOCUMENTS = 100, 1_000_000
SHIFT = 7  # bytes by which a second cut of the same text is moved
KMERS = (6, 12)
DNA_LENGTH, DNA_BYTES = 12_000, 12_000_000  # of one document, a multiple of all k; of all
SEED = 1

Texts = list[str]


@dataclass
class Bench(Scratch):
    """What the cases share: the text, and the systems."""

    texts: Texts
    ranks: Path | None
    dna: Path | None
    short: int  # documents of the case `short`
    peers: list[tuple[System, str]]  # with version
    vocabulary: Path | None = None

    def write(self, texts: Texts) -> Path:
        """Texts as drivers read them."""
        return corpus.write_numbered(self.folder().with_suffix(".jsonl"), texts)

    def trained(self) -> Path:
        """The artifact of a BPE trained on the corpus, once."""
        if self.vocabulary is None:
            answer = seqmill(True).ask(self.folder(), "train", self.write(self.texts), VOCAB_SIZE)
            self.vocabulary = self.folder()
            save_subword(self.vocabulary, (answer.folder / "tokenizer.json").read_bytes(), {})
        return self.vocabulary

    def tokenizers(self) -> Iterator[tuple[str, Path]]:
        """Name and artifact of the tokenizers to encode with."""
        yield f"BPE of {VOCAB_SIZE:,}", self.trained()
        if self.ranks:
            folder = self.folder()
            copy_artifact(self.ranks, folder)
            yield self.ranks.name, folder


def run(
    cases: Sequence[str] = (),
    data: Path | None = None,
    documents: int = SHORT_DOCUMENTS,
    peers: Sequence[str] = TOKENIZERS,
    ranks: Path | None = None,
    dna: Path | None = None,
) -> dict[str, Any]:
    """Rows of the chosen cases, and notes on what could not be measured.

    Args:
        cases: of `CASES`; default: all.
        data: a file or folder that `seqmill ingest` reads; default: examples/corpus.
        documents: how many the case `short` has.
        peers: of `TOKENIZERS`.
        ranks: a second tokenizer: anything that seqmill loads.
        dna: a FASTA file; default: random bases.

    Raises:
        UserError: a case, a peer or a file that does not exist.
        AssertionError: a system's ids or decoded bytes are not those of the others.
    """
    require_known(cases, CASES, "case")
    require_known(peers, TOKENIZERS, "peer")
    for flag, path in (("--ranks", ranks), ("--dna", dna)):
        if path and not path.is_file():
            raise UserError(f"{flag} {path}: there is no such file")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        texts = corpus.texts_of(corpus.ingested(data or corpus.EXAMPLES, scratch / "documents")).to_pylist()
        bench = Bench(scratch, texts, ranks and ranks.absolute(), dna and dna.absolute(), documents, [])
        found = described(peers, "encode", scratch, bench.notes)
        bench.peers += [(system, told["version"]) for system, told in found]
        return {"rows": [one for name in cases or CASES for one in CASES[name](bench)], "notes": bench.notes}


def seqmill(one_core: bool) -> System:
    """This project, driven as its peers are."""
    return replace(ours(), tasks="encode", one_core=one_core)


def _encode(bench: Bench) -> Iterator[Row]:
    """MB of text per second, on all cores and on one."""
    path, size = bench.write(bench.texts), _megabytes(bench.texts)
    for name, tokenizer in bench.tokenizers():
        for one_core in (False, True):
            case = f"encode, {name}, {'one core' if one_core else 'all cores'}"
            yield from _compared(bench, "encode", case, path, tokenizer, one_core, size, "MB/s")


def _short(bench: Bench) -> Iterator[Row]:
    """Documents per second, all cores."""
    texts = short_documents(bench.texts, bench.short)
    bench.notes.append(
        f"{len(texts):,} short documents have {_megabytes(texts) * 1e6 / max(1, len(texts)):.1f} bytes each"
    )
    case = f"encode {len(texts):,} documents of {SHORT_BYTES} bytes"
    yield from _compared(bench, "encode", case, bench.write(texts), bench.trained(), False, len(texts), "documents/s")


def _decode(bench: Bench) -> Iterator[Row]:
    """MB of text per second, all cores."""
    path, size = bench.write(bench.texts), _megabytes(bench.texts)
    for name, tokenizer in bench.tokenizers():
        yield from _compared(bench, "decode", f"decode, {name}", path, tokenizer, False, size, "MB/s")


def _foreign(bench: Bench) -> Iterator[Row]:
    """A model of sentencepiece, which that trains itself; the others take part if seqmill reads the model."""
    found = [(system, version) for system, version in bench.peers if system.name == "sentencepiece"]
    if not found:
        return
    (system, version) = found[0]
    path, size = bench.write(bench.texts), _megabytes(bench.texts)
    model = (
        replace(system, one_core=False).ask(bench.folder(), "train", path, VOCAB_SIZE).folder / "sentencepiece.model"
    )
    tokenizer = bench.folder()
    case = f"encode, sentencepiece BPE of {VOCAB_SIZE:,}"
    try:
        copy_artifact(model, tokenizer)
    except UserError as error:
        bench.notes.append(f"{case}: without seqmill, which does not read the model: {error}")
        tokenizer.mkdir(exist_ok=True)
    (tokenizer / model.name).write_bytes(model.read_bytes())
    if (tokenizer / "tokenizer.json").exists():
        able = [pair for pair in bench.peers if pair[0].name != "tiktoken"]  # which has byte-level vocabularies alone
        yield from _compared(bench, "encode", case, path, tokenizer, False, size, "MB/s", able)
        return
    answer = replace(system, one_core=False).ask(bench.folder(), "encode", path, tokenizer)
    yield from _rates(case, f"{system.name} {version}", answer.result["variants"][""], size, "MB/s")


def _kmers(bench: Bench) -> Iterator[Row]:
    """MB of bases per second, one core; documents of the four bases alone."""
    texts = dna_documents(bench.dna)
    path, size = bench.write(texts), _megabytes(texts)
    bench.notes.append(f"{size:.1f} MB of DNA, {'of ' + bench.dna.name if bench.dna else 'random'}")
    for k in KMERS:
        tokenizer = bench.folder()
        save_kmer(tokenizer, KmerConfig(k))
        python = system_of("python", "encode")
        version = python.ask(bench.folder(), "describe").result["version"]
        systems = [(python, version), *(pair for pair in bench.peers if pair[0].name == "tokenizers")]
        yield from _compared(bench, "encode", f"encode DNA, k = {k}", path, tokenizer, True, size, "MB/s", systems)


def _train(bench: Bench) -> Iterator[Row]:
    """Seconds and memory from JSON lines to a vocabulary, all cores."""
    path = bench.write(bench.texts)
    case = f"train a BPE of {VOCAB_SIZE:,} on {_megabytes(bench.texts):.0f} MB"
    learned = {}
    for system, version in [(seqmill(False), ""), *bench.peers]:
        if system.name not in ("seqmill", "tokenizers"):
            continue
        answer = replace(system, one_core=False).ask(bench.folder(), "train", path, VOCAB_SIZE)
        learned[system.name] = _merges(answer)
        assert learned[system.name] == learned["seqmill"], f"{system.name} learned other merges"
        name = f"{system.name} {version}".rstrip()
        yield row(case, name, answer.result["seconds"], "s", False)
        if answer.cost.peak_bytes:
            yield row(f"{case}, peak memory", name, answer.cost.peak_bytes / 1e6, "MB", False)


def _merging(bench: Bench) -> Iterator[Row]:
    """Milliseconds of a batch of ids, in this process."""
    yield from merging_rows(bench.texts, bench.trained())


def _merges(answer: Answer) -> Any:
    return read_json(answer.folder / "tokenizer.json")["model"]["merges"]


def _compared(
    bench: Bench,
    task: str,
    case: str,
    documents: Path,
    tokenizer: Path,
    one_core: bool,
    size: float,
    unit: str,
    systems: Sequence[tuple[System, str]] | None = None,
) -> Iterator[Row]:
    """Cold and warm rates of seqmill and then of all that can do the task, each as good as its results."""
    ours_ = seqmill(one_core).ask(bench.folder(), task, documents, tokenizer).result["variants"][""]
    yield from _rates(case, "seqmill", ours_, size, unit)
    for system, version in bench.peers if systems is None else systems:
        if system.name == "sentencepiece" and not (tokenizer / "sentencepiece.model").exists():
            continue
        try:
            answer = replace(system, one_core=one_core).ask(bench.folder(), task, documents, tokenizer)
        except PeerError as error:
            bench.notes.append(f"{case}: {error}")
            continue
        for variant, found in answer.result["variants"].items():
            name = f"{system.name} {version} {variant}".rstrip()
            for fact in {"hash", "tokens", "exact"} & set(found):
                assert found[fact] == ours_[fact], f"{case}: {name} gives another result than seqmill ({fact})"
            yield from _rates(case, name, found, size, unit)


def _rates(case: str, system: str, seconds: dict[str, Any], size: float, unit: str) -> Iterator[Row]:
    for state in ("cold", "warm"):
        yield row(f"{case}, {state}", system, size / seconds[state], unit, True)


def _megabytes(texts: Texts) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def short_documents(texts: Texts, count: int) -> Texts:
    """`count` pieces of about 100 bytes, at most that, cut from the texts one after the other, and again from a little
    further on if there are not enough."""
    data = b"\n".join(text.encode() for text in texts)
    starts = (
        at for first in range(0, SHORT_BYTES, SHIFT) for at in range(first, len(data) - SHORT_BYTES + 1, SHORT_BYTES)
    )
    pieces = [data[at : at + SHORT_BYTES].decode(errors="ignore") for at, _ in zip(starts, range(count), strict=False)]
    return (pieces * -(-count // max(1, len(pieces))))[:count]


def dna_documents(fasta: Path | None) -> Texts:
    """Stretches of 12,000 bases without any other letter, 12 MB at most."""
    most = DNA_BYTES // DNA_LENGTH
    if fasta is None:
        bases = random.Random(SEED)
        return ["".join(bases.choices("ACGT", k=DNA_LENGTH)) for _ in range(most)]
    with tempfile.TemporaryDirectory() as scratch:
        sequences = corpus.texts_of(corpus.ingested(fasta, Path(scratch))).to_pylist()
    found = [piece for text in sequences for piece in re.findall(f"[ACGT]{{{DNA_LENGTH}}}", text)][:most]
    if not found:
        raise UserError(f"--dna {fasta}: no stretch of {DNA_LENGTH:,} bases without other letters; leave it out")
    return found


CASES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "encode": _encode,
    "short": _short,
    "decode": _decode,
    "foreign": _foreign,
    "kmers": _kmers,
    "train": _train,
    "merging": _merging,
}
