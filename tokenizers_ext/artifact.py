"""Tokenizer artifacts: a folder with `seqmill.json` (what it is, its hash) and the files of its kind.

DIR/seqmill.json       format_version, kind, vocab_size, special_ids, settings, sha256 of each file, built_from
DIR/tokenizer.json     for kind "subword": the Hugging Face format
DIR/merges.arrow       for kind "merged": what merged ids stand for, and DIR/base/ the artifact they stand on
DIR/dictionary.bin     for kind "equal-info": what every id stands for
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from seqmill.compress.dictionary import Dictionary
from seqmill.compress.dictionary_file import read_dictionaries, write_dictionaries
from seqmill.errors import UserError
from seqmill.storage import FORMAT_VERSION, atomic_path, read_arrow, read_json, write_arrow, write_json
from seqmill.tokenizers_ext.byte_level import ByteEncoder
from seqmill.tokenizers_ext.encoder import Encoder
from seqmill.tokenizers_ext.equal_info import EqualInfoEncoder
from seqmill.tokenizers_ext.formats import read_tokenizer_file
from seqmill.tokenizers_ext.kmer import KmerConfig, KmerEncoder
from seqmill.tokenizers_ext.merging import MergedEncoder, MergeTable
from seqmill.tokenizers_ext.subword import SubwordEncoder, load_tokenizer_file

logger = logging.getLogger(__name__)

DESCRIPTION = "seqmill.json"
TOKENIZER_JSON = "tokenizer.json"
MERGES = "merges.arrow"
DICTIONARY = "dictionary.bin"
BASE = "base"
_NEEDED = ("kind", "special_ids", "settings", "sha256")  # entries of the description
_warned_of: set[Path] = set()  # lossy tokenizers that this process has said it of

ROUND_TRIP_SAMPLE = (
    "",
    "Plain words, 3.14 and  two spaces.\r\n\tTab",
    "naïve Русский 日本語 👩\u200d👧 e\u0301",
    "\x00\x7f",
)


def save_subword(
    folder: Path, tokenizer_json: bytes, built_from: Mapping[str, Any], special_ids: Mapping[str, int] | None = None
) -> Encoder:
    """Write a subword artifact and return its encoder.

    Args:
        built_from: JSON values that say where the vocabulary came from, for people.
        special_ids: see `SubwordEncoder`.
    """
    encoder = SubwordEncoder(tokenizer_json, special_ids)
    with atomic_path(folder / TOKENIZER_JSON) as temporary:
        temporary.write_bytes(tokenizer_json)
    _describe(folder, encoder, {TOKENIZER_JSON: tokenizer_json}, built_from)
    return encoder


def save_byte(folder: Path) -> Encoder:
    """Write the byte tokenizer's artifact and return its encoder."""
    encoder = ByteEncoder()
    _describe(folder, encoder, {}, {})
    return encoder


def save_kmer(folder: Path, config: KmerConfig) -> Encoder:
    """Write the artifact of a k-mer tokenizer and return its encoder."""
    encoder = KmerEncoder(config)
    _describe(folder, encoder, {}, {}, asdict(config))
    return encoder


def save_merged(folder: Path, base: Path, table: MergeTable, built_from: Mapping[str, Any]) -> Encoder:
    """Write the artifact of a merge table on top of the tokenizer at `base` and return its encoder."""
    copy_artifact(base, folder / BASE)
    encoder = MergedEncoder(_load(folder / BASE, parse_special=False), table)
    batch = table.to_arrow()
    write_arrow(folder / MERGES, batch.schema, [batch])
    names = [MERGES, *(f"{BASE}/{name}" for name in [DESCRIPTION, *_description_of(folder / BASE)["sha256"]])]
    _describe(folder, encoder, {name: (folder / name).read_bytes() for name in names}, built_from)
    return encoder


def save_equal_info(
    folder: Path, tables: Sequence[Dictionary], parse_name: str, built_from: Mapping[str, Any]
) -> Encoder:
    """Write the artifact of dictionaries, one or one a group of documents, and return its encoder."""
    encoder = EqualInfoEncoder(tables, parse_name)
    contents = write_dictionaries(folder / DICTIONARY, tables, {"parse": parse_name, "built_from": dict(built_from)})
    _describe(folder, encoder, {DICTIONARY: contents}, built_from)
    return encoder


def copy_artifact(source: Path, folder: Path) -> None:
    """Put the tokenizer at `source` into `folder`, so that a dataset carries it; files of other formats become a
    tokenizer.json there."""
    if not source.is_file() and not (source / DESCRIPTION).is_file() and (source / TOKENIZER_JSON).is_file():
        source = source / TOKENIZER_JSON
    if source.is_file():
        save_subword(folder, read_tokenizer_file(source), {"file": source.name})
        return
    described = _description_of(source)
    for name in [*described["sha256"], DESCRIPTION]:  # the description last: without it there is no artifact
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes((source / name).read_bytes())


def load(path: str | Path, parse_special: bool = False) -> Encoder:
    """The tokenizer at `path`: an artifact folder, a tokenizer.json, a tiktoken rank file or a sentencepiece model.

    Args:
        parse_special: whether text that spells a special token becomes its id; for subword tokenizers, documents are
            data by default.

    Raises:
        UserError: nothing readable is there, or a file does not match its recorded hash.
    """
    encoder = _load(Path(path), parse_special)
    _warn_if_lossy(Path(path), encoder)
    return encoder


def _load(path: Path, parse_special: bool) -> Encoder:
    if path.is_file():
        return load_tokenizer_file(path, parse_special)
    if path.is_dir() and not (path / DESCRIPTION).is_file() and (path / TOKENIZER_JSON).is_file():
        return load_tokenizer_file(path / TOKENIZER_JSON, parse_special)
    described = _description_of(path)
    for name, expected in described["sha256"].items():
        found = hashlib.sha256((path / name).read_bytes()).hexdigest() if (path / name).is_file() else "nothing"
        if found != expected:
            raise UserError(
                f"{path / name}: {DESCRIPTION} records sha256 {expected[:16]}..., found {found[:16]}...; ids would "
                "differ from the ones on disk: restore the file, or train the tokenizer again"
            )
    return _open(path, described, parse_special)


def _open(path: Path, described: Mapping[str, Any], parse_special: bool) -> Encoder:
    factories: dict[str, Callable[[], Encoder]] = {
        "subword": lambda: SubwordEncoder(
            (path / TOKENIZER_JSON).read_bytes(), described["special_ids"], parse_special
        ),
        "byte": ByteEncoder,
        "kmer": lambda: KmerEncoder(KmerConfig(**described["settings"])),
        "merged": lambda: MergedEncoder(_load(path / BASE, parse_special), _merge_table(path / MERGES)),
        "equal-info": lambda: _equal_info(path / DICTIONARY),
    }
    if described["kind"] not in factories:
        raise UserError(
            f"{path}: unknown tokenizer kind {described['kind']!r}; this seqmill reads {', '.join(factories)}"
        )
    return factories[described["kind"]]()


def _equal_info(path: Path) -> EqualInfoEncoder:
    tables, header = read_dictionaries(path)
    return EqualInfoEncoder(tables, header["parse"])


def _merge_table(path: Path) -> MergeTable:
    table = read_arrow(path).combine_chunks()
    batches = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    return MergeTable.from_arrow(batches[0])


def _describe(
    folder: Path,
    encoder: Encoder,
    files: Mapping[str, bytes],
    built_from: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
) -> None:
    description = {
        "format_version": FORMAT_VERSION,
        "kind": encoder.kind,
        "vocab_size": encoder.vocab_size,
        "special_ids": dict(encoder.special_ids),
        "settings": dict(settings or {}),
        "sha256": {name: hashlib.sha256(contents).hexdigest() for name, contents in files.items()},
        "built_from": dict(built_from),
    }
    write_json(folder / DESCRIPTION, description)


def _description_of(path: Path) -> dict[str, Any]:
    if not (path / DESCRIPTION).is_file():
        raise UserError(
            f"{path} is no tokenizer: neither a tokenizer.json nor a folder with {DESCRIPTION}; "
            "make one with `seqmill tokenizer train`"
        )
    described = read_json(path / DESCRIPTION)
    if not isinstance(described, dict) or described.get("format_version") != FORMAT_VERSION:
        found = described.get("format_version") if isinstance(described, dict) else described
        raise UserError(f"{path}: format version {found}, this seqmill reads {FORMAT_VERSION}")
    missing = [name for name in _NEEDED if name not in described]
    if missing:
        raise UserError(
            f"{path / DESCRIPTION} has no entry {missing[0]!r}: it was changed or cut short; copy the tokenizer again, "
            "or make it with `seqmill tokenizer`"
        )
    return dict(described)


def _warn_if_lossy(path: Path, encoder: Encoder) -> None:
    """Say it once, with an example, when a sample does not survive encoding and decoding: some tokenizers normalise."""
    if path.resolve() in _warned_of:
        return
    decoded = encoder.decode(encoder.encode(pa.array(ROUND_TRIP_SAMPLE, pa.large_string())))
    for text, found in zip(ROUND_TRIP_SAMPLE, decoded.to_pylist(), strict=True):
        if found != text.encode():
            _warned_of.add(path.resolve())
            logger.warning("%s is not lossless: %r comes back as %r", path, text, found.decode(errors="replace"))
            return
