"""The units that act on what was found: removed.parquet, and every documents part without its removed documents."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqmill.pipeline.dedup.candidates import require_memory
from seqmill.pipeline.dedup.exchange import look_up
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import UnitResult
from seqmill.pipeline.removed import INPUT, REMOVED, REMOVED_SCHEMA
from seqmill.storage import atomic_path, read_arrow, with_metadata, write_arrow

REASONS = ("exact", "near", "holdout")
HOLDOUT = "holdout"  # `kept_from` of holdout documents
REMOVAL_BYTES = 108  # of memory per removed document in `decide`
OVERLAP = ("source", "kept_from", "kept_source")  # a cell of the overlap matrix
CLUSTER_COLUMNS = ("cluster_id", "cluster_size")


def decide(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Bring all removals together: by position of the removed document, and followers by position of the leader.

    The kept copy of an exact duplicate may itself be removed as a near one: its leader is then the leader of both.
    """
    rows = sum(file["rows"] for name in REASONS for file in payload[name])
    require_memory(f"{rows:,} removed documents", rows * REMOVAL_BYTES, payload["memory"])
    removals = [_read_removals(payload[name], reason) for reason, name in enumerate(REASONS)]
    near_gone, near_kept = removals[1]["removed"], removals[1]["kept"]
    order = np.argsort(near_gone)
    near_gone, near_kept = near_gone[order], near_kept[order]
    for table in removals:
        table["leader"] = table["kept"].copy()
        moved = np.isin(table["kept"], near_gone)
        table["leader"][moved] = near_kept[np.searchsorted(near_gone, table["kept"][moved])]
    columns = {name: np.concatenate([table[name] for table in removals]) for name in removals[0]}
    order = np.argsort(columns["removed"])
    table = pa.table({name: values[order] for name, values in columns.items()}).combine_chunks()
    leaders, followers = np.unique(columns["leader"], return_counts=True)
    sizes = pa.table({"leader": leaders, "followers": followers}).combine_chunks()
    files = {
        "removals.arrow": write_arrow(out / "removals.arrow", table.schema, table.to_batches()),
        "sizes.arrow": write_arrow(out / "sizes.arrow", sizes.schema, sizes.to_batches()),
    }
    return UnitResult(files)


def _read_removals(files: Sequence[Mapping[str, Any]], reason: int) -> dict[str, np.ndarray]:
    tables = [read_arrow(Path(file["path"])) for file in files]
    found = {
        name: np.concatenate([np.empty(0, np.int64), *(table[name].to_numpy() for table in tables)]).astype(np.int64)
        for name in ("removed", "kept")
    }
    rows = len(found["removed"])
    similarity = np.ones(rows, np.float32)
    if REASONS[reason] != "exact":
        similarity = np.concatenate([np.empty(0, np.float32), *(table["similarity"].to_numpy() for table in tables)])
    return {**found, "similarity": similarity, "reason": np.full(rows, reason, np.int8)}


def evidence(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Write removed.parquet, a row group for each part that lost documents, in the order of doc_id.

    `payload["sketches"]` lists one file per part, in the order of positions: {"path", "first", "rows", "kept_from"},
    where "kept_from" says "input", "holdout", or which generation of the index the part belongs to.
    """
    removals = read_arrow(Path(payload["removals"]["path"]))
    positions = removals["removed"].to_numpy()
    sketches = payload["sketches"]
    overlap: dict[tuple[str, ...], list[int]] = {}
    with (
        atomic_path(out / REMOVED) as temporary,
        pq.ParquetWriter(temporary, REMOVED_SCHEMA, compression="zstd") as file,
    ):
        for part in sketches:
            low, high = np.searchsorted(positions, [part["first"], part["first"] + part["rows"]])
            if low == high:
                continue
            mine = removals.slice(low, high - low)
            gone = look_up(mine["removed"].to_numpy(), sketches, ("doc_id", "id", "source", "num_bytes"))
            kept = look_up(mine["kept"].to_numpy(), sketches, ("doc_id", "id", "source"))
            kept_from = _labels(mine["kept"].to_numpy(), sketches)
            reason = pa.array(REASONS).take(mine["reason"].combine_chunks())
            columns = [gone["doc_id"], gone["id"], reason, kept["doc_id"], kept["id"], kept_from, mine["similarity"]]
            cluster_id = _cluster_ids(mine["leader"].to_numpy(), sketches)
            file.write_table(pa.table([*columns, cluster_id], schema=REMOVED_SCHEMA))
            _add_overlap(overlap, gone["source"], kept_from, kept["source"], gone["num_bytes"])
    rows = [
        {**dict(zip(OVERLAP, names, strict=True)), "documents": documents, "bytes": num_bytes}
        for names, (documents, num_bytes) in sorted(overlap.items())
    ]
    return UnitResult({REMOVED: len(removals)}, {"overlap": rows})


def _labels(positions: np.ndarray, sketches: Sequence[Mapping[str, Any]]) -> pa.Array:
    firsts = np.array([part["first"] for part in sketches], np.int64)
    return pa.array([part["kept_from"] for part in sketches]).take(
        pa.array(np.searchsorted(firsts, positions, side="right") - 1)
    )


def _cluster_ids(leaders: np.ndarray, sketches: Sequence[Mapping[str, Any]]) -> pa.Array:
    """The doc_id of the leader; null when it is none of the input's, whose doc_ids alone are unique here."""
    is_input = pc.equal(_labels(leaders, sketches), INPUT)
    doc_id = look_up(leaders, sketches, ("doc_id",))["doc_id"].combine_chunks()
    return pc.if_else(is_input, doc_id, pa.scalar(None, pa.uint64()))


def _add_overlap(overlap: dict[tuple[str, ...], list[int]], *columns: pa.Array) -> None:
    """Add removed documents and their bytes (the last of `columns`) to the cell of their source and of the one kept."""
    pairs = pa.table(list(columns), names=[*OVERLAP, "bytes"])
    for row in pairs.group_by(list(OVERLAP)).aggregate([("bytes", "count"), ("bytes", "sum")]).to_pylist():
        cell = overlap.setdefault(tuple(row[name] for name in OVERLAP), [0, 0])
        cell[0] += row["bytes_count"]
        cell[1] += row["bytes_sum"]


def filter_documents(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """One documents part without its removed documents, with cluster_id and cluster_size."""
    first = payload["first"]
    gone, reasons = _of_part(payload["removals"], "removed", "reason", first, payload["documents"]["rows"])
    leaders, followers = _of_part(payload["sizes"], "leader", "followers", first, payload["documents"]["rows"])
    source = Path(payload["documents"]["path"])
    schema = pa.ipc.open_stream(pa.memory_map(str(source))).schema
    passed_on = [name for name in schema.names if name not in CLUSTER_COLUMNS]  # those of an earlier dedup are replaced
    schema = pa.schema([schema.field(name) for name in passed_on])
    schema = schema.append(pa.field("cluster_id", pa.uint64())).append(pa.field("cluster_size", pa.uint32()))
    schema = with_metadata(schema, "documents", config=dict(payload["config"]))
    stats: dict[str, dict[str, dict[str, int]]] = {}

    def kept_batches() -> Iterator[pa.RecordBatch]:
        """The documents that stay, with their clusters; those that go are counted on the way."""
        begin = first
        for batch in document_batches(source):
            reason = np.full(len(batch), len(REASONS), np.int8)
            low, high = np.searchsorted(gone, [begin, begin + len(batch)])
            reason[gone[low:high] - begin] = reasons[low:high]
            size = np.ones(len(batch), np.uint32)
            low, high = np.searchsorted(leaders, [begin, begin + len(batch)])
            size[leaders[low:high] - begin] += followers[low:high].astype(np.uint32)
            _count(stats, batch, pa.array((*REASONS, "kept")).take(pa.array(reason)))
            is_kept = reason == len(REASONS)
            kept = batch.select(passed_on).filter(pa.array(is_kept))
            begin += len(batch)
            yield pa.record_batch([*kept.columns, kept.column("doc_id"), pa.array(size[is_kept])], schema=schema)

    name = f"{payload['part']}.arrow"
    rows = write_arrow(out / name, schema, kept_batches())
    return UnitResult({name: rows}, {"sources": stats})


def _of_part(file: Mapping[str, Any], key: str, value: str, first: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a file sorted by position that concern the documents first .. first + rows - 1."""
    table = read_arrow(Path(file["path"]))
    positions = table[key].to_numpy()
    low, high = np.searchsorted(positions, [first, first + rows])
    return positions[low:high], table[value].to_numpy()[low:high]


def _count(stats: dict[str, dict[str, dict[str, int]]], batch: pa.RecordBatch, reasons: pa.Array) -> None:
    """Add a batch to stats[source][reason] = {documents, bytes}."""
    counted = pa.table(
        {"source": batch.column("source"), "reason": reasons, "bytes": pc.binary_length(batch.column("text"))}
    )
    totals = counted.group_by(["source", "reason"]).aggregate([("bytes", "sum"), ("bytes", "count")])
    for row in totals.to_pylist():
        entry = stats.setdefault(row["source"], {}).setdefault(row["reason"], {"documents": 0, "bytes": 0})
        entry["documents"] += row["bytes_count"]
        entry["bytes"] += row["bytes_sum"]
