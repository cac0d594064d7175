"""Building the dictionaries of an equal-info tokenizer: one unit, on a sample that is held in memory."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.compress import IntegerTransformer
from seqmill.compress.builders.counts import counts, filled
from seqmill.compress.builders.groups import group_documents
from seqmill.compress.builders.pairs import exchange_pairs
from seqmill.compress.builders.reest import reest
from seqmill.compress.builders.stopcell import stopcell
from seqmill.compress.builders.topn import topn
from seqmill.compress.byte_model import MOST_PRECISION, ByteModel
from seqmill.compress.code_range import strings_of_table
from seqmill.compress.counts_model import counts_model
from seqmill.compress.dictionary import LONGEST_STRING, Dictionary
from seqmill.compress.ngram_model import ngram_model
from seqmill.compress.parsing import parse
from seqmill.compress.texts import Texts
from seqmill.errors import UserError
from seqmill.pipeline.execution import UnitResult
from seqmill.pipeline.model_steps import ByteModelConfig
from seqmill.pipeline.sampling import Sample, require_documents, shares_for
from seqmill.storage import hash_file
from seqmill.tokenizers_ext import save_equal_info
from seqmill.tokenizers_ext.artifact import DESCRIPTION, DICTIONARY
from seqmill.tokenizers_ext.byte_level import BYTE_VALUES, ByteEncoder
from seqmill.tokenizers_ext.encoder import offsets_and_bytes
from seqmill.tokenizers_ext.gather import binary_array
from seqmill.tokenizers_ext.merging import MergeConfig, learn_table
from seqmill.tokenizers_ext.training.bpe import TRAINING_BYTES

MODELS = ("counts", "ngram", "transformer")
MODEL_BUILDERS = ("topn", "stopcell")
ROUNDS = {"pairs": 5, "counts": 3, "topn": 3, "stopcell": 3}  # where `rounds` is not given
COUNTING_BYTES = 12  # memory that one byte of text takes when substrings are counted
MOST_TABLES = 32
MB = 1_000_000


@dataclass(frozen=True)
class EqualInfoConfig:
    """`[tokenizer.equal_info]`: windows of equal information, as a dictionary."""

    window: int = 16  # bits of a window, 8 to 20: 2 ** window strings, less 64 for special ids at 16
    builder: str = "pairs"  # fitted to its use; or every prefix has an id: "counts", or "topn", "stopcell" of a model
    model: str = "counts"  # what "topn" and "stopcell" ask for probabilities: "counts", "ngram" or "transformer"
    rounds: int | None = None  # of choosing the strings again by how the sample is cut; default 5 of pairs, else 3
    parse: str = "longest"  # text is cut into the "longest" string first, or the "fewest" windows (slower, shorter)
    tables: int = 1  # dictionaries, one a group of documents of similar bytes; a document's first id says which
    byte_model: str | None = None  # a transformer that exists; None: one is trained, for model "transformer"
    transformer: ByteModelConfig = field(default_factory=ByteModelConfig)  # how to train one

    def __post_init__(self) -> None:
        strings_of_table(self.window)
        parse(self.parse)
        if self.builder not in ROUNDS:
            raise UserError(f"tokenizer.equal_info.builder = {self.builder!r}: choose one of {', '.join(ROUNDS)}")
        if self.model not in MODELS:
            raise UserError(f"tokenizer.equal_info.model = {self.model!r}: choose one of {', '.join(MODELS)}")
        if self.model != "counts" and self.builder not in MODEL_BUILDERS:
            raise UserError(
                f"tokenizer.equal_info.model = {self.model!r} goes with builder = {' or '.join(MODEL_BUILDERS)}; "
                f"{self.builder!r} counts the sample itself"
            )
        if self.rounds is not None and self.rounds < 0:
            raise UserError(f"tokenizer.equal_info.rounds = {self.rounds}: 0 or more are needed")
        if self.rounds and self.model != "counts":
            raise UserError(
                f"tokenizer.equal_info.rounds = {self.rounds}: a model of kind {self.model!r} is not learned anew from "
                "where windows begin; use model = 'counts', or rounds = 0"
            )
        if not 1 <= self.tables <= MOST_TABLES:
            raise UserError(f"tokenizer.equal_info.tables = {self.tables}: between 1 and {MOST_TABLES} are possible")

    @property
    def strings(self) -> int:
        """Ids that stand for bytes."""
        return strings_of_table(self.window)

    @property
    def precision(self) -> int:
        """Bits of a model's frequencies: the most for which every byte gets a number of the first window."""
        return min(self.strings.bit_length() - 1, MOST_PRECISION)

    @property
    def rounds_made(self) -> int:
        """Rounds, where none are given too."""
        if self.rounds is not None:
            return self.rounds
        return ROUNDS[self.builder] if self.model == "counts" else 0


def build_dictionaries(
    payload: Mapping[str, Any], config: EqualInfoConfig, memory_mb: int, seed: int, out: Path
) -> UnitResult:
    """Build the dictionaries on as much of the sample as the memory holds, and write the artifact.

    Args:
        payload: as of the unit that learns a vocabulary; with `byte_model`, the reference of a transformer's file,
            where one is asked.
    """
    most = memory_mb * MB // (TRAINING_BYTES if config.builder == "pairs" else COUNTING_BYTES)
    sample = Sample(shares_for(payload["shares"], 2 * payload["sample_bytes"], most), seed)
    parts = [texts.cast(pa.large_binary()) for file in payload["parts"].values() for texts in sample.of(file)]
    require_documents(sample.figures())
    texts = pa.concat_arrays(parts)
    group_of = group_documents(*offsets_and_bytes(texts), config.tables)
    groups = [_texts(texts.filter(pa.array(group_of == group))) for group in range(config.tables)]
    figures: dict[str, Any] = {
        "sample": sample.figures(),
        **{name: value for name, value in asdict(config).items() if name not in ("byte_model", "transformer")},
        "rounds": config.rounds_made,
        "seed": seed,
        "corpus": _texts(texts).fingerprint,
        "documents_of_table": np.bincount(group_of, minlength=config.tables).tolist(),
    }
    if config.builder in MODEL_BUILDERS:
        figures |= {"precision": config.precision}
    model = None
    if config.model == "transformer":
        model = IntegerTransformer.open(payload["byte_model"]["path"], config.precision)
        figures["byte_model"] = model.fingerprint
    tables = [build_dictionary(group, config, model) for group in groups]
    most_strings = max(map(len, tables))
    tables = [Dictionary.from_strings(filled(table.strings(), most_strings)) for table in tables]
    save_equal_info(out, tables, config.parse, {"algorithm": "equal-info", **figures})
    return UnitResult({DICTIONARY: sum(map(len, tables)), DESCRIPTION: 1}, figures)


def build_dictionary(texts: Texts, config: EqualInfoConfig, model: ByteModel | None = None) -> Dictionary:
    """One dictionary of some documents.

    Args:
        model: a transformer, where `config.model` says so; models that count are made of the texts.
    """
    return _BUILDERS[config.builder](texts, config, model)


def byte_model_reference(path: Path) -> dict[str, str]:
    """What a unit's payload says of a transformer's file: where it is, and which one."""
    if not path.is_file():
        raise UserError(f"tokenizer.equal_info.byte_model = {str(path)!r}: there is no such file")
    return {"path": str(path), "hash": hash_file(path)}


def _texts(texts: pa.LargeBinaryArray) -> Texts:
    offsets, data = offsets_and_bytes(texts)
    return Texts(data[offsets[0] : offsets[-1]], offsets - offsets[0])


def _pairs(texts: Texts, config: EqualInfoConfig, _: ByteModel | None) -> Dictionary:
    """Merges of neighbours across everything (a BPE without a splitter), then rounds of exchanging.

    Smaller than asked for where the text has too few strings.
    """
    encoder = ByteEncoder()
    strings = {bytes([byte]) for byte in range(BYTE_VALUES)}
    if config.strings > BYTE_VALUES:
        merges = MergeConfig(config.strings - BYTE_VALUES, "batch", "none")
        ids = encoder.encode(binary_array(texts.offsets, texts.data))
        offsets, base_ids = learn_table(encoder, ids, merges).expansions()
        merged, ends = base_ids.astype(np.uint8).tobytes(), offsets[encoder.vocab_size :].tolist()
        strings |= {merged[begin:end] for begin, end in itertools.pairwise(ends) if end - begin <= LONGEST_STRING}
    start = Dictionary.from_strings(strings)
    return exchange_pairs(start, texts.data, texts.offsets, config.strings, config.rounds_made, config.parse)


def _counts(texts: Texts, config: EqualInfoConfig, _: ByteModel | None) -> Dictionary:
    return reest(texts, lambda texts, starts: counts(texts, config.window, starts=starts), config.rounds_made)


def _of_model(texts: Texts, config: EqualInfoConfig, model: ByteModel | None) -> Dictionary:
    """The strings of a model's windows; one that counts is made anew each round."""
    builder = {"topn": topn, "stopcell": stopcell}[config.builder]
    if config.model == "ngram":
        model = ngram_model(texts, precision=config.precision)
    if model is not None:
        return builder(model, config.window)

    def build(texts: Texts, starts: np.ndarray | None) -> Dictionary:
        return builder(counts_model(texts, starts, precision=config.precision), config.window)

    return reest(texts, build, config.rounds_made)


_BUILDERS: dict[str, Callable[[Texts, EqualInfoConfig, ByteModel | None], Dictionary]] = {
    "pairs": _pairs,
    "counts": _counts,
    "topn": _of_model,
    "stopcell": _of_model,
}
