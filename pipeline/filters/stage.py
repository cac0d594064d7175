"""The filter stage: documents in, fewer and cleaner documents out, every loss with one counted reason."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqmill.manifest import open_manifest, write_manifest
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
from seqmill.pipeline.filters import work
from seqmill.pipeline.filters.config import FilterConfig
from seqmill.pipeline.filters.language import require_language_model
from seqmill.pipeline.filters.masking import require_phone_numbers
from seqmill.pipeline.funnel import check_funnel, merge_entries


def filter_documents(
    documents: Path, config: FilterConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    """Remove and rewrite the documents of a folder.

    Args:
        documents: a finished folder of documents; all its columns pass through.
        out: receives part-*.arrow (with language and language_score if they are identified), removed.parquet (doc_id,
            id, source, reason, value, limit; one row group a part, in doc_id order) and manifest.json.

    Returns:
        The manifest, of kind "documents". Besides the files it holds:
        funnel: one entry. A removed document counts with all the bytes it came with under the first rule that fired.
            Reasons with 0 documents are bytes that changes took from kept documents: dropped lines, white space, and
            masked items, which are negative where the placeholders are longer than what they replace.
        totals: documents and bytes kept.
        by_source: the same counts for each source, those kept under "kept".
        masked: source -> kind -> items, removed_bytes (of the items), inserted_bytes (of the placeholders).

    Raises:
        UserError: `documents` is no finished documents folder, or a package that the configuration needs is missing.
    """
    manifest = open_manifest(documents, "documents")
    require_packages(config)
    prepare_folder(out)
    settings = asdict(config)
    units = [
        Unit(part, {"part": part, "documents": file, "config": settings})
        for part, file in part_references(documents, manifest).items()
    ]
    parts = run_units("filter", work.filter_part, units, out, executor, progress)
    lost = [file_reference(out, file) for part in parts for file in part.files if file.name == part.stats["removed"]]
    run_units("filter removed", work.collect_removed, [Unit("removed", {"removed": lost})], out, executor, progress)
    return _publish(out, settings, parts)


def require_packages(config: FilterConfig) -> None:
    """Find out before any work whether what the configuration needs is installed.

    Raises:
        UserError: a package is missing.
    """
    if config.language.enabled:
        require_language_model()
    if "phone" in config.mask.kinds:
        require_phone_numbers()


def _publish(out: Path, settings: Mapping[str, Any], parts: Sequence[Record]) -> dict[str, Any]:
    entry = merge_entries("filter", [part.stats["funnel"] for part in parts])
    check_funnel([entry])
    return write_manifest(
        out,
        "documents",
        [file for part in parts for file in part.files if file.name.startswith("part-")],
        stage="filter",
        config=settings,
        funnel=[entry],
        totals={"documents": entry["documents_out"], "bytes": entry["bytes_out"]},
        by_source=_merged([part.stats["by_source"] for part in parts]),
        masked=_merged([part.stats["masked"] for part in parts]),
    )


def _merged(tables: Sequence[Mapping[str, Mapping[str, Mapping[str, int]]]]) -> dict[str, dict[str, dict[str, int]]]:
    """The sum of tables of counts: source -> reason or kind -> unit -> number."""
    total: dict[str, dict[str, dict[str, int]]] = {}
    for table in tables:
        for source, entries in table.items():
            for name, count in entries.items():
                sums = total.setdefault(source, {}).setdefault(name, dict.fromkeys(count, 0))
                for unit, number in count.items():
                    sums[unit] += number
    return total
