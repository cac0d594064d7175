"""The two passes of a shuffle, and the one of a mix that keeps its order.

deal    part, plan       -> its document copies as sorted runs, and where in them output parts begin (a unit a part)
gather  all runs, plan   -> one output part: a hash range of all copies, sorted               (a unit an output part)
pass_on part, plan, copy -> one output part: the rows of the part that have this copy, in input order

The order of the whole output is the order of (key, doc_id, copy), where key is a hash of seed, doc_id and copy: it does
not depend on how parts are cut, on the budget or on workers. A run is made of a piece of a part that fits the budget,
and of as many passes over it ("first copies", "second copies", ...) as its sorting keys leave room for.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import UnitResult
from seqmill.pipeline.mixing.columns import (
    COPY,
    ID_COLUMNS,
    Int64s,
    as_one_batch,
    bounded_slices,
    bounded_takes,
)
from seqmill.pipeline.mixing.keys import UInt64s, order_keys
from seqmill.pipeline.mixing.plan import BIN_BITS, CopyCounter, largest_part
from seqmill.pipeline.records import BATCH_BYTES
from seqmill.storage import read_arrow, read_json, with_metadata, write_arrow

KEY = "seqmill_order_key"  # column of runs, never of outputs
_KEY_BYTES = 48  # that a copy takes while its run is sorted: key, row, number, order, and their sorted forms
_STARTS = pa.schema({"start": pa.int64()})


def deal_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Sort the copies of one part's documents into runs.

    Writes NAME.arrow (the runs, one after the other, with columns for key and copy) and NAME.starts.arrow (for each
    run, the row where each output part begins, and where the run ends: int64[runs * (parts + 1)]).
    """
    plan = read_json(Path(payload["plan"]["path"]))
    piece_bytes = largest_part(payload["memory_mb"])
    begins = np.array(plan["part_starts"], np.uint64) << np.uint64(64 - BIN_BITS)
    schema = _schema_of(payload).append(pa.field(KEY, pa.uint64())).append(pa.field(COPY, pa.uint32()))
    copies_of = CopyCounter(plan, payload["seed"])
    starts: list[Int64s] = []

    def runs() -> Iterator[pa.RecordBatch]:
        written = 0
        for piece in _pieces(payload, piece_bytes):
            doc_ids = piece.column("doc_id").to_numpy()
            for rows, copies, keys in _passes(doc_ids, copies_of(piece), payload["seed"], piece_bytes):
                starts.append(written + np.append(np.searchsorted(keys, begins), len(keys)))
                done = 0
                for taken in bounded_takes(piece, rows, min(piece_bytes, BATCH_BYTES)):
                    here = slice(done, done + len(taken))
                    own = [pa.array(keys[here]), pa.array(copies[here])]
                    yield pa.record_batch([*taken.columns, *own], schema=schema)
                    done += len(taken)
                written += done

    name = payload["name"]
    rows = write_arrow(out / f"{name}.arrow", schema, runs())
    flat = pa.array(np.concatenate([np.empty(0, np.int64), *starts]))
    write_arrow(out / f"{name}.starts.arrow", _STARTS, [pa.record_batch([flat], schema=_STARTS)])
    return UnitResult({f"{name}.arrow": rows, f"{name}.starts.arrow": len(flat)})


def _passes(
    doc_ids: UInt64s, copies: Int64s, seed: int, most_bytes: int
) -> Iterator[tuple[Int64s, npt.NDArray[np.uint32], UInt64s]]:
    """(row, copy, key) of all copies of a piece's documents in runs sorted by key, each with keys of at most
    `most_bytes` (or of one pass).

    Args:
        copies: int64[documents], how many each document has.
    """
    most = int(copies.max(initial=0))
    at_once = max(1, most_bytes // (_KEY_BYTES * max(1, len(copies))))
    for first in range(0, most, at_once):
        passes = range(first, min(first + at_once, most))
        rows_of = [np.flatnonzero(copies > copy) for copy in passes]
        keys = np.concatenate(
            [order_keys(doc_ids[rows], copy, seed) for copy, rows in zip(passes, rows_of, strict=True)]
        )
        numbers = np.repeat(np.array(passes, np.uint32), [len(rows) for rows in rows_of])
        order = np.argsort(keys)
        yield np.concatenate(rows_of)[order], numbers[order], keys[order]


def gather_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Write one output part: its hash range of all runs, in the order of (key, doc_id, copy)."""
    plan = read_json(Path(payload["plan"]["path"]))
    pieces = []
    for name in payload["parts"]:
        run = Path(payload["runs"]) / name
        starts = read_arrow(run.with_suffix(".starts.arrow"))["start"].to_numpy()
        starts = starts.reshape(-1, len(plan["part_starts"]) + 1)
        table = read_arrow(run.with_suffix(".arrow"))
        ranges = starts[:, payload["index"] : payload["index"] + 2].tolist()
        pieces += [table.slice(first, last - first) for first, last in ranges] or [table]
    batch = as_one_batch(pa.concat_tables(pieces))
    order = sorted_rows(*(batch.column(name).to_numpy() for name in (KEY, "doc_id", COPY)))
    rows = batch.drop_columns([KEY] if plan["repeated"] else [KEY, COPY])
    schema = with_metadata(rows.schema, payload["kind"], **payload["metadata"])
    most = min(largest_part(payload["memory_mb"]), BATCH_BYTES)
    written = (pa.record_batch(taken.columns, schema=schema) for taken in bounded_takes(rows, order, most))
    name = f"{payload['name']}.arrow"
    return UnitResult({name: write_arrow(out / name, schema, written)})


def pass_on_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Write the documents of one part that have copy number `copy`, in input order."""
    plan = read_json(Path(payload["plan"]["path"]))
    schema = _schema_of(payload)
    if plan["repeated"]:
        schema = schema.append(pa.field(COPY, pa.uint32()))
    schema = with_metadata(schema, payload["kind"], **payload["metadata"])
    copies_of = CopyCounter(plan, payload["seed"])

    def kept() -> Iterator[pa.RecordBatch]:
        for piece in _pieces(payload, BATCH_BYTES):
            chosen = piece.filter(pa.array(copies_of(piece) > payload["copy"]))
            copy = pa.repeat(pa.scalar(payload["copy"], pa.uint32()), len(chosen))
            yield pa.record_batch([*chosen.columns, *([copy] if plan["repeated"] else [])], schema=schema)

    name = f"{payload['name']}.arrow"
    return UnitResult({name: write_arrow(out / name, schema, kept())})


def sorted_rows(keys: UInt64s, doc_ids: UInt64s, copies: npt.NDArray[np.uint32]) -> Int64s:
    """The rows in the order of (key, doc_id, copy), int64[rows]."""
    order = np.argsort(keys)
    ordered = keys[order]
    if (ordered[1:] == ordered[:-1]).any():  # two copies of 2^64 places: about once in 2^32 copies
        order = np.lexsort((copies, doc_ids, keys))
    return order


def _pieces(payload: Mapping[str, Any], most_bytes: int) -> Iterator[pa.RecordBatch]:
    """The rows of a part with their final ids, at most `most_bytes` (or one document) at a time."""
    shift = pa.scalar(payload["shift"], pa.uint64())
    schema = _schema_of(payload)
    for whole in document_batches(Path(payload["part"]["path"])):
        for batch in bounded_slices(whole, most_bytes):
            columns = [
                pc.add(column, shift) if name in ID_COLUMNS else column
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            ]
            yield pa.record_batch(columns, schema=schema)


def _schema_of(payload: Mapping[str, Any]) -> pa.Schema:
    """The columns of all inputs, without metadata, as the first part states them."""
    with pa.ipc.open_stream(pa.memory_map(payload["schema_of"])) as reader:
        return reader.schema.remove_metadata()
