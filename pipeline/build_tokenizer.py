"""Building the dictionaries of an equal-info tokenizer: one unit, on a sample that is held in memory."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.compress.builders.groups import group_documents
from seqmill.compress.builders.pairs import exchange_pairs
from seqmill.compress.dictionary import LONGEST_STRING, Dictionary
from seqmill.compress.parsing import parse
from seqmill.errors import UserError
from seqmill.pipeline.execution import UnitResult
from seqmill.pipeline.sampling import Sample, require_documents, shares_for
from seqmill.tokenizers_ext import save_equal_info
from seqmill.tokenizers_ext.artifact import DESCRIPTION, DICTIONARY
from seqmill.tokenizers_ext.byte_level import BYTE_VALUES, ByteEncoder
from seqmill.tokenizers_ext.encoder import offsets_and_bytes
from seqmill.tokenizers_ext.merging import MergeConfig, learn_table
from seqmill.tokenizers_ext.training.bpe import TRAINING_BYTES

SMALLEST_WINDOW, LARGEST_WINDOW = 8, 20  # bits; beyond, a dictionary could not be listed
SPECIALS_OF_16 = 64  # a window of 16 bits leaves so many ids for specials, that all fit two bytes
MOST_TABLES = 32
MB = 1_000_000


@dataclass(frozen=True)
class EqualInfoConfig:
    """`[tokenizer.equal_info]`: windows of equal information, as a dictionary."""

    window: int = 16  # bits of a window: 2 ** window strings, less 64 for special ids at 16
    builder: str = "pairs"  # "pairs": fitted to its use
    rounds: int = 5  # of counting how the sample is cut and choosing the strings again
    parse: str = (
        "longest"  # how text is cut: the "longest" string first, or into the "fewest" windows (slower, shorter)
    )
    tables: int = 1  # dictionaries, one a group of documents of similar bytes; a document's first id says which

    def __post_init__(self) -> None:
        if not SMALLEST_WINDOW <= self.window <= LARGEST_WINDOW:
            raise UserError(
                f"tokenizer.equal_info.window = {self.window}: between {SMALLEST_WINDOW} and {LARGEST_WINDOW} bits, "
                "for every string of the dictionary is listed; longer windows are for seqmill.compress.WindowCoder"
            )
        if self.builder not in BUILDERS:
            raise UserError(f"tokenizer.equal_info.builder = {self.builder!r}: choose one of {', '.join(BUILDERS)}")
        if self.rounds < 0:
            raise UserError(f"tokenizer.equal_info.rounds = {self.rounds}: 0 or more are needed")
        if not 1 <= self.tables <= MOST_TABLES:
            raise UserError(f"tokenizer.equal_info.tables = {self.tables}: between 1 and {MOST_TABLES} are possible")
        parse(self.parse)

    @property
    def strings(self) -> int:
        """Ids that stand for bytes."""
        return 2**self.window - (SPECIALS_OF_16 if self.window == 16 else 0)


def build_dictionaries(
    payload: Mapping[str, Any], config: EqualInfoConfig, memory_mb: int, seed: int, out: Path
) -> UnitResult:
    """Build the dictionaries on as much of the sample as the memory holds, and write the artifact."""
    most = memory_mb * MB // TRAINING_BYTES
    sample = Sample(shares_for(payload["shares"], 2 * payload["sample_bytes"], most), seed)
    parts = [texts.cast(pa.large_binary()) for file in payload["parts"].values() for texts in sample.of(file)]
    require_documents(sample.figures())
    texts = pa.concat_arrays(parts)
    group_of = group_documents(*offsets_and_bytes(texts), config.tables)
    tables = [
        BUILDERS[config.builder](texts.filter(pa.array(group_of == group)), config) for group in range(config.tables)
    ]
    tables = _filled(tables)
    figures: dict[str, Any] = {"sample": sample.figures(), **asdict(config), "seed": seed}
    if config.tables > 1:
        figures["documents_of_table"] = np.bincount(group_of, minlength=config.tables).tolist()
    save_equal_info(out, tables, config.parse, {"algorithm": "equal-info", **figures})
    return UnitResult({DICTIONARY: sum(map(len, tables)), DESCRIPTION: 1}, figures)


def _fitted_pairs(texts: pa.LargeBinaryArray, config: EqualInfoConfig) -> Dictionary:
    """Merges of neighbours across everything (a BPE without a splitter), then rounds of exchanging."""
    encoder = ByteEncoder()
    merges = MergeConfig(config.strings - BYTE_VALUES, "batch", "none") if config.strings > BYTE_VALUES else None
    strings = {bytes([byte]) for byte in range(BYTE_VALUES)}
    if merges is not None:
        offsets, base_ids = learn_table(encoder, encoder.encode(texts), merges).expansions()
        text, ends = base_ids.astype(np.uint8).tobytes(), offsets[encoder.vocab_size :].tolist()
        strings |= {text[begin:end] for begin, end in itertools.pairwise(ends) if end - begin <= LONGEST_STRING}
    offsets, data = offsets_and_bytes(texts)
    start = Dictionary.from_strings(strings)
    return exchange_pairs(start, data, offsets, config.strings, config.rounds, config.parse)


def _filled(tables: list[Dictionary]) -> list[Dictionary]:
    """Tables of as many strings each: those of groups with little text get unused strings of two and three bytes."""
    most = max(map(len, tables))
    filled = []
    for table in tables:
        known = set(table.strings())
        unused = (bytes(string) for length in (2, 3) for string in itertools.product(range(256), repeat=length))
        more = itertools.islice((string for string in unused if string not in known), most - len(known))
        filled.append(Dictionary.from_strings([*known, *more]))
    return filled


BUILDERS: dict[str, Callable[[pa.LargeBinaryArray, EqualInfoConfig], Dictionary]] = {"pairs": _fitted_pairs}
