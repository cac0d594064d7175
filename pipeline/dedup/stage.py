"""The dedup stage: exact and verified near duplicates removed, deterministically, unit by unit.

sketch     documents part              -> keys of equal texts and of bands, sorted         (one unit a part)
reference  holdout documents           -> their keys, shingles and runs of words           (one unit, with a holdout)
match      documents part, reference   -> removals for holdout documents                   (one unit a part)
exact      one range of text keys      -> removals of equal texts                          (one unit a range)
bucket     one range of band keys      -> edges between documents that share a band        (one unit a range)
cluster    all edges                   -> connected components, dealt to verify units      (one unit)
shingle    documents part, clusters    -> shingle sets of the candidates                   (one unit a part)
verify     clusters dealt to it        -> removals of near duplicates                      (as memory allows)
decide     all removals                -> who is removed, for whom, and cluster sizes      (one unit)
evidence   removals                    -> removed.parquet                                  (one unit)
filter     documents part, removals    -> documents part without the removed               (one unit a part)
remember   filtered part, its sketch   -> what the index keeps of it                       (the same, with an index)

Documents are numbered through: those of the index first, then the input's, then the holdout's.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from seqmill.errors import UserError
from seqmill.manifest import MANIFEST, STATE_FOLDER, open_manifest, write_manifest
from seqmill.pipeline.dedup.candidates import (
    BAND_ROW_BYTES,
    CLUSTER_DOCUMENT_BYTES,
    EXACT_ROW_BYTES,
    bucket,
    cluster,
    exact,
)
from seqmill.pipeline.dedup.config import DedupConfig
from seqmill.pipeline.dedup.evidence import HOLDOUT, REASONS, decide, evidence, filter_documents
from seqmill.pipeline.dedup.holdout import MATCHES, REFERENCE_FILES, match, reference
from seqmill.pipeline.dedup.index import KINDS, Index, Part, begin_generation, open_index, remember, write_generation
from seqmill.pipeline.dedup.phases import Phases, References, files_of
from seqmill.pipeline.dedup.sketch import BANDS, DOCUMENTS, EXACT, KEY_VERSION, sketch
from seqmill.pipeline.dedup.verify import shingle, verify
from seqmill.pipeline.execution import Executor, Progress, Record, file_reference, part_references, prepare_folder
from seqmill.pipeline.funnel import add_counts, funnel_entry
from seqmill.pipeline.ingest import IngestConfig, ingest
from seqmill.pipeline.normalise import NormaliseConfig
from seqmill.pipeline.removed import INPUT
from seqmill.storage import FORMAT_VERSION, fingerprint

SHOWN_SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)

# Settings that a phase does not depend on, as they are told to it: changing them repeats only what they change.
NOT_FOR_REMOVALS: dict[str, Any] = {
    name: getattr(DedupConfig, name) for name in ("memory_mb", "alarm_share", "holdout", "index")
}
NOT_FOR_CANDIDATES = NOT_FOR_REMOVALS | {
    name: getattr(DedupConfig, name) for name in ("threshold", "containment", "holdout_ngram", "holdout_share")
}
NOT_FOR_THE_INDEX = NOT_FOR_CANDIDATES | {name: getattr(DedupConfig, name) for name in ("source_priority",)}

log = logging.getLogger("seqmill")


@dataclass(frozen=True)
class Comparison:
    """What takes part: the documents in order of position, and what is known of them."""

    config: DedupConfig
    phases: Phases
    parts: tuple[Part, ...]  # of the index, then of the input
    sketches: Mapping[str, References]  # kind -> one file per part
    fresh: int  # position of the input's first document
    total: int  # documents of the index and of the input

    @property
    def decided_by(self) -> dict[str, Any]:
        """The settings that decide about removals, for payloads."""
        return {"config": {**asdict(self.config), **NOT_FOR_REMOVALS}}

    @property
    def found_by(self) -> dict[str, Any]:
        """The settings that decide which candidates there are, for payloads."""
        return {"config": {**asdict(self.config), **NOT_FOR_CANDIDATES}}

    @property
    def new(self) -> list[int]:
        """The indices of the input's parts."""
        return [k for k, part in enumerate(self.parts) if part.kept_from == INPUT]

    @property
    def new_parts(self) -> list[Part]:
        """The input's parts."""
        return [self.parts[k] for k in self.new]

    def sketch_of(self, k: int) -> dict[str, Any]:
        """The sketch of part `k`, by kind."""
        return {kind: self.sketches[kind][k] for kind in KINDS}


@dataclass(frozen=True)
class Holdout:
    """What is held out, ready to be compared with."""

    files: References  # documents, bands, runs: see `holdout.reference`
    counts: dict[str, int]


def dedup(documents: Path, config: DedupConfig, out: Path, executor: Executor, progress: Progress) -> dict[str, Any]:
    """Remove duplicates from a documents folder.

    Args:
        documents: a finished folder of documents.
        out: receives part-*.arrow (with cluster_id, cluster_size), removed.parquet and manifest.json.

    Returns:
        The manifest: funnel, totals, per-source table, and what the preset can be expected to find.

    Raises:
        UserError: the documents, the index or the holdout set do not fit the settings or the memory.
    """
    manifest = open_manifest(documents, "documents")
    prepare_folder(out)
    phases = Phases(out / STATE_FOLDER, config.memory_mb * 2**20, executor, progress)
    held_out = _read_holdout(config, phases, out) if config.holdout else None
    with _index_of(config, manifest, held_out, out) as index:
        compared = _sketch(documents, manifest, config, phases, index)
        matches, matched = _match_holdout(compared, held_out) if held_out else ([], {})
        exact_files, near_files, verification = _find_duplicates(compared, matches)
        told = {"exact": exact_files, "near": near_files, "holdout": matches, "memory": phases.memory}
        decided = phases.run("decide", decide, {"decide": told})[0]
        removals, sizes = (file_reference(phases.state, file) for file in decided.files)
        removed = _write_evidence(compared, held_out, removals, out)
        shared = {**compared.decided_by, "removals": removals, "sizes": sizes}
        kept = phases.over_parts("filter", filter_documents, compared.new_parts, out, shared)
        if index is not None:
            _remember(compared, index, kept, removals, out)
    found = {"verification": verification, "overlap": removed.stats["overlap"], "holdout": matched}
    if index is not None:
        found["index"] = {"documents_before": index.documents, "generation": index.generation}
    return _publish(out, config, kept, found)


def _index_of(config: DedupConfig, manifest: Mapping[str, Any], held_out: Holdout | None, out: Path) -> Any:
    """The configured index, held while in use, or None."""
    if config.index is None:
        return nullcontext()
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_FOR_THE_INDEX}
    settings |= {"format_version": FORMAT_VERSION, "key_version": KEY_VERSION}
    held = [file["xxh3_128"] for file in held_out.files] if held_out else []
    decided = fingerprint([asdict(config) | NOT_FOR_REMOVALS, held])
    made_from = {"documents": manifest["fingerprint"], "settings": decided}
    return open_index(Path(config.index).absolute(), settings, made_from, out)


def _remember(
    compared: Comparison, index: Index, kept: Sequence[Record], removals: Mapping[str, Any], out: Path
) -> None:
    """Add what is kept to the index."""
    begin_generation(index, out)
    own = [
        {"kept": file, "sketches": compared.sketch_of(k)}
        for k, file in zip(compared.new, files_of(kept, out), strict=True)
    ]
    told = {"removals": removals}
    write_generation(
        index, compared.phases.over_parts("remember", remember, compared.new_parts, index.folder, told, own)
    )


def _sketch(
    documents: Path, manifest: Mapping[str, Any], config: DedupConfig, phases: Phases, index: Index | None
) -> Comparison:
    """Number the documents and sketch those of the input."""
    fresh = index.documents if index else 0
    parts, first = [], fresh
    for file, (name, found) in zip(manifest["files"], part_references(documents, manifest).items(), strict=True):
        parts.append(Part(name, {**found, "rows": file["rows"]}, first, INPUT))
        first += file["rows"]
    _require_memory(first, phases.memory)
    held = index.sketches if index else {kind: [] for kind in KINDS}
    compared = Comparison(config, phases, (*(index.parts if index else ()), *parts), held, fresh, first)
    folder = phases.state / "sketch"
    sketches = {kind: list(held[kind]) for kind in KINDS}
    for record, part in zip(phases.over_parts("sketch", sketch, parts, folder, compared.found_by), parts, strict=True):
        for file in record.files:
            known = {**file_reference(folder, file), "rows": file.rows, "first": part.first}
            sketches[file.name.split(".")[-2]].append(known)
    return replace(compared, sketches=sketches)


def _read_holdout(config: DedupConfig, phases: Phases, out: Path) -> Holdout:
    """Everything that documents are compared with for the holdout; raw files are ingested into OUT/holdout first."""
    folder, quarantined = Path(config.holdout[0]).absolute(), 0
    if len(config.holdout) > 1 or not (folder / MANIFEST).is_file():
        folder = out / HOLDOUT
        try:
            found = ingest(IngestConfig(config.holdout), NormaliseConfig(), folder, phases.executor, phases.progress)
        except UserError as error:
            raise UserError(
                f"dedup.holdout: {error}; where ingest needs settings, run `seqmill ingest` and hold out its folder"
            ) from error
        quarantined = found["quarantined"]["documents"]
    parts = list(part_references(folder, open_manifest(folder, "documents")).values())
    decided_by = {"config": {**asdict(config), **NOT_FOR_REMOVALS}}
    state = phases.state / HOLDOUT
    told = {"parts": parts, "memory": phases.memory, **decided_by}
    made = phases.run("reference", reference, {"reference": told}, state)[0]
    files = {file.name: {**file_reference(state, file), "rows": file.rows} for file in made.files}
    return Holdout([files[name] for name in REFERENCE_FILES], {**made.stats, "quarantined": quarantined})


def _match_holdout(compared: Comparison, held_out: Holdout) -> tuple[References, dict[str, Any]]:
    """The removals of documents that match the holdout, and what was counted."""
    folder = compared.phases.state / HOLDOUT / "match"
    shared = {**compared.decided_by, "reference": held_out.files, "holdout_first": compared.total}
    own = [{"sketches": compared.sketch_of(k)} for k in compared.new]
    records = compared.phases.over_parts("match", match, compared.new_parts, folder, shared, own)
    counts = {kind: sum(record.stats[kind] for record in records) for kind in MATCHES}
    return files_of(records, folder), {**held_out.counts, "removed": counts}


def _find_duplicates(compared: Comparison, gone: References) -> tuple[References, References, dict[str, Any]]:
    """The removals of equal and of similar documents among those not yet gone, and what was counted."""
    config, phases, sketches = compared.config, compared.phases, compared.sketches
    if not config.compares:
        return [], [], {}
    where = {"documents": compared.total, "fresh": compared.fresh}
    exact_files: References = []
    if config.exact:
        found = phases.over_ranges("exact", exact, sketches[EXACT], EXACT_ROW_BYTES, {**where, "gone": gone})
        exact_files = files_of(found, phases.state)
    told = {**where, "gone": [*gone, *exact_files]}
    buckets = phases.over_ranges("bucket", bucket, sketches[BANDS], BAND_ROW_BYTES, told)
    edges = {
        **where,
        "bands": config.recipe.bands,
        "edges": files_of(buckets, phases.state),
        "sketches": sketches[DOCUMENTS],
    }
    clusters = phases.run("cluster", cluster, {"cluster": {**edges, "memory": phases.memory}})[0]
    verified = _verify(compared, file_reference(phases.state, clusters.files[0]), clusters.stats["units"])
    verification = {
        "candidates": clusters.stats["candidates"],
        "candidate_clusters_up_to": clusters.stats["candidate_clusters_up_to"],
        "largest_bucket": max(record.stats["largest"] for record in buckets),
        "kept_after_verification": sum(record.stats["kept_after_verification"] for record in verified),
        "capped_buckets": sum(record.stats["capped_buckets"] for record in verified),
    }
    return exact_files, files_of(verified, phases.state), verification


def _verify(compared: Comparison, clusters: Mapping[str, Any], units: int) -> list[Record]:
    """Compare the members of each cluster."""
    phases, folder = compared.phases, compared.phases.state / "shingle"
    own = [{"sketches": compared.sketch_of(k)} for k in range(len(compared.parts))]
    shared = {**compared.found_by, "clusters": clusters, "units": units}
    sets = files_of(phases.over_parts("shingle", shingle, compared.parts, folder, shared, own), folder)
    told = {"shingles": sets, "fresh": compared.fresh, **compared.decided_by}
    names = [f"verify-{k:05d}" for k in range(units)]
    return phases.run("verify", verify, {name: {"name": name, "unit": k, **told} for k, name in enumerate(names)})


def _write_evidence(compared: Comparison, held_out: Holdout | None, removals: Mapping[str, Any], out: Path) -> Record:
    labelled = [
        {**file, "kept_from": part.kept_from}
        for file, part in zip(compared.sketches[DOCUMENTS], compared.parts, strict=True)
    ]
    if held_out:
        labelled.append({**held_out.files[0], "first": compared.total, "kept_from": HOLDOUT})
    told = {"removals": removals, "sketches": labelled}
    return compared.phases.run("evidence", evidence, {"evidence": told}, out)[0]


def _require_memory(documents: int, memory: int) -> None:
    """Refuse a corpus whose clusters cannot be found within the budget, before any work."""
    needed = documents * CLUSTER_DOCUMENT_BYTES
    if needed > memory:
        raise UserError(
            f"{documents:,} documents need {-(-needed // 2**20):,} MiB to be clustered ({CLUSTER_DOCUMENT_BYTES} bytes "
            f"each), dedup.memory_mb allows {memory // 2**20:,}; raise it, or deduplicate smaller sets"
        )


def _publish(out: Path, config: DedupConfig, kept: Sequence[Record], found: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest; the funnel has a line for the holdout, for exact and for near duplicates."""
    sources: dict[str, dict[str, dict[str, int]]] = {}
    totals: dict[str, dict[str, int]] = {reason: {"documents": 0, "bytes": 0} for reason in (*REASONS, "kept")}
    for record in kept:
        for source, reasons in record.stats["sources"].items():
            for reason, count in reasons.items():
                add_counts(sources.setdefault(source, {}).setdefault(reason, {}), count)
                add_counts(totals[reason], count)
    entered = {unit: sum(total[unit] for total in totals.values()) for unit in ("documents", "bytes")}
    funnel: list[dict[str, Any]] = []
    for reason in ("holdout", "exact", "near") if config.holdout else ("exact", "near"):
        funnel.append(funnel_entry(f"{reason} dedup", entered, {reason: totals[reason]}))
        entered = {unit: funnel[-1][f"{unit}_out"] for unit in ("documents", "bytes")}
    decided = {**asdict(config), **NOT_FOR_REMOVALS}
    return write_manifest(
        out,
        "documents",
        [file for record in kept for file in record.files],
        stage="dedup",
        config=decided,
        funnel=funnel,
        totals=totals["kept"],
        by_source=sources,
        alarms=_alarms(sources, config.alarm_share),
        **found,
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
