"""The tokenize stage: documents to ids, one part at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.compress import unigram_entropy
from seqmill.errors import UserError
from seqmill.manifest import MANIFEST, STATE_FOLDER, open_manifest, write_manifest
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Unit,
    UnitResult,
    part_references,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.patching import PATCHER_FOLDER, put_patcher, remove_patcher, scored_batches, with_entropies
from seqmill.storage import read_arrow, read_json, with_metadata, write_arrow
from seqmill.tokenizers_ext import Encoder, append_id, copy_artifact, id_type, load
from seqmill.tokenizers_ext.patching import PatchConfig, load_patcher, patch_lengths

TOKENIZER_FOLDER = "tokenizer"  # inside tokens and packed folders: data carries the tokenizer it was made with
MOST_SOURCES = 2**15 - 1  # the range of the source column of packed rows
LARGEST_DOCUMENT = 2**32 - 1  # bytes: the range of the num_bytes column


@dataclass(frozen=True)
class TokenizeConfig:
    """`[tokenize]`: how documents become ids."""

    append_eos: bool = True  # put the end-of-document id behind every document
    patching: PatchConfig | None = None  # for byte tokenizers: add a column patch_lengths


def tokenize(
    documents: Path, tokenizer: Path, config: TokenizeConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    """Encode a documents folder into a tokens folder that carries its tokenizer; returns the manifest.

    With `config.patching`, the folder carries its patcher too, and a column patch_lengths list<uint16> says how the ids
    of each document divide into patches; the end-of-document id is one of its own.

    Raises:
        UserError: the tokenizer cannot be read, has no end-of-document id although one is to be appended, or is to make
            patches and its ids are no bytes.
    """
    manifest = open_manifest(documents, "documents")
    encoder = load(tokenizer)
    if config.append_eos and "eos" not in encoder.special_ids:
        raise UserError(
            f"{tokenizer} has no end-of-document id that seqmill knows; set tokenize.append_eos = false, "
            'or name the id in the artifact\'s seqmill.json under "special_ids"'
        )
    if config.patching and encoder.kind != "byte":
        raise UserError(
            f"tokenize.patching cuts bytes into patches, but {tokenizer} is of kind {encoder.kind!r}; give a tokenizer "
            "of kind 'byte', or leave the patching out"
        )
    prepare_folder(out)
    artifact = out / TOKENIZER_FOLDER
    put_tokenizer(tokenizer, out, describe_tokenizer(encoder))
    made_with = {"append_eos": config.append_eos}
    patching = _put_patcher(documents, config.patching, out, executor, progress)
    shared = {"tokenizer": str(artifact), **describe_tokenizer(encoder), "config": made_with, **patching}
    parts = with_entropies(config.patching, part_references(documents, manifest))
    units = [Unit(part, {"part": part, **read, **shared}) for part, read in parts.items()]
    records = run_units("tokenize", encode_part, units, out, executor, progress)
    counts = np.zeros(encoder.vocab_size, np.int64)
    for record in records:
        counts += read_arrow(out / record.stats["counts"])["count"].to_numpy()
    counted = ("documents", "bytes", "tokens", *(["patches"] if patching else []))
    totals = {key: sum(record.stats[key] for record in records) for key in counted}
    if patching:
        totals["bytes_per_patch"] = round(totals["bytes"] / max(1, totals["patches"]), 4)
    sources = sorted({source for record in records for source in record.stats["sources"]})
    if len(sources) > MOST_SOURCES:
        raise UserError(
            f"the documents have {len(sources)} sources, packed rows can tell {MOST_SOURCES} apart; set ingest.source, "
            "or name a coarser ingest.source_field"
        )
    return write_manifest(
        out,
        "tokens",
        [file for record in records for file in record.files if file.name.startswith("part-")],
        stage="tokenize",
        documents=manifest["fingerprint"],
        config=made_with,
        **patching,
        vocab_size=encoder.vocab_size,
        tokenizer=describe_tokenizer(encoder),
        sources=sources,
        totals={
            **totals,
            "bytes_per_token": round(totals["bytes"] / max(1, totals["tokens"]), 4),
            "unigram_entropy_nats": round(unigram_entropy(counts), 6),
            "ids_used": int((counts > 0).sum()),
        },
    )


def _put_patcher(
    documents: Path, config: PatchConfig | None, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    """{"patching": what manifests, payloads and files say about the patcher in OUT/patcher}, or nothing."""
    if config is None:
        remove_patcher(out)
        return {}
    return {"patching": put_patcher(documents, config, out, executor, progress)}


def put_tokenizer(tokenizer: Path, out: Path, described: Mapping[str, Any]) -> None:
    """Copy a tokenizer into a folder of tokens or rows. A manifest that names another one is withdrawn first, so that
    no folder is ever finished with a tokenizer that did not make its ids."""
    if (out / MANIFEST).is_file() and read_json(out / MANIFEST).get("tokenizer") != described:
        (out / MANIFEST).unlink()
    copy_artifact(tokenizer, out / TOKENIZER_FOLDER)


def describe_tokenizer(encoder: Encoder) -> dict[str, Any]:
    """What manifests say about the tokenizer behind their ids."""
    return {
        "kind": encoder.kind,
        "fingerprint": encoder.fingerprint,
        "special_ids": dict(encoder.special_ids),
    }


def encode_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Encode one documents part; leaves how often each id occurs beside the record."""
    encoder = load(payload["tokenizer"])
    eos = encoder.special_ids["eos"] if payload["config"]["append_eos"] else None
    ids = id_type(encoder.vocab_size)
    fields = {"doc_id": pa.uint64(), "input_ids": pa.list_(ids), "num_bytes": pa.uint32(), "source": pa.string()}
    entries = {"tokenizer": encoder.fingerprint, "vocab_size": encoder.vocab_size, **payload["config"]}
    totals = {"documents": 0, "bytes": 0, "tokens": 0}
    patcher = None
    if "patching" in payload:
        patcher = load_patcher(Path(payload["tokenizer"]).parent / PATCHER_FOLDER)
        fields["patch_lengths"] = pa.list_(pa.uint16())
        entries["patching"] = payload["patching"]
        totals["patches"] = 0
    schema = with_metadata(pa.schema(fields), "tokens", **entries)
    counts = np.zeros(encoder.vocab_size, np.int64)
    sources: set[str] = set()

    def token_batches() -> Iterator[pa.RecordBatch]:
        """The ids of every batch of documents; what the record says of them is added up on the way."""
        for batch, entropies in scored_batches(payload):
            text = batch.column("text")
            num_bytes = pc.binary_length(text).to_numpy(zero_copy_only=False)
            check_sizes(batch, num_bytes)
            lists = encoder.encode(text)
            lists = lists if eos is None else append_id(lists, eos)
            flat = lists.flatten().to_numpy()
            counts[:] += np.bincount(flat, minlength=len(counts))
            totals["documents"] += len(batch)
            totals["bytes"] += int(num_bytes.sum())
            totals["tokens"] += len(flat)
            sources.update(batch.column("source").unique().to_pylist())
            columns = [batch.column("doc_id"), lists, pa.array(num_bytes.astype(np.uint32)), batch.column("source")]
            if patcher:
                patches = patch_lengths(text, patcher, entropies)
                totals["patches"] += len(patches.values)
                columns.append(patches if eos is None else append_id(patches, 1))  # the end is a patch of its own
            yield pa.record_batch(columns, schema=schema)

    name = f"{payload['part']}.arrow"
    rows = write_arrow(out / name, schema, token_batches())
    counted = pa.schema({"count": pa.int64()})
    counts_name = f"{STATE_FOLDER}/counts-{name}"
    write_arrow(out / counts_name, counted, [pa.record_batch([pa.array(counts)], schema=counted)])
    files = {name: rows, counts_name: len(counts)}
    return UnitResult(files, {**totals, "sources": sorted(sources), "counts": counts_name})


def check_sizes(batch: pa.RecordBatch, num_bytes: np.ndarray) -> None:
    """Refuse documents whose size the num_bytes column cannot hold.

    Raises:
        UserError: there is one.
    """
    if len(num_bytes) and num_bytes.max() > LARGEST_DOCUMENT:
        worst = int(num_bytes.argmax())
        raise UserError(
            f"document {batch.column('doc_id')[worst]} has {num_bytes[worst]} bytes, more than the {LARGEST_DOCUMENT} "
            "that the num_bytes column holds; cut it before ingest"
        )
