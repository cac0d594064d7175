"""The dedup stage: exact and verified near duplicates removed, deterministically, unit by unit.

sketch    documents part              -> keys of equal texts and of bands, sorted         (one unit a part)
exact     one range of text keys      -> removals of equal texts                          (one unit a range)
bucket    one range of band keys      -> edges between documents that share a band        (one unit a range)
cluster   all edges                   -> connected components, dealt to verify units      (one unit)
shingle   documents part, clusters    -> shingle sets of the candidates                   (one unit a part)
verify    clusters dealt to it        -> removals of near duplicates                      (as memory allows)
decide    all removals                -> who is removed, for whom, and cluster sizes      (one unit)
evidence  removals                    -> removed.parquet                                  (one unit)
filter    documents part, removals    -> documents part without the removed               (one unit a part)
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.manifest import STATE_FOLDER, open_manifest, write_manifest
from seqmill.pipeline.dedup.candidates import (
    BAND_ROW_BYTES,
    CLUSTER_DOCUMENT_BYTES,
    EXACT_ROW_BYTES,
    bucket,
    cluster,
    exact,
)
from seqmill.pipeline.dedup.config import DedupConfig
from seqmill.pipeline.dedup.evidence import decide, evidence, filter_documents
from seqmill.pipeline.dedup.exchange import count_ranges
from seqmill.pipeline.dedup.sketch import BANDS, DOCUMENTS, EXACT, sketch
from seqmill.pipeline.dedup.verify import shingle, verify
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Record,
    Unit,
    WorkFunction,
    file_reference,
    part_references,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.funnel import add_counts, funnel_entry

SHOWN_SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)

# Settings that a phase does not depend on, as they are told to it: changing them repeats only what they change.
NOT_FOR_REMOVALS: dict[str, Any] = {"memory_mb": DedupConfig.memory_mb, "alarm_share": DedupConfig.alarm_share}
NOT_FOR_CANDIDATES = {**NOT_FOR_REMOVALS, "threshold": DedupConfig.threshold}

log = logging.getLogger("seqmill")


def dedup(documents: Path, config: DedupConfig, out: Path, executor: Executor, progress: Progress) -> dict[str, Any]:
    """Remove duplicates from a documents folder.

    Args:
        documents: a finished folder of documents.
        out: receives part-*.arrow (with cluster_id, cluster_size), removed.parquet and manifest.json.

    Returns:
        The manifest: funnel, totals, per-source table, and what the preset can be expected to find.
    """
    manifest = open_manifest(documents, "documents")
    total = sum(file["rows"] for file in manifest["files"])
    memory = config.memory_mb * 2**20
    _require_memory(total, memory)
    prepare_folder(out)
    state = out / STATE_FOLDER
    parts = _parts(documents, manifest)
    found_by = {"config": {**asdict(config), **NOT_FOR_CANDIDATES}}  # the threshold can change without a new sketch
    decided_by = {"config": {**asdict(config), **NOT_FOR_REMOVALS}}

    def units(name: str, work: WorkFunction, payloads: Mapping[str, Any], folder: Path = state) -> list[Record]:
        listed = [Unit(unit, payload) for unit, payload in payloads.items()]
        return run_units(f"dedup {name}", work, listed, folder, executor, progress)

    def each_part(name: str, work: WorkFunction, folder: Path, shared: Any, more: Any = None) -> list[Record]:
        payloads = {part: {**payload, **shared, **(more or {}).get(part, {})} for part, payload in parts.items()}
        return units(name, work, payloads, folder)

    def each_range(name: str, work: WorkFunction, kind: str, row_bytes: int, **shared: Any) -> list[dict[str, Any]]:
        ranges = count_ranges(sum(file["rows"] for file in sketches[kind]), row_bytes, memory)
        payloads = {
            f"{name}-{k:05d}": {
                "name": f"{name}-{k:05d}",
                "range": k,
                "ranges": ranges,
                "files": sketches[kind],
                **shared,
            }
            for k in range(ranges)
        }
        records = units(name, work, payloads)
        largest.append(max(record.stats.get("largest", 0) for record in records))
        return _files(records, state)

    largest: list[int] = []
    sketches = _by_kind(each_part("sketch", sketch, state / "sketch", found_by), parts, state / "sketch")
    exact_files = each_range("exact", exact, EXACT, EXACT_ROW_BYTES) if config.exact else []
    edges = each_range("bucket", bucket, BANDS, BAND_ROW_BYTES, documents=total, exact=exact_files)
    inputs = {"documents": total, "edges": edges, "sketches": sketches[DOCUMENTS], "memory": memory}
    clusters = units("cluster", cluster, {"cluster": inputs})[0]
    cluster_file, count = file_reference(state, clusters.files[0]), clusters.stats["units"]
    own = {part: {"sketch": file} for part, file in zip(parts, sketches[DOCUMENTS], strict=True)}
    shared = {**found_by, "clusters": cluster_file, "units": count}
    sets = _files(each_part("shingle", shingle, state / "shingle", shared, own), state / "shingle")
    chosen = {
        f"verify-{k:05d}": {"name": f"verify-{k:05d}", "unit": k, "shingles": sets, **decided_by} for k in range(count)
    }
    verified = units("verify", verify, chosen)
    near_files = _files(verified, state)
    decided = units("decide", decide, {"decide": {"exact": exact_files, "near": near_files}})[0]
    removals, sizes = (file_reference(state, file) for file in decided.files)
    told = {"evidence": {"removals": removals, "sketches": sketches[DOCUMENTS]}}
    removed = units("evidence", evidence, told, out)[0]
    kept = each_part("filter", filter_documents, out, {**decided_by, "removals": removals, "sizes": sizes})
    verification = {
        "candidates": clusters.stats["candidates"],
        "candidate_clusters_up_to": clusters.stats["candidate_clusters_up_to"],
        "largest_bucket": largest[-1],
        "kept_after_verification": sum(record.stats["kept_after_verification"] for record in verified),
        "capped_buckets": sum(record.stats["capped_buckets"] for record in verified),
    }
    return _publish(out, config, kept, verification, removed.stats["overlap"])


def _require_memory(documents: int, memory: int) -> None:
    """Refuse a corpus whose clusters cannot be found within the budget; all other steps are cut to fit it."""
    needed = documents * CLUSTER_DOCUMENT_BYTES
    if needed > memory:
        raise UserError(
            f"{documents:,} documents need {-(-needed // 2**20):,} MiB to be clustered ({CLUSTER_DOCUMENT_BYTES} bytes "
            f"each), dedup.memory_mb allows {memory // 2**20:,}; raise it, or deduplicate smaller sets"
        )


def _parts(documents: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Part name -> what its units are told: its file, its rows, and the position of its first document."""
    parts, first = {}, 0
    references = part_references(documents, manifest)
    for file, (part, reference) in zip(manifest["files"], references.items(), strict=True):
        parts[part] = {"part": part, "documents": {**reference, "rows": file["rows"]}, "first": first}
        first += file["rows"]
    return parts


def _by_kind(
    records: Sequence[Record], parts: Mapping[str, Mapping[str, Any]], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """The files of the sketch units by kind, in the order of the parts, each with its part's first position."""
    found: dict[str, list[dict[str, Any]]] = {DOCUMENTS: [], EXACT: [], BANDS: []}
    for record, part in zip(records, parts.values(), strict=True):
        for file in record.files:
            reference = {**file_reference(folder, file), "rows": file.rows, "first": part["first"]}
            found[file.name.split(".")[-2]].append(reference)
    return found


def _files(records: Sequence[Record], folder: Path) -> list[dict[str, Any]]:
    return [file_reference(folder, file) for record in records for file in record.files]


def _publish(
    out: Path,
    config: DedupConfig,
    kept: Sequence[Record],
    verification: Mapping[str, Any],
    overlap: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Write the manifest; the funnel has one line for exact and one for near duplicates."""
    sources: dict[str, dict[str, dict[str, int]]] = {}
    totals: dict[str, dict[str, int]] = {reason: {"documents": 0, "bytes": 0} for reason in ("exact", "near", "kept")}
    for record in kept:
        for source, reasons in record.stats["sources"].items():
            for reason, count in reasons.items():
                add_counts(sources.setdefault(source, {}).setdefault(reason, {}), count)
                add_counts(totals[reason], count)
    entered = {unit: sum(total[unit] for total in totals.values()) for unit in ("documents", "bytes")}
    exact = funnel_entry("exact dedup", entered, {"exact": totals["exact"]})
    left = {"documents": exact["documents_out"], "bytes": exact["bytes_out"]}
    decided = {**asdict(config), **NOT_FOR_REMOVALS}
    return write_manifest(
        out,
        "documents",
        [file for record in kept for file in record.files],
        stage="dedup",
        config=decided,
        funnel=[exact, funnel_entry("near dedup", left, {"near": totals["near"]})],
        totals=totals["kept"],
        by_source=sources,
        alarms=_alarms(sources, config.alarm_share),
        overlap=list(overlap),
        verification=dict(verification),
        expected_recall={str(s): round(config.recipe.recall(s), 4) for s in SHOWN_SIMILARITIES},
    )


def _alarms(sources: Mapping[str, Mapping[str, Mapping[str, int]]], most: float) -> list[dict[str, Any]]:
    """The sources that lost more than the share `most` of their documents, each also logged as a warning."""
    alarms = []
    for source, reasons in sorted(sources.items()):
        entered = sum(count["documents"] for count in reasons.values())
        share = 1 - reasons.get("kept", {"documents": 0})["documents"] / entered
        if share > most:
            alarms.append({"source": source, "documents": entered, "removed_share": round(share, 6)})
            log.warning(
                "source %r lost %.1f %% of its %d documents, more than dedup.alarm_share = %s; look at "
                "removed.parquet, or narrow dedup.scope",
                source,
                100 * share,
                entered,
                most,
            )
    return alarms
