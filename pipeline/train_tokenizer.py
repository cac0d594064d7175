"""The tokenizer stage: learn a vocabulary from a sample of the documents, or put a given tokenizer in place."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Unit,
    UnitResult,
    part_references,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.settings import build
from seqmill.tokenizers_ext import (
    Encoder,
    KmerConfig,
    copy_artifact,
    load,
    save_byte,
    save_kmer,
    save_subword,
    train_bpe,
)
from seqmill.tokenizers_ext.train import SMALLEST_BPE_VOCABULARY

KINDS = ("bpe", "byte", "kmer")


@dataclass(frozen=True)
class TokenizerConfig:
    """`[tokenizer]`: how to get a tokenizer."""

    kind: str = "bpe"  # "bpe": byte-level BPE trained on the documents; "byte": bytes as ids; "kmer": DNA
    vocab_size: int = 32_768  # ids, the end-of-text id included; for kind "bpe"
    sample_bytes: int = 1_000_000_000  # text to train on at most; documents are drawn by a hash of their id
    path: str | None = None  # use this artifact or tokenizer.json and train nothing
    seed: int = 0  # of the sample
    kmer: KmerConfig = field(default_factory=KmerConfig)  # for kind "kmer"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"tokenizer.kind = {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.kind == "bpe" and self.vocab_size < SMALLEST_BPE_VOCABULARY:
            raise UserError(
                f"tokenizer.vocab_size = {self.vocab_size}: a byte-level BPE has {SMALLEST_BPE_VOCABULARY} or more; "
                "for bytes alone set tokenizer.kind = 'byte'"
            )
        if self.seed < 0:
            raise UserError(f"tokenizer.seed = {self.seed}: 0 or more is needed")
        if self.sample_bytes < 1:
            raise UserError(f"tokenizer.sample_bytes = {self.sample_bytes}: at least 1 byte of text is needed")


def train_tokenizer(
    documents: Path, config: TokenizerConfig, out: Path, executor: Executor, progress: Progress
) -> Encoder:
    """Write the tokenizer artifact to `out` and return its encoder.

    Args:
        documents: a finished folder of documents; read only when a vocabulary is learned.
    """
    prepare_folder(out)
    if config.path:
        copy_artifact(Path(config.path), out)
    elif config.kind == "byte":
        save_byte(out)
    elif config.kind == "kmer":
        save_kmer(out, config.kmer)
    else:
        manifest = open_manifest(documents, "documents")
        payload = {
            "documents": list(part_references(documents, manifest).values()),
            "bytes": manifest["totals"]["bytes"],
            "config": asdict(config),
        }
        run_units("train tokenizer", learn_vocabulary, [Unit("tokenizer", payload)], out, executor, progress)
    return load(out)


def learn_vocabulary(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Train a BPE on the sampled documents and write the artifact."""
    config = build(TokenizerConfig, payload["config"])
    share = min(1.0, config.sample_bytes / max(1, payload["bytes"]))
    sampled = {"documents": 0, "bytes": 0}

    def texts() -> Iterator[list[str]]:
        for file in payload["documents"]:
            for batch in document_batches(Path(file["path"])):
                chosen = batch.filter(pa.array(sample_by_id(batch.column("doc_id").to_numpy(), share, config.seed)))
                strings = chosen.column("text").to_pylist()
                sampled["documents"] += len(strings)
                sampled["bytes"] += sum(len(text.encode()) for text in strings)
                yield strings

    tokenizer_json = train_bpe(texts(), config.vocab_size)
    if not sampled["documents"]:
        raise UserError(
            "there is no document to train a tokenizer on: all were filtered out, or sample_bytes is too small"
        )
    built_from = {"algorithm": "bpe", "sample": sampled, "vocab_size": config.vocab_size, "seed": config.seed}
    save_subword(out, tokenizer_json, built_from)
    return UnitResult({"tokenizer.json": 1, "seqmill.json": 1}, {"sample": sampled})


def sample_by_id(doc_ids: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool[documents]: a pseudo-random `share` of the documents that depends on nothing but their ids and the seed.

    The hash is the finaliser of splitmix64 over the id; a document is in when its hash lies in the lowest `share` of
    the 64-bit range.
    """
    x = doc_ids.astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) < share * 2.0**53
