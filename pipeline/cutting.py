"""Cut sources into segments, and pack segments into work units of about the same size.

Large plain files are cut into byte ranges, large columnar files into runs of row groups or record batches, so that
one huge file keeps every worker busy and a lost worker costs one unit. Compressed files cannot be entered in the
middle and stay whole. Row numbers need to be known before a range is read: a `scan` stage of its own counts line ends
(or reads footers), only of files larger than a unit.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from seqmill.pipeline.columnar import describe
from seqmill.pipeline.execution import Executor, Progress, Unit, UnitResult, run_units
from seqmill.pipeline.pieces import LINE_END
from seqmill.pipeline.records import Fields, Segment
from seqmill.pipeline.sequences import NEXT_RECORD
from seqmill.pipeline.sources import SourceFile
from seqmill.pipeline.streams import can_cut, count_starts, open_source

MAX_SEGMENTS = 4096  # in one unit: bounds its description when files are tiny


def cut_files(
    files: Sequence[SourceFile], fields: Fields, unit_bytes: int, out: Path, executor: Executor, progress: Progress
) -> list[Segment]:
    """Every source as one segment, or as several of about `unit_bytes`; in order, covering each exactly once.

    Raises:
        UserError: a source cannot be read or has changed.
    """
    probes: list[Segment] = []
    for file in files:
        probes += _probes(file, fields, unit_bytes)
    found = _scan(probes, fields, out, executor, progress)
    by_file: dict[int, list[tuple[Segment, Any]]] = {}
    for probe, answer in zip(probes, found, strict=True):
        by_file.setdefault(probe.file.ordinal, []).append((probe, answer))
    segments: list[Segment] = []
    for file in files:
        answers = by_file.get(file.ordinal)
        if answers is None:
            segments.append(Segment(file))
        elif _separator(file, fields):
            segments += _numbered_ranges(answers)
        else:
            segments += _piece_runs(file, answers[0][1], unit_bytes)
    return segments


def pack_units(segments: Iterable[Segment], unit_bytes: int, settings: Mapping[str, Any]) -> list[Unit]:
    """Neighbouring segments together, up to `unit_bytes`; every unit carries `settings`."""
    groups: list[list[Segment]] = []
    room = 0
    for segment in segments:
        size = _weight(segment)
        if not groups or size > room or len(groups[-1]) == MAX_SEGMENTS:
            groups.append([])
            room = unit_bytes
        groups[-1].append(segment)
        room -= size
    return [_unit("part", index, group, settings) for index, group in enumerate(groups)]


def segments_from(payload: Mapping[str, Any]) -> list[Segment]:
    """The segments of a unit made by `pack_units`."""
    files = [SourceFile(**file) for file in payload["files"]]
    return [Segment(files[index], *numbers) for index, *numbers in payload["segments"]]


def scan_unit(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Count the records that start in byte ranges, or list the pieces of columnar sources."""
    fields = Fields(**payload["fields"])
    return UnitResult(files={}, stats={"found": [_answer(probe, fields) for probe in segments_from(payload)]})


def _unit(stem: str, index: int, segments: Sequence[Segment], settings: Mapping[str, Any]) -> Unit:
    name = f"{stem}-{index:05d}"
    files = {segment.file.ordinal: segment.file for segment in segments}
    places = {ordinal: place for place, ordinal in enumerate(files)}
    payload = {
        "name": name,
        "files": [asdict(file) for file in files.values()],
        "segments": [[places[s.file.ordinal], s.start, s.stop, s.first_row] for s in segments],
        **settings,
    }
    return Unit(name, payload)


def _separator(file: SourceFile, fields: Fields) -> bytes | None:
    """What ends a record of the file, if it is a plain one that can be cut there."""
    if file.compression:
        return None
    if file.format == "jsonl":
        return LINE_END
    if file.format == "fasta":
        return NEXT_RECORD
    if file.format == "text" and fields.separator:
        separator = fields.separator.encode()
        return separator if can_cut(separator) else None
    return None


def _probes(file: SourceFile, fields: Fields, unit_bytes: int) -> list[Segment]:
    """The questions to ask before the file can be cut; none if it stays whole."""
    if file.size <= unit_bytes:
        return []
    if file.format in ("parquet", "arrow", "hf"):
        return [Segment(file)]
    if not _separator(file, fields):
        return []
    count = -(-file.size // unit_bytes)
    bounds = [file.size * index // count for index in range(count + 1)]
    return [Segment(file, start, stop) for start, stop in pairwise(bounds)]


def _scan(probes: Sequence[Segment], fields: Fields, out: Path, executor: Executor, progress: Progress) -> list[Any]:
    if not probes:
        return []
    units = [_unit("scan", index, [probe], {"fields": asdict(fields)}) for index, probe in enumerate(probes)]
    return [record.stats["found"][0] for record in run_units("scan", scan_unit, units, out, executor, progress)]


def _answer(probe: Segment, fields: Fields) -> int | list[tuple[int, int]]:
    separator = _separator(probe.file, fields)
    if separator is None:
        return describe(probe.file)
    assert probe.stop is not None
    with open_source(probe.file) as handle:
        return count_starts(handle, probe.file, separator, probe.start, probe.stop)


def _numbered_ranges(answers: Iterable[tuple[Segment, int]]) -> Iterator[Segment]:
    row = 0
    for probe, starts in answers:
        yield Segment(probe.file, probe.start, probe.stop, row)
        row += starts


def _piece_runs(file: SourceFile, sizes: Sequence[tuple[int, int]], unit_bytes: int) -> Iterator[Segment]:
    """Runs of neighbouring pieces of up to `unit_bytes`; the whole file if nothing is known of its pieces."""
    if not sizes:
        yield Segment(file)
        return
    start, first_row, row, size = 0, 0, 0, 0
    for index, (rows, bytes_) in enumerate(sizes):
        if index > start and size + bytes_ > unit_bytes:
            yield Segment(file, start, index, first_row)
            start, first_row, size = index, row, 0
        row += rows
        size += bytes_
    yield Segment(file, start, len(sizes), first_row)


def _weight(segment: Segment) -> int:
    """Bytes that a segment stands for; a run of row groups or batches counts as a unit of its own."""
    if segment.stop is None:
        return segment.file.size
    return segment.stop - segment.start if segment.file.format in ("jsonl", "text", "fasta") else segment.file.size
