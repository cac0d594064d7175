"""The split stage: documents held out for evaluation, chosen by a seeded hash, stratified by source.

    survey every part -> choose groups (one unit) -> filter every part into OUT/train, and into OUT/holdout

A group is kept on one side: the documents of one duplicate cluster where the folder has `cluster_id`, else the copies
of one document. It counts for the source of its document with the smallest id.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.manifest import STATE_FOLDER, open_manifest, write_manifest
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Record,
    Unit,
    UnitResult,
    file_reference,
    part_references,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.funnel import UNITS, add_counts, check_funnel, funnel_entry
from seqmill.pipeline.mixing.apportion import exact, largest_remainder
from seqmill.pipeline.mixing.columns import Int64s, check_columns, num_bytes
from seqmill.pipeline.mixing.config import SplitConfig
from seqmill.pipeline.mixing.keys import UInt64s, choice_keys
from seqmill.storage import read_arrow, with_metadata, write_arrow

SIDES = ("train", "holdout")
HOLDOUT = "groups.arrow"
_GROUPS = pa.schema({"group": pa.uint64()})
_SURVEY = pa.schema({"group": pa.uint64(), "doc_id": pa.uint64(), "source": pa.int32()})
_CHOICE_BYTES = 64  # that choosing holds per document


def split(
    documents: Path, config: SplitConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Divide a documents folder into OUT/train and OUT/holdout; returns both manifests by side.

    Each manifest holds the files, a funnel (what went to the other side is its reason), totals and by_source; that of
    the holdout also "wanted", documents per source, and "deviation", which is not 0 only where whole groups do not
    add up to the wanted number.

    Raises:
        UserError: more documents are to be held out than there are, or choosing needs more memory than allowed.
    """
    manifest = open_manifest(documents, "documents")
    for side in SIDES:
        prepare_folder(out / side)
    parts = part_references(documents, manifest)
    state = out / STATE_FOLDER
    units = [Unit(part, {"name": part, "part": file}) for part, file in parts.items()]
    surveys = run_units("split survey", survey_groups, units, state / "survey", executor, progress)
    payload = {
        "surveys": [
            {**file_reference(state / "survey", record.files[0]), "sources": record.stats["sources"]}
            for record in surveys
        ],
        "config": asdict(config),
    }
    chosen = run_units("split choose", choose_groups, [Unit("choose", payload)], state, executor, progress)[0]
    groups = file_reference(state, chosen.files[0])
    records = {}
    for side in SIDES:
        shared = {"groups": groups, "side": side, "config": asdict(config)}
        units = [Unit(part, {"name": part, "part": file, **shared}) for part, file in parts.items()]
        records[side] = run_units(f"split {side}", filter_part, units, out / side, executor, progress)
    return _publish(out, config, records, chosen.stats["wanted"])


def survey_groups(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Group, id and source of every document of one part; the statistics name the sources."""
    names: dict[str, int] = {}

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in document_batches(Path(payload["part"]["path"])):
            check_columns(batch.schema, "documents", payload["part"]["path"])
            source = batch.column("source").cast(pa.string())
            for name in source.unique().to_pylist():
                names.setdefault(name, len(names))
            codes = pc.index_in(source, pa.array(list(names), pa.string()))
            yield pa.record_batch([pa.array(groups_of(batch)), batch.column("doc_id"), codes], schema=_SURVEY)

    name = f"{payload['name']}.arrow"
    rows = write_arrow(out / name, _SURVEY, batches())
    return UnitResult({name: rows}, {"sources": list(names)})


def groups_of(batch: pa.RecordBatch) -> UInt64s:
    """The group of each document, uint64[rows]: its cluster, or itself."""
    doc_ids = batch.column("doc_id")
    if "cluster_id" not in batch.schema.names:
        return doc_ids.to_numpy()
    return pc.coalesce(batch.column("cluster_id").cast(pa.uint64()), doc_ids).to_numpy()


def choose_groups(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Choose the groups to hold out, and write them sorted."""
    config = SplitConfig(**payload["config"])
    sources = sorted({name for survey in payload["surveys"] for name in survey["sources"]})
    tables = [(read_arrow(Path(survey["path"])), survey["sources"]) for survey in payload["surveys"]]
    documents = sum(len(table) for table, _ in tables)
    _check(config, documents)
    place = {name: position for position, name in enumerate(sources)}
    source = _joined(
        [np.array([place[name] for name in names], np.int64)[table["source"].to_numpy()] for table, names in tables],
        np.int64,
    )
    groups, first_source, sizes = _grouped(
        _joined([table["group"].to_numpy() for table, _ in tables], np.uint64),
        _joined([table["doc_id"].to_numpy() for table, _ in tables], np.uint64),
        source,
    )
    counts = np.bincount(source, minlength=len(sources)).tolist()
    total = config.documents or round(exact(config.fraction or 0.0) * documents)
    wanted = largest_remainder(total, [Fraction(count) for count in counts])
    order = np.lexsort((choice_keys(groups, config.seed, "holdout"), first_source))
    ends = np.searchsorted(first_source[order], np.arange(len(sources) + 1))
    held = [fitting(order[ends[position] : ends[position + 1]], sizes, count) for position, count in enumerate(wanted)]
    chosen = np.sort(groups[_joined(held, np.int64)])
    rows = write_arrow(out / HOLDOUT, _GROUPS, [pa.record_batch([pa.array(chosen)], schema=_GROUPS)])
    return UnitResult({HOLDOUT: rows}, {"wanted": dict(zip(sources, wanted, strict=True))})


def fitting(order: Int64s, sizes: Int64s, room: int) -> Int64s:
    """The groups that fill `room` documents: in this order, each that still fits, int64[...].

    Groups of one document fill it exactly. Example: sizes 2, 3, 1 in this order and room 3 -> the first and the third.
    """
    reached = np.cumsum(sizes[order])
    count = int(np.searchsorted(reached, room, "right"))  # all that fit without a gap, at once
    room -= int(reached[count - 1]) if count else 0
    chosen = [order[:count]]
    while room and count < len(order):
        later = np.flatnonzero(sizes[order[count:]] <= room)
        if not len(later):
            break
        count += int(later[0])
        chosen.append(order[count : count + 1])
        room -= int(sizes[order[count]])
        count += 1
    return np.concatenate(chosen)


def filter_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """The documents of one part that are on one side, as they are; counts what stays and what goes, by source."""
    path = Path(payload["part"]["path"])
    held = read_arrow(Path(payload["groups"]["path"]))["group"].combine_chunks().to_numpy()
    with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
        schema = reader.schema.remove_metadata()
    schema = with_metadata(schema, "documents", split=payload["config"], side=payload["side"])
    stats: dict[str, dict[str, dict[str, int]]] = {side: {} for side in SIDES}

    def kept() -> Iterator[pa.RecordBatch]:
        for batch in document_batches(path):
            groups = groups_of(batch)
            place = np.minimum(np.searchsorted(held, groups), max(0, len(held) - 1))
            is_held = held[place] == groups if len(held) else np.zeros(len(groups), bool)
            _count(stats, batch, is_held)
            rows = batch.filter(pa.array(is_held if payload["side"] == "holdout" else ~is_held))
            yield pa.record_batch(rows.columns, schema=schema)

    name = f"{payload['name']}.arrow"
    return UnitResult({name: write_arrow(out / name, schema, kept())}, stats)


def _check(config: SplitConfig, documents: int) -> None:
    if config.documents is not None and config.documents > documents:
        raise UserError(
            f"split.documents = {config.documents}, but there are {documents}; hold out fewer, or give a fraction"
        )
    if documents * _CHOICE_BYTES > config.memory_mb << 20:
        raise UserError(
            f"split.memory_mb = {config.memory_mb}: choosing among {documents} documents needs "
            f"{-(-documents * _CHOICE_BYTES >> 20)} MiB; raise it, or split fewer documents at a time"
        )


def _grouped(groups: UInt64s, doc_ids: UInt64s, source: Int64s) -> tuple[UInt64s, Int64s, Int64s]:
    """Distinct groups in increasing order, the source of each one's smallest id, and its number of documents."""
    order = np.lexsort((doc_ids, groups))
    distinct, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    return distinct, source[order[first]], sizes


def _joined(arrays: Sequence[np.ndarray], dtype: npt.DTypeLike) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *arrays])


def _count(stats: dict[str, dict[str, dict[str, int]]], batch: pa.RecordBatch, is_held: np.ndarray) -> None:
    """Add a batch to stats[side][source] = {documents, bytes}."""
    table = pa.table({"source": batch.column("source"), "held": is_held, "bytes": num_bytes(batch)})
    for row in table.group_by(["source", "held"]).aggregate([("bytes", "sum"), ("bytes", "count")]).to_pylist():
        count = {"documents": row["bytes_count"], "bytes": row["bytes_sum"]}
        add_counts(stats[SIDES[row["held"]]].setdefault(row["source"], {}), count)


def _publish(
    out: Path, config: SplitConfig, records: Mapping[str, Sequence[Record]], wanted: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Write both manifests; what is missing on one side is on the other."""
    by_source: dict[str, dict[str, dict[str, int]]] = {side: {} for side in SIDES}
    for record in records["train"]:
        for side in SIDES:
            for source, count in record.stats[side].items():
                add_counts(by_source[side].setdefault(source, {}), count)
    sums = {side: {unit: sum(count[unit] for count in by_source[side].values()) for unit in UNITS} for side in SIDES}
    entered = {unit: sums["train"][unit] + sums["holdout"][unit] for unit in UNITS}
    held = {
        "wanted": wanted,
        "deviation": sums["holdout"]["documents"] - sum(wanted.values()),
    }
    manifests = {}
    for side, other in (SIDES, SIDES[::-1]):
        files = [file for record in records[side] for file in record.files]
        assert sum(file.rows for file in files) == sums[side]["documents"], (side, sums)
        funnel = [funnel_entry("split", entered, {f"to {other}": sums[other]})]
        check_funnel(funnel)
        manifests[side] = write_manifest(
            out / side,
            "documents",
            files,
            stage="split",
            side=side,
            config=asdict(config),
            funnel=funnel,
            totals=sums[side],
            by_source={source: by_source[side][source] for source in sorted(by_source[side])},
            **(held if side == "holdout" else {}),
        )
    return manifests
