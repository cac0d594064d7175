"""The substrings stage: repeated spans cut out or counted, deterministically, unit by unit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqmill.manifest import STATE_FOLDER, OutputFile, open_manifest, write_manifest
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Record,
    Unit,
    file_reference,
    part_references,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.funnel import add_counts, funnel_entry
from seqmill.pipeline.removed import REMOVED
from seqmill.pipeline.substrings import work
from seqmill.pipeline.substrings.config import SubstringConfig
from seqmill.storage import hash_file, write_json


def cut_substrings(
    documents: Path, config: SubstringConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    """Mark the later copies of repeated spans in a documents folder, and cut them out or count them.

    Args:
        documents: a finished folder of documents; their order decides which copy is the first.
        out: receives part-*.arrow (action "annotate": with duplicate_bytes uint64), spans.parquet (doc_id, id, start,
            stop, kept_doc_id, kept_id, kept_start: bytes start to stop of the input text are marked, and stand in the
            input text of the earlier document from kept_start on), removed.parquet (as of dedup: reason "substring",
            similarity the share of bytes that were marked, kept_doc_id that of the longest span) and manifest.json.

    Returns:
        The manifest: funnel, totals, by_source (kept, substring: lost, duplicate: marked), duplicates (spans, and
        marked documents and bytes), occurrences (the same by how often the content occurs, in powers of two).

    Raises:
        UserError: the comparison does not fit `config.memory_mb`.
    """
    manifest = open_manifest(documents, "documents")
    prepare_folder(out)
    state = out / STATE_FOLDER
    parts = _with_bases(manifest, part_references(documents, manifest))
    shared = {"min_bytes": config.min_bytes}

    sampling = [Unit(part, {"part": part, "documents": file, **shared}) for part, file in parts.items()]
    samples = run_units("substrings sample", work.sample, sampling, state / "anchors", executor, progress)

    found = _index(
        state / "find.json",
        documents=list(parts.values()),
        anchors=_files(samples, state / "anchors", lambda name: name.count(".") == 1),
    )
    counts = sum((np.array(record.stats["anchors"]) for record in samples), np.zeros(work.KEY_RANGES, np.int64))
    ranges = work.key_ranges(counts.tolist(), config.min_bytes, config.memory_mb)
    finding = [
        Unit(f"range-{k:05d}", {"name": f"range-{k:05d}", "key_ranges": list(one), "index": found, **shared})
        for k, one in enumerate(ranges)
    ]
    copies = run_units("substrings find", work.find, finding, state / "copies", executor, progress)

    tables = _files(samples, state / "anchors", lambda name: name.endswith(".documents.arrow"))
    repeats = _files(samples, state / "anchors", lambda name: name.endswith(".repeats.arrow"))
    bases = [file["base"] for file in parts.values()]
    evidence = _index(
        state / "cut.json",
        tables=[{**table, "base": base} for table, base in zip(tables, bases, strict=True)],
        copies=_files(copies, state / "copies"),
    )
    cutting = [
        Unit(
            part,
            {
                "part": part,
                "documents": file,
                "repeats": repeated,
                "index": evidence,
                "memory_mb": config.memory_mb,
                "config": config.shaping(),
            },
        )
        for (part, file), repeated in zip(parts.items(), repeats, strict=True)
    ]
    kept = run_units("substrings cut", work.cut, cutting, out, executor, progress)

    collected = {
        name: _files(kept, out, lambda file, stem=Path(name).stem: file.startswith(f"{STATE_FOLDER}/{stem}-"))
        for name in (work.SPANS, REMOVED)
    }
    run_units("substrings collect", work.collect, [Unit("evidence", collected)], out, executor, progress)
    return _publish(out, config, kept)


def _with_bases(manifest: Mapping[str, Any], parts: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The references with the place of each file's first byte: the bytes of the files before it."""
    sizes = [OutputFile(**file).bytes for file in manifest["files"]]
    bases = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[:-1].astype(int).tolist()
    return {part: {**file, "base": base} for (part, file), base in zip(parts.items(), bases, strict=True)}


def _files(records: Sequence[Record], folder: Path, chosen: Any = lambda name: True) -> list[dict[str, Any]]:
    return [file_reference(folder, file) for record in records for file in record.files if chosen(file.name)]


def _index(path: Path, **lists: Any) -> dict[str, Any]:
    """Write what many units share to a file, so that their payloads stay short."""
    write_json(path, lists)
    return {"path": str(path), "xxh3_128": hash_file(path)}


def _publish(out: Path, config: SubstringConfig, kept: Sequence[Record]) -> dict[str, Any]:
    sources: dict[str, dict[str, dict[str, int]]] = {}
    totals: dict[str, dict[str, int]] = {
        name: {"documents": 0, "bytes": 0} for name in ("kept", work.REASON, "duplicate")
    }
    occurrences: dict[str, dict[str, int]] = {}
    for record in kept:
        for source, entries in record.stats["sources"].items():
            for name, count in entries.items():
                add_counts(sources.setdefault(source, {}).setdefault(name, {}), count)
                add_counts(totals[name], count)
        for bucket, count in record.stats["occurrences"].items():
            add_counts(occurrences.setdefault(bucket, {}), count)
    entered = {unit: totals["kept"][unit] + totals[work.REASON][unit] for unit in ("documents", "bytes")}
    lost = {work.REASON: totals[work.REASON]} if config.action == "cut" else {}
    return write_manifest(
        out,
        "documents",
        [file for record in kept for file in record.files if file.name.startswith("part-")],
        stage="substrings",
        config=config.shaping(),
        funnel=[funnel_entry("substrings", entered, lost)],
        totals=totals["kept"],
        by_source=sources,
        duplicates={**totals["duplicate"], "spans": sum(record.stats["spans"] for record in kept)},
        occurrences=dict(sorted(occurrences.items(), key=lambda item: int(item[0].partition("-")[0]))),
    )
