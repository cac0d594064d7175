"""Check folders of documents and of tokens, file by file; packed rows have their own checks (seqmill.packing.validate).

    schema    columns, types and metadata; no nulls where readers allow none
    I10       files match their hashes and can be read; texts are UTF-8
    I3        0 <= token < vocabulary
    doc_id    equal ids stand for equal documents: copies, and nothing else
    totals    the manifest's totals are those of the rows
    manifest  the manifest matches its fingerprint and lists all parts
    tokenizer the folder's own tokenizer is the one that the manifest names

Ids need not rise: mixing shuffles documents and repeats some of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.manifest import MANIFEST
from seqmill.packing import ValidationReport, Violation
from seqmill.packing.schema import token_dtype
from seqmill.packing.validation.files import believing, check_metadata, open_shard, read_manifest
from seqmill.packing.validation.report import Findings
from seqmill.pipeline.repeats.windows import START
from seqmill.pipeline.tokenize import TOKENIZER_FOLDER, describe_tokenizer
from seqmill.tokenizers_ext import load

_DOCUMENTS = {"doc_id": (pa.uint64(),), "text": (pa.large_string(),), "source": (pa.string(),)}


def validate_documents(folder: Path) -> ValidationReport:
    """Check all parts of a documents folder; 16 bytes of memory per document.

    Raises:
        UserError: the folder has no readable manifest of documents.
    """
    findings = Findings()
    manifest = read_manifest(folder, "documents", (), findings)
    ids, sizes = [], []
    for _, table in _tables(folder, manifest, _DOCUMENTS, findings):
        ids.append(table["doc_id"].to_numpy())
        sizes.append(pc.binary_length(table["text"]).to_numpy())
    doc_ids, num_bytes = _joined(ids, np.uint64), _joined(sizes, np.int64)
    _check_copies(doc_ids, num_bytes, "bytes", findings)
    _check_totals(manifest, {"documents": len(doc_ids), "bytes": int(num_bytes.sum())}, findings)
    return ValidationReport(str(folder), len(manifest["files"]), len(doc_ids), 0, findings.violations)


def validate_tokens(folder: Path) -> ValidationReport:
    """Check all parts of a tokens folder; 32 bytes of memory per document.

    Raises:
        UserError: the folder has no readable manifest of tokens.
    """
    findings = Findings()
    manifest = read_manifest(folder, "tokens", ("vocab_size", "tokenizer", "sources"), findings)
    rows = tokens = 0
    with believing(findings):
        rows, tokens = _check_tokens(folder, manifest, findings)
    return ValidationReport(str(folder), len(manifest["files"]), rows, tokens, findings.violations)


def _check_tokens(folder: Path, manifest: Mapping[str, Any], findings: Findings) -> tuple[int, int]:
    """The checks of every part; documents and tokens."""
    ids_type = pa.list_(pa.from_numpy_dtype(token_dtype(manifest["vocab_size"])))
    columns: dict[str, tuple[pa.DataType, ...]] = {
        "doc_id": (pa.uint64(),),
        "input_ids": (ids_type,),
        "num_bytes": (pa.uint32(),),
        "source": (pa.string(), pa.large_string()),
    }
    written = {"vocab_size": manifest["vocab_size"], "tokenizer": manifest["tokenizer"]["fingerprint"]}
    ids: list[np.ndarray] = []
    sizes, lengths = [], []
    are_parts = manifest.get("stage") == "excerpts"  # of documents, which share their ids, as windows do
    for file, table in _tables(folder, manifest, columns, findings):
        check_metadata(file["name"], table.schema, written, findings)
        first_row = sum(map(len, ids))
        _check_ids(file["name"], first_row, table, manifest["vocab_size"], findings)
        are_parts |= START in table.column_names
        unknown = pc.invert(pc.is_in(table["source"], pa.array(manifest["sources"], table["source"].type)))
        findings.rows("schema", file["name"], first_row, unknown.to_numpy(), "a source that the manifest does not list")
        ids.append(table["doc_id"].to_numpy())
        sizes.append(table["num_bytes"].to_numpy().astype(np.int64))
        lengths.append(pc.list_value_length(table["input_ids"]).to_numpy().astype(np.int64))
    doc_ids, num_bytes, tokens = _joined(ids, np.uint64), _joined(sizes, np.int64), _joined(lengths, np.int64)
    if not are_parts:
        _check_copies(doc_ids, tokens, "tokens", findings)
    counted = {"documents": len(doc_ids), "bytes": int(num_bytes.sum()), "tokens": int(tokens.sum())}
    _check_totals(manifest, counted, findings)
    return counted["documents"], counted["tokens"]


def _tables(
    folder: Path, manifest: Mapping[str, Any], columns: Mapping[str, tuple[pa.DataType, ...]], findings: Findings
) -> Iterator[tuple[Mapping[str, Any], pa.Table]]:
    """The files that can be read and have these columns, without nulls; whatever else is noted."""
    for file in manifest["files"]:
        table = open_shard(folder, file, findings)
        if table is None:
            continue
        for name, types in columns.items():
            found = table.schema.field(name).type if table.schema.names.count(name) == 1 else None
            detail = f"column {name!r} has type {found}, {types[0]} is needed" if found not in types else ""
            if not detail and _null_count(table[name]):
                detail = f"column {name!r} has nulls"
            if detail:
                findings.add(Violation("schema", file["name"], None, 1, detail))
                break
        else:
            yield file, table


def _null_count(column: pa.ChunkedArray) -> int:
    """Nulls, those inside lists included."""
    inside = sum(chunk.values.null_count for chunk in column.chunks if pa.types.is_list(column.type))
    return int(column.null_count + inside)


def _check_ids(name: str, first_row: int, table: pa.Table, vocab_size: int, findings: Findings) -> None:
    for batch in table.to_batches():
        column = batch.column("input_ids")
        flat = column.flatten().to_numpy()
        if len(flat) and flat.max() >= vocab_size:
            ends = np.concatenate([[0], np.cumsum(pc.list_value_length(column).to_numpy())])
            outside = np.concatenate([[0], np.cumsum(flat >= vocab_size)])[ends]
            detail = f"a token is not below the vocabulary of {vocab_size}"
            findings.rows("I3", name, first_row, np.diff(outside) > 0, detail)
        first_row += batch.num_rows


def tokenizer_faults(folder: Path, described: Any) -> Iterator[Violation]:
    """Whether the tokenizer in a folder of tokens or rows can be loaded, and is the one that its manifest names.

    Args:
        described: the manifest's entry "tokenizer".
    """
    name = f"{TOKENIZER_FOLDER}/"
    try:
        encoder = load(folder / TOKENIZER_FOLDER)
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        yield Violation("tokenizer", name, None, 1, f"it cannot be loaded: {error}")
        return
    if describe_tokenizer(encoder) != described:
        yield Violation("tokenizer", name, None, 1, "it is not the one that the manifest names")


def _check_copies(doc_ids: np.ndarray, sizes: np.ndarray, unit: str, findings: Findings) -> None:
    """Documents that share an id are copies: they have the same size."""
    order = np.argsort(doc_ids, kind="stable")
    same = doc_ids[order][1:] == doc_ids[order][:-1]
    wrong = same & (sizes[order][1:] != sizes[order][:-1])
    if wrong.any():
        culprit = doc_ids[order][1:][wrong][0]
        detail = f"several documents have the id {culprit}, with different numbers of {unit}"
        findings.add(Violation("doc_id", MANIFEST, None, int(wrong.sum()), detail))


def _check_totals(manifest: Mapping[str, Any], counted: Mapping[str, int], findings: Findings) -> None:
    for name, value in counted.items():
        listed = manifest.get("totals", {}).get(name, value)
        if listed != value:
            detail = f"{name} is {listed}, the rows have {value}"
            findings.extend([Violation("totals", MANIFEST, None, 1, detail)])


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts])
