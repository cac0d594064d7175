"""The first stage: raw files of many formats become numbered documents in Arrow.

    inputs --discover--> files --cut--> units --read, normalise--> OUT/part-*.arrow + OUT/quarantine/*.jsonl

A document's id is (file ordinal << 40 | row): it depends on the sorted list of files alone. Every unit writes one
part, an empty one if it has no documents, so parts and units have the same numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.manifest import MANIFEST, write_manifest
from seqmill.pipeline import quarantine as quarantines
from seqmill.pipeline.cutting import cut_files, pack_units, segments_from
from seqmill.pipeline.execution import Executor, Progress, Record, UnitResult, prepare_folder, run_units
from seqmill.pipeline.funnel import Funnel, check_funnel, merge_entries
from seqmill.pipeline.normalise import NormaliseConfig, Normaliser
from seqmill.pipeline.quarantine import Quarantine
from seqmill.pipeline.readers import read_segment
from seqmill.pipeline.records import COLUMNS, Fields, Segment, coalesce, document_schema
from seqmill.pipeline.sources import FORMATS, SourceFile, discover, refuse_overlap
from seqmill.storage import with_metadata, write_arrow

BAD = "bad: "  # in front of a quarantine reason in the funnel


@dataclass(frozen=True)
class IngestConfig:
    """Which files to read, and where their records keep what."""

    inputs: tuple[str, ...]  # files, directories, globs, URLs
    text_field: str = "text"  # JSON key or column
    id_field: str = "id"  # optional in the records; rendered as a string
    source_field: str = "source"  # optional in the records; without it, the name of the file
    source: str | None = None  # the source of every document, whatever the records say
    keep_fields: tuple[str, ...] = ()  # further fields to pass through as strings, null where a record has none
    format: str = "auto"  # "auto" goes by extension
    separator: str | None = None  # between the documents of a plain text file; None: one document a file
    unit_bytes: int = 64 << 20  # of input, for one work unit; does not change any document or id
    max_bad_fraction: float = 0.001  # of records that may be unreadable, taken literally: 0 of 10 at 0.001
    quarantine_sample: int = 100  # bad records kept per unit; their counts are always exact

    def __post_init__(self) -> None:
        """Refuse what cannot work before any work."""
        if not self.inputs or not all(self.inputs):
            raise UserError(f"ingest.inputs = {list(self.inputs)}: name at least one file, directory, glob or URL")
        if self.format not in FORMATS:
            raise UserError(f"ingest.format = {self.format!r}: choose one of {', '.join(FORMATS)}")
        if self.separator == "":
            raise UserError("ingest.separator = '': leave it out to read one document a file, or name a text")
        if self.unit_bytes < 1:
            raise UserError(f"ingest.unit_bytes = {self.unit_bytes}: use at least 1; 67108864 (64 MiB) is the default")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"ingest.max_bad_fraction = {self.max_bad_fraction}: use a fraction from 0 to 1")
        if self.quarantine_sample < 0:
            raise UserError(f"ingest.quarantine_sample = {self.quarantine_sample}: use 0 (keep none) or more")
        taken = [name for name in self.keep_fields if name in COLUMNS or self.keep_fields.count(name) > 1]
        if taken:
            raise UserError(
                f"ingest.keep_fields: {taken[0]!r} would be there twice; {', '.join(COLUMNS)} are always columns, and "
                "text_field, id_field and source_field say where they come from"
            )

    def fields(self) -> Fields:
        """The part that readers need."""
        return Fields(
            text=self.text_field,
            id=self.id_field,
            source=self.source_field,
            constant_source=self.source,
            keep=tuple(self.keep_fields),
            separator=self.separator,
        )


def ingest(
    config: IngestConfig, normalise: NormaliseConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    """Read all inputs into `out` and return its manifest; what an earlier run finished is not done again.

    The manifest of kind "documents" holds, besides the files:
        inputs: name and bytes of every raw file; the index is the file's ordinal in doc_id.
        skipped_inputs: files met in directories and globs whose extension says nothing.
        funnel: the entries of "ingest" and "normalise".
        quarantined: documents, bytes, reasons (with the first file and line), blank_lines, damaged_files.
        totals: documents and bytes (of UTF-8 text) written.
        null_fields: how many documents have no id, and none of each kept field.
        settings: what shaped the content.

    Raises:
        UserError: an input is missing or unreadable, the text column is missing, the disk is full, or more than
            `max_bad_fraction` of the records are unreadable (the parts stay, without a manifest).
    """
    found = discover(config.inputs, config.format)
    refuse_overlap(config.inputs, found.files, out)
    prepare_folder(out)
    fields = config.fields()
    segments = cut_files(found.files, fields, config.unit_bytes, out, executor, progress)
    settings = {
        "fields": asdict(fields),
        "normalise": asdict(normalise),
        "quarantine_sample": config.quarantine_sample,
    }
    units = pack_units(segments, config.unit_bytes, settings)
    records = run_units("ingest", ingest_unit, units, out, executor, progress)
    quarantines.remove_stale(out, [file.name for record in records for file in record.files])
    bad = quarantines.merge_stats(record.stats["quarantined"] for record in records)
    funnel = _funnel(records)
    _refuse_too_many(bad, funnel[0]["documents_in"], config.max_bad_fraction, out)
    return write_manifest(
        out,
        "documents",
        [file for record in records for file in record.files if file.name.startswith("part-")],
        inputs=_listed(found.files),
        skipped_inputs=list(found.skipped),
        funnel=funnel,
        quarantined=bad,
        totals={"documents": funnel[-1]["documents_out"], "bytes": funnel[-1]["bytes_out"]},
        null_fields=_sum_by_key([record.stats["null_fields"] for record in records]),
        settings={**settings, "format": config.format, "unit_bytes": config.unit_bytes},
    )


def ingest_unit(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Read the segments of one unit into its part and its quarantine file."""
    fields = Fields(**payload["fields"])
    settings = NormaliseConfig(**payload["normalise"])
    quarantine = Quarantine(payload["quarantine_sample"])
    read, normaliser = Funnel("ingest"), Normaliser(settings, Funnel("normalise"))
    nulls = dict.fromkeys(("id", *fields.keep), 0)

    def documents() -> Iterator[pa.RecordBatch]:
        for batch in _read(segments_from(payload), fields, quarantine, read):
            batch = normaliser(batch)
            for name in nulls:
                nulls[name] += batch.column(name).null_count
            yield batch

    name = f"{payload['name']}.arrow"
    settings_of_all = {"fields": payload["fields"], "normalise": payload["normalise"]}
    schema = with_metadata(document_schema(fields), "documents", **settings_of_all)
    rows = write_arrow(out / name, schema, coalesce(documents()))
    for reason, count in quarantine.documents.items():
        read.enter(count, quarantine.bytes[reason])
        read.lose(BAD + reason, count, quarantine.bytes[reason])
    return UnitResult(
        files={name: rows, **quarantine.write(out, payload["name"])},
        stats={
            "funnel": [read.entry(), normaliser.stats()],
            "quarantined": quarantine.stats(),
            "null_fields": nulls,
        },
    )


def _read(
    segments: Sequence[Segment], fields: Fields, quarantine: Quarantine, funnel: Funnel
) -> Iterator[pa.RecordBatch]:
    """The good records of all segments, counted as entered and left."""
    for segment in segments:
        for batch in read_segment(segment, fields, quarantine):
            size = pc.sum(pc.binary_length(batch.column("text")), min_count=0).as_py()
            funnel.enter(batch.num_rows, size)
            funnel.leave(batch.num_rows, size)
            yield batch


def _funnel(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The entries of both steps for the whole stage; what leaves the first enters the second."""
    units = [record.stats["funnel"] for record in records]
    read = merge_entries("ingest", [entries[0] for entries in units])
    normalised = merge_entries("normalise", [entries[1] for entries in units])
    check_funnel([read, normalised])
    rewritten = sum(entries[1]["rewritten_documents"] for entries in units)
    return [read, {**normalised, "rewritten_documents": rewritten}]


def _refuse_too_many(bad: Mapping[str, Any], total: int, limit: float, out: Path) -> None:
    if bad["documents"] <= limit * total:
        return
    reason, count = max(bad["reasons"].items(), key=lambda item: item[1]["documents"])
    first = count["first"]
    (out / MANIFEST).unlink(missing_ok=True)  # of an earlier run: it does not describe these parts
    raise UserError(
        f"{bad['documents']} of {total} records cannot be read ({bad['documents'] / total:.2%}), "
        f"ingest.max_bad_fraction = {limit} allows {limit:.2%}; most often: {reason} ({count['documents']} times, "
        f"first {first['file']}:{first['line']}). "
        f"Samples are in {out / quarantines.FOLDER}. Fix the files, or raise ingest.max_bad_fraction and run again: "
        "nothing that was read is read again"
    )


def _listed(files: Sequence[SourceFile]) -> list[dict[str, Any]]:
    return [{"name": file.name, "bytes": file.size} for file in files]


def _sum_by_key(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {key: sum(count[key] for count in counts) for key in counts[0]}
