"""Excerpts: stretches of bytes that begin anywhere in the documents, as what a model of windows is trained on.

A window of a coder begins wherever the one before it ended. A model that had seen only the beginnings of documents
would expect a title there; one that had seen only beginnings of words would expect no "ing". So every byte of the
corpus begins an excerpt with the same probability, decided by a hash of the document's id and the byte's place:

    bytes of a document   T h e   c a t s           (hash below the bound at "e" and at "t")
    excerpts of 4         [eos] e _ c a, [eos] t s

The end-of-document id stands before every excerpt: from it alone a model learns how windows begin.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.manifest import open_manifest, write_manifest
from seqmill.pipeline.documents import document_batches, utf8_buffers
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Unit,
    UnitResult,
    part_references,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.tokenize import TOKENIZER_FOLDER, describe_tokenizer
from seqmill.storage import with_metadata, write_arrow
from seqmill.tokenizers_ext import id_type
from seqmill.tokenizers_ext.artifact import save_byte
from seqmill.tokenizers_ext.byte_level import BYTE_VALUES, SPECIAL_IDS
from seqmill.tokenizers_ext.encoder import list_array

_EXCERPTS_PER_BATCH = 1 << 14  # of the output; bounds memory where nearly every byte begins an excerpt


@dataclass(frozen=True)
class ExcerptConfig:
    """How much to draw."""

    length: int = 64  # bytes of an excerpt; one that meets the end of its document is shorter
    sample_bytes: int = 16_000_000  # bytes of all excerpts, about; they overlap where this exceeds the corpus
    seed: int = 0  # of the places

    def __post_init__(self) -> None:
        if self.length < 2:
            raise UserError(f"length = {self.length}: an excerpt needs 2 bytes or more, or nothing follows anything")
        if self.sample_bytes < 1:
            raise UserError(f"sample_bytes = {self.sample_bytes}: must be positive")
        if self.seed < 0:
            raise UserError(f"seed = {self.seed}: must be 0 or more")


def draw_excerpts(
    documents: Path, config: ExcerptConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    """Write a tokens folder of excerpts, with the byte tokenizer that its ids belong to; returns the manifest.

    Raises:
        UserError: the documents have not a single byte.
    """
    manifest = open_manifest(documents, "documents")
    size = manifest["totals"]["bytes"]
    if not size:
        raise UserError(f"{documents} has no text: no excerpt can be drawn; give other documents")
    prepare_folder(out)
    described = describe_tokenizer(save_byte(out / TOKENIZER_FOLDER))
    shared = {**asdict(config), "share": min(1.0, config.sample_bytes / (config.length * size))}
    parts = part_references(documents, manifest)
    units = [Unit(part, {"part": part, "documents": file, **shared}) for part, file in parts.items()]
    records = run_units("excerpts", draw_part, units, out, executor, progress)
    return write_manifest(
        out,
        "tokens",
        [file for record in records for file in record.files],
        stage="excerpts",
        config=asdict(config),
        vocab_size=_VOCABULARY,
        tokenizer=described,
        sources=sorted({source for record in records for source in record.stats["sources"]}),
        totals={key: sum(record.stats[key] for record in records) for key in ("documents", "bytes", "tokens")},
    )


_EOS, _VOCABULARY = SPECIAL_IDS["eos"], BYTE_VALUES + len(SPECIAL_IDS)
_FIELDS = pa.schema(
    {
        "doc_id": pa.uint64(),  # of the document that the excerpt is of
        "input_ids": pa.list_(id_type(_VOCABULARY)),
        "num_bytes": pa.uint32(),
        "source": pa.string(),
    }
)


def draw_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """The excerpts of one documents part, in the order of their places."""
    settings = {key: payload[key] for key in ("length", "share", "seed")}
    schema = with_metadata(_FIELDS, "tokens", vocab_size=_VOCABULARY, **settings)
    totals = {"documents": 0, "bytes": 0, "tokens": 0}
    sources: set[str] = set()

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in document_batches(Path(payload["documents"]["path"])):
            offsets, data = utf8_buffers(batch.column("text"))
            ids = batch.column("doc_id").to_numpy()
            rows, starts = excerpt_starts(offsets, ids, payload["share"], payload["seed"])
            for first in range(0, len(rows), _EXCERPTS_PER_BATCH):
                some = slice(first, first + _EXCERPTS_PER_BATCH)
                stops = np.minimum(starts[some] + payload["length"], offsets[rows[some] + 1])
                lengths = stops - starts[some]
                lists = list_array(*_with_eos(data, starts[some], lengths), _VOCABULARY)
                source = batch.column("source").take(pa.array(rows[some]))
                sources.update(source.unique().to_pylist())
                totals["documents"] += len(lists)
                totals["bytes"] += int(lengths.sum())
                totals["tokens"] += int(lengths.sum()) + len(lists)
                columns = [pa.array(ids[rows[some]]), lists, pa.array(lengths.astype(np.uint32)), source]
                yield pa.record_batch(columns, schema=schema)

    name = f"{payload['part']}.arrow"
    rows = write_arrow(out / name, schema, batches())
    return UnitResult({name: rows}, {**totals, "sources": sorted(sources)})


def excerpt_starts(offsets: np.ndarray, ids: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Where excerpts begin: int64[excerpts] rows of documents, and int64[excerpts] places in the batch's bytes.

    Args:
        offsets: int64[documents + 1] into the bytes of all documents.
        ids: uint64[documents].
        share: of all bytes that begin an excerpt, from 0 to 1.
    """
    bound = np.uint64(min(int(share * 2**64), 2**64 - 1))
    salt = np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    chosen = np.empty(int(offsets[-1] - offsets[0]), np.bool_)
    _choose(offsets, ids.astype(np.uint64), salt, bound, chosen)
    starts = np.flatnonzero(chosen) + offsets[0]
    return np.searchsorted(offsets, starts, side="right") - 1, starts


def _with_eos(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets int64[excerpts + 1] and ids uint16[...] of excerpts, each behind an end-of-document id."""
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)])
    ids = np.full(offsets[-1], _EOS, np.uint16)
    _copy(data, starts, offsets, ids)
    return offsets, ids


@numba.njit(nogil=True, cache=True)
def _mix(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def _choose(offsets: np.ndarray, ids: np.ndarray, salt: np.uint64, bound: np.uint64, chosen: np.ndarray) -> None:
    for row in range(len(ids)):
        document = _mix(ids[row] + salt)
        for place in range(offsets[row + 1] - offsets[row]):
            value = _mix(document + np.uint64(place) * np.uint64(0x9E3779B97F4A7C15))
            chosen[offsets[row] - offsets[0] + place] = value <= bound


@numba.njit(nogil=True, cache=True)
def _copy(data: np.ndarray, starts: np.ndarray, offsets: np.ndarray, ids: np.ndarray) -> None:
    for row in range(len(starts)):
        first = offsets[row] + 1
        for place in range(offsets[row + 1] - first):
            ids[first + place] = data[starts[row] + place]
