"""The tokenizer stage: learn a vocabulary from a sample of the documents, or put a given tokenizer in place.

A BPE or Unigram vocabulary is learned in units: words are counted part by part, by any number of workers, and one last
unit adds the counts up and learns from them. What needs whole documents (super-words, merges on top of a tokenizer) is
read again by that last unit.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.manifest import STATE_FOLDER, open_manifest
from seqmill.pipeline.build_tokenizer import EqualInfoConfig, build_dictionaries, byte_model_reference
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Unit,
    UnitResult,
    all_done,
    part_references,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.model_steps import train_byte_model
from seqmill.pipeline.sampling import Sample, require_documents, shares_for, source_shares
from seqmill.pipeline.settings import build
from seqmill.storage import read_arrow, read_json, write_arrow
from seqmill.tokenizers_ext import (
    Encoder,
    KmerConfig,
    copy_artifact,
    id_type,
    load,
    save_byte,
    save_kmer,
    save_merged,
    save_subword,
)
from seqmill.tokenizers_ext.artifact import DESCRIPTION, MERGES
from seqmill.tokenizers_ext.merging import MergeConfig, learn_table
from seqmill.tokenizers_ext.training import (
    BpeConfig,
    UnigramConfig,
    WordCounts,
    add_superwords,
    bpe_from_counts,
    train_unigram,
)
from seqmill.tokenizers_ext.training.bpe import TRAINING_BYTES, check_vocab_size
from seqmill.tokenizers_ext.training.word_counts import LONGEST_WORD
from seqmill.tokenizers_ext.training.word_counts import SCHEMA as COUNTS_SCHEMA

logger = logging.getLogger(__name__)

FROM_WORDS = ("bpe", "unigram")  # kinds that are learned from counted words
KINDS = (*FROM_WORDS, "merged", "equal-info", "byte", "kmer")
MB = 1_000_000
LEAST_MEMORY_MB = 64


@dataclass(frozen=True)
class MergedConfig:
    """`[tokenizer.merged]`: merges of frequent neighbours on top of a tokenizer that exists."""

    base: str | None = None  # the tokenizer whose ids are merged: an artifact, or any file that [tokenizer] path takes
    merges: int = 10_000  # ids more
    rule: str = "word"  # what a merged id may cover: a pre-token (gpt2, cl100k, qwen2), "word", "superword" or "none"
    min_count: int = 2  # a pair that occurs less often is not merged

    def __post_init__(self) -> None:
        MergeConfig(self.merges, "batch", self.rule, self.min_count)


@dataclass(frozen=True)
class TokenizerConfig:
    """`[tokenizer]`: how to get a tokenizer."""

    kind: str = (
        "bpe"  # learned from the documents: "bpe", "unigram", "merged", "equal-info"; "byte": bytes as ids; "kmer": DNA
    )
    vocab_size: int = 32_768  # ids, the end-of-text id included; for kinds "bpe" and "unigram"
    sample_bytes: int = 1_000_000_000  # text to train on at most; documents are drawn by a hash of their id
    source_alpha: float = 1.0  # a source of b bytes gets a part of the sample proportional to b ** source_alpha
    path: str | None = None  # use this artifact, tokenizer.json, rank file or sentencepiece model and train nothing
    seed: int = 0  # of the sample
    memory_mb: int = 2048  # of one worker, to count words and learn; over it the rarest words are left out, and counted
    bpe: BpeConfig = field(default_factory=BpeConfig)  # for kind "bpe"
    unigram: UnigramConfig = field(default_factory=UnigramConfig)  # for kind "unigram"
    merged: MergedConfig = field(default_factory=MergedConfig)  # for kind "merged"
    equal_info: EqualInfoConfig = field(default_factory=EqualInfoConfig)  # for kind "equal-info"
    kmer: KmerConfig = field(default_factory=KmerConfig)  # for kind "kmer"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"tokenizer.kind = {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.kind in FROM_WORDS:
            check_vocab_size(self.vocab_size)
        if self.kind == "bpe" and (self.bpe.superwords_from or 0) > self.vocab_size:
            raise UserError(
                f"tokenizer.bpe.superwords_from = {self.bpe.superwords_from} is above tokenizer.vocab_size = "
                f"{self.vocab_size}: no id would be left for a super-word"
            )
        if self.kind == "merged" and not self.merged.base:
            raise UserError("tokenizer.kind = 'merged' needs tokenizer.merged.base: the tokenizer whose ids are merged")
        if self.seed < 0:
            raise UserError(f"tokenizer.seed = {self.seed}: 0 or more is needed")
        if self.sample_bytes < 1:
            raise UserError(f"tokenizer.sample_bytes = {self.sample_bytes}: at least 1 byte of text is needed")
        if not 0 <= self.source_alpha <= 1:
            raise UserError(
                f"tokenizer.source_alpha = {self.source_alpha}: choose between 0 (all sources alike) and 1 (as they "
                "are)"
            )
        if self.memory_mb < LEAST_MEMORY_MB:
            raise UserError(f"tokenizer.memory_mb = {self.memory_mb}: {LEAST_MEMORY_MB} or more are needed")


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
        _learn(documents, config, out, executor, progress)
    return load(out)


def _learn(documents: Path, config: TokenizerConfig, out: Path, executor: Executor, progress: Progress) -> None:
    manifest = open_manifest(documents, "documents")
    parts = part_references(documents, manifest)
    measured = [Unit(f"sources-{part}", {"documents": file}) for part, file in parts.items()]
    records = run_units("measure sources", measure_sources, measured, out, executor, progress)
    sizes = _added(record.stats["sources"] for record in records)
    shares = source_shares(sizes, config.sample_bytes, config.source_alpha)
    sampled = min(config.sample_bytes, sum(sizes.values()))
    shared = {"shares": shares, "sample_bytes": sampled, "config": asdict(config)}
    if config.kind == "merged":
        shared["base"] = load(Path(config.merged.base or "")).fingerprint
    if config.kind == "equal-info" and config.equal_info.model == "transformer":
        given = config.equal_info.byte_model
        model = Path(given) if given else _byte_model(documents, config.equal_info, out, executor, progress)
        shared["byte_model"] = byte_model_reference(model)
    last = Unit("tokenizer", {"parts": parts, **shared})
    if all_done("train tokenizer", [last], out):  # the counts it was made from need not exist any more
        return
    counted = [Unit(f"words-{part}", {"part": part, "documents": file, **shared}) for part, file in parts.items()]
    if config.kind in FROM_WORDS:
        run_units("count words", count_words, counted, out, executor, progress)
    run_units("train tokenizer", learn_vocabulary, [last], out, executor, progress)
    for left_over in (out / STATE_FOLDER).glob("words-*"):
        left_over.unlink()


def _byte_model(documents: Path, config: EqualInfoConfig, out: Path, executor: Executor, progress: Progress) -> Path:
    """Train the transformer whose windows are wanted; an interrupted run goes on."""
    return train_byte_model(documents, config.transformer, out / STATE_FOLDER / "byte-model", executor, progress)


def measure_sources(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """How many bytes of text every source has in one part."""
    sizes = []
    for batch in document_batches(Path(payload["documents"]["path"])):
        lengths = pa.table({"source": batch.column("source"), "bytes": pc.binary_length(batch.column("text"))})
        sizes += lengths.group_by("source").aggregate([("bytes", "sum")]).to_pylist()
    return UnitResult({}, {"sources": _added({row["source"] or "": row["bytes_sum"]} for row in sizes)})


def count_words(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Count the words of the sampled documents of one part."""
    config = build(TokenizerConfig, payload["config"])
    words = WordCounts(config.memory_mb * MB)
    split = config.unigram.split if config.kind == "unigram" else config.bpe.split
    sample = Sample(payload["shares"], config.seed)
    for texts in sample.of(payload["documents"]):
        words.add_texts(texts, split)
    name = f"{STATE_FOLDER}/words-{payload['part']}.arrow"
    write_arrow(out / name, COUNTS_SCHEMA, words.batches())
    figures = {"forgotten": words.forgotten, "floor": words.floor, "too_long": words.too_long}
    return UnitResult({name: len(words)}, {"sample": sample.figures(), **figures})


def learn_vocabulary(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Make a vocabulary and write the artifact."""
    config = build(TokenizerConfig, payload["config"])
    if config.kind == "merged":
        return _learn_merges(payload, config, out)
    if config.kind == "equal-info":
        return build_dictionaries(payload, config.equal_info, config.memory_mb, config.seed, out)
    words, figures = _added_words(payload, config, out)
    if config.kind == "unigram":
        tokenizer_json = train_unigram(words, config.vocab_size, config.unigram)
    else:
        tokenizer_json = bpe_from_counts(words, config.bpe.superwords_from or config.vocab_size, config.bpe)
    del words
    if config.kind == "bpe" and config.bpe.superwords_from:
        sampled = figures["sample"]["bytes"]
        tokenizer_json, figures["superword_sample"] = _with_superwords(tokenizer_json, payload, config, sampled)
    settings: dict[str, Any] = {"vocab_size": config.vocab_size, "seed": config.seed}
    if config.source_alpha != 1:
        settings |= {"source_alpha": config.source_alpha, "shares": payload["shares"]}
    save_subword(out, tokenizer_json, {"algorithm": config.kind, **figures, **settings})
    return UnitResult({"tokenizer.json": 1, "seqmill.json": 1}, figures)


def _learn_merges(payload: Mapping[str, Any], config: TokenizerConfig, out: Path) -> UnitResult:
    """Learn a merge table on the ids of the sample, as much of it as the memory holds, and write the artifact."""
    base = Path(config.merged.base or "")
    encoder = load(base)
    most = config.memory_mb * MB // TRAINING_BYTES
    sample = Sample(shares_for(payload["shares"], payload["sample_bytes"], most), config.seed)
    ids = [pa.array([], pa.list_(id_type(encoder.vocab_size)))]
    for file in payload["parts"].values():
        ids += [encoder.encode(texts) for texts in sample.of(file)]
    require_documents(sample.figures())
    settings = MergeConfig(config.merged.merges, "batch", config.merged.rule, config.merged.min_count)
    table = learn_table(encoder, pa.concat_arrays(ids), settings)
    figures = {"sample": sample.figures(), **asdict(config.merged), "base": base.name, "seed": config.seed}
    save_merged(out, base, table, {"algorithm": "merged", **figures})
    return UnitResult({MERGES: len(table), DESCRIPTION: 1}, figures)


def _added_words(payload: Mapping[str, Any], config: TokenizerConfig, out: Path) -> tuple[WordCounts, dict[str, Any]]:
    """The counts of all parts added up, and what `seqmill.json` says of them.

    Raises:
        UserError: there is no document, or none with a word.
    """
    words = WordCounts(config.memory_mb * MB, TRAINING_BYTES)
    stats = []
    for part in payload["parts"]:
        for batch in read_arrow(out / STATE_FOLDER / f"words-{part}.arrow").to_batches():
            words.add_counts(batch.column("word"), batch.column("count"))
        stats.append(read_json(out / STATE_FOLDER / f"words-{part}.json")["stats"])
    figures = {
        "sample": _added(stat["sample"] for stat in stats),
        "words": len(words),
        "words_too_long": sum(stat["too_long"] for stat in stats),
        "occurrences_forgotten": words.forgotten + sum(stat["forgotten"] for stat in stats),
        config.kind: payload["config"][config.kind],
    }
    require_documents(figures["sample"])
    if not len(words) and figures["words_too_long"]:
        raise UserError(
            f"every one of the {figures['words_too_long']} pre-tokens is longer than {LONGEST_WORD} bytes: text "
            "without spaces or punctuation has no words to learn from; use kind = 'byte', or 'kmer' for DNA"
        )
    if figures["occurrences_forgotten"]:
        logger.warning(
            "the words of the sample do not fit %d MB: %d occurrences of words that are rare in their part were left "
            "out; raise tokenizer.memory_mb, or lower tokenizer.sample_bytes",
            config.memory_mb,
            figures["occurrences_forgotten"],
        )
    return words, figures


def _with_superwords(
    base: bytes, payload: Mapping[str, Any], config: TokenizerConfig, sample_bytes: int
) -> tuple[bytes, dict[str, int]]:
    """Lift the rule of words: the longer `tokenizer.json`, and what it was learned from."""
    most = config.memory_mb * MB // TRAINING_BYTES
    sample = Sample(shares_for(payload["shares"], sample_bytes, most), config.seed)
    texts = (texts for file in payload["parts"].values() for texts in sample.of(file))
    longer = add_superwords(base, texts, config.vocab_size, most, max(2, config.bpe.min_count))
    return longer, sample.figures()


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts of several mappings added up, in the order of the keys' names."""
    total: Counter[str] = Counter()
    for mapping in counts:
        total.update(mapping)
    return dict(sorted(total.items()))
