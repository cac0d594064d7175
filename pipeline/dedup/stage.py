"""The dedup stage: exact and verified near duplicates removed, deterministically, unit by unit."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqmill.manifest import STATE_FOLDER, open_manifest, write_manifest
from seqmill.pipeline.dedup import work
from seqmill.pipeline.dedup.config import DedupConfig
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
    prepare_folder(out)
    settings = {"config": asdict(config)}
    parts = part_references(documents, manifest)

    def each_part(name: str, function: WorkFunction, folder: Path, **shared: Any) -> list[Record]:
        units = [Unit(part, {"part": part, "documents": file, **shared, **settings}) for part, file in parts.items()]
        return run_units(f"dedup {name}", function, units, folder, executor, progress)

    def once(name: str, function: WorkFunction, folder: Path, **inputs: Any) -> Record:
        unit = Unit(name, {**inputs, **settings})
        return run_units(f"dedup {name}", function, [unit], folder, executor, progress)[0]

    state = out / STATE_FOLDER
    sketches = each_part("sketch", work.sketch, state / "sketch")
    clusters = once("cluster", work.cluster, state, sketches=_files(sketches, state / "sketch"))
    cluster_file = file_reference(state, clusters.files[0])
    sets = each_part("shingle", work.shingle, state / "shingle", clusters=cluster_file)
    removed = once("verify", work.verify, out, clusters=cluster_file, shingles=_files(sets, state / "shingle"))
    kept = each_part("filter", work.filter_documents, out, removed=file_reference(out, removed.files[0]))
    return _publish(out, config, kept, removed)


def _files(records: Sequence[Record], folder: Path) -> list[dict[str, Any]]:
    return [file_reference(folder, file) for record in records for file in record.files]


def _publish(out: Path, config: DedupConfig, kept: Sequence[Record], removed: Record) -> dict[str, Any]:
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
    verification = dict(removed.stats)
    overlap = _merge_overlap(verification.pop("overlap"))
    return write_manifest(
        out,
        "documents",
        [file for record in kept for file in record.files],
        stage="dedup",
        config=asdict(config),
        funnel=[exact, funnel_entry("near dedup", left, {"near": totals["near"]})],
        totals=totals["kept"],
        by_source=sources,
        alarms=_alarms(sources, config.alarm_share),
        overlap=overlap,
        verification=verification,
        expected_recall={str(s): round(config.recipe.recall(s), 4) for s in SHOWN_SIMILARITIES},
    )


def _merge_overlap(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The matrix of sources: documents and bytes of `source` removed for a document of `kept_source`, in order."""
    cells: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        add_counts(cells.setdefault((row["source"], row["kept_source"]), {}), row)
    return [{"source": source, "kept_source": kept, **cells[source, kept]} for source, kept in sorted(cells)]


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
