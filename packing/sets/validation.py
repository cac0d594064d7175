"""Check a folder of packed sets: rows that are sound, and every instance of every bag in exactly one of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.manifest import MANIFEST
from seqmill.packing.schema import hash_rows
from seqmill.packing.sets.write import KIND, set_schema
from seqmill.packing.validation.files import believing, open_shard, read_manifest
from seqmill.packing.validation.report import Findings, ValidationReport, Violation
from seqmill.packing.validation.segments import Lists, any_of

_LISTS = ("features", "instance", "seq_lengths", "cu_seqlens", "bag", "bag_id", "label")
_PER_SEGMENT = ("seq_lengths", "bag", "bag_id", "label")


def validate_sets(folder: str | Path) -> ValidationReport:
    """Check all shards; 32 bytes of memory per instance. "tokens" of the report are instances.

    Raises:
        UserError: the folder has no readable manifest of packed sets.
    """
    folder = Path(folder)
    findings = Findings()
    manifest = read_manifest(folder, KIND, ("sets", "totals"), findings)
    found: list[npt.NDArray[np.int64]] = []
    row = 0
    with believing(findings):
        for file in manifest["files"]:
            table = open_shard(folder, file, findings)
            for batch in table.to_batches() if table is not None else []:
                found += _check_batch(batch, file["name"], row, manifest["sets"], findings)
                row += batch.num_rows
        held = np.concatenate([np.empty((2, 0), np.int64), *found], axis=1)
        _check_instances(held, manifest["totals"], row, findings)
    instances = sum(part.shape[1] for part in found)
    return ValidationReport(str(folder), len(manifest["files"]), row, instances, findings.violations)


def _check_batch(
    batch: pa.RecordBatch, name: str, row: int, sets: Mapping[str, Any], findings: Findings
) -> list[npt.NDArray[np.int64]]:
    """Check rows by themselves; the bag and number of all their instances, int64[2, n], unless they make no sense."""
    schema = batch.schema
    has_lists = all(column in schema.names and pa.types.is_list(schema.field(column).type) for column in _LISTS)
    types = [schema.field(column).type.value_type for column in ("bag_id", "label")] if has_lists else [pa.null()] * 2
    if schema.remove_metadata() != set_schema(sets["dim"], types[0], types[1], {}).remove_metadata():
        findings.add(Violation("schema", name, None, 1, f"columns {schema.names} are not those of packed sets"))
        return []
    if any(column.null_count for column in batch.columns):
        findings.add(Violation("schema", name, None, 1, "the file has nulls"))
        return []
    lists = {column: Lists.of(batch.column(column)) for column in ("instance", "seq_lengths", "cu_seqlens", "bag")}
    counts = {column: np.diff(batch.column(column).offsets.to_numpy()) for column in _LISTS}
    cu, sizes = lists["cu_seqlens"], counts["instance"]
    rows = np.arange(row, row + batch.num_rows)
    is_residual = rows >= sets["main"]["rows"]
    placed = (batch.column("row_id").to_numpy() != rows) | (
        batch.column("is_residual").to_numpy(zero_copy_only=False) != is_residual
    )
    findings.rows("I7", name, row, placed, "row_id or is_residual is not that of the row")
    wrong = (counts["cu_seqlens"] < 2) | (sizes > sets["capacity"]) | (counts["features"] != sizes)
    for column in _PER_SEGMENT:
        wrong |= counts[column] != counts["cu_seqlens"] - 1
    findings.rows("I1", name, row, wrong, "lists of a row differ in length, or it exceeds the capacity")
    if wrong.any():
        return []
    steps = np.diff(cu.values.astype(np.int64), append=0)
    steps[cu.offsets[1:] - 1] = 1
    bounds = (
        (cu.values[cu.offsets[:-1]] != 0) | (cu.values[cu.offsets[1:] - 1] != sizes) | any_of(steps < 1, cu.offsets)
    )
    findings.rows("I1", name, row, bounds, "cu_seqlens do not run from 0 to the row's instances")
    if bounds.any():
        return []
    lengths: npt.NDArray[np.int64] = np.delete(np.diff(cu.values.astype(np.int64)), cu.offsets[1:-1] - 1)
    unequal = any_of(lists["seq_lengths"].values != lengths, lists["seq_lengths"].offsets)
    unequal |= np.maximum.reduceat(lengths, lists["bag"].offsets[:-1]) != batch.column("max_seqlen").to_numpy()
    findings.rows("I2", name, row, unequal, "seq_lengths or max_seqlen do not follow from cu_seqlens")
    flat = batch.column("features").flatten().flatten().to_numpy().view(np.uint16)
    hashes = hash_rows(flat, lists["instance"].offsets * sets["dim"], cu.values, cu.offsets)
    findings.rows("I10", name, row, hashes != batch.column("xxh3").to_numpy(), "the row does not match its hash")
    return [np.stack([np.repeat(lists["bag"].values, lengths), lists["instance"].values.astype(np.int64)])]


def _check_instances(held: npt.NDArray[np.int64], totals: Mapping[str, Any], rows: int, findings: Findings) -> None:
    """That the instances of each bag are 0 to its size, each once, and that the totals say so."""
    bag, instance = held[:, np.lexsort((held[1], held[0]))]
    begins = np.ones(len(bag), np.bool_)
    begins[1:] = bag[1:] != bag[:-1]
    expected = np.arange(len(bag)) - np.maximum.accumulate(np.where(begins, np.arange(len(bag)), 0))
    wrong = instance != expected
    if wrong.any():
        detail = f"the instances of bag {bag[wrong][0]} are not there once each"
        findings.add(Violation("I4", MANIFEST, None, len(np.unique(bag[wrong])), detail))
    counted = {"bags": int(begins.sum()) + totals["bags_empty"], "instances": len(bag), "rows": rows}
    for name, value in counted.items():
        if totals[name] != value:
            detail = f"{name} is {totals[name]}, the rows have {value}"
            findings.extend([Violation("totals", MANIFEST, None, 1, detail)])
