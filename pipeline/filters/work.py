"""The work units of the filter stage.

part      documents part       -> documents part, and what it lost       (one unit a part)
removed   what all parts lost  -> removed.parquet                        (one unit)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqmill.manifest import STATE_FOLDER
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import UnitResult
from seqmill.pipeline.filters import c4, rules
from seqmill.pipeline.filters.config import FilterConfig, LengthRules
from seqmill.pipeline.filters.language import identify
from seqmill.pipeline.filters.masking import mask
from seqmill.pipeline.filters.rules import Rule, judge
from seqmill.pipeline.funnel import Funnel, add_counts
from seqmill.pipeline.removed import REMOVED
from seqmill.pipeline.settings import build
from seqmill.storage import atomic_path, read_arrow, with_metadata, write_arrow

KEPT = "kept"
LANGUAGE_COLUMNS = {"language": pa.string(), "language_score": pa.float32()}
REMOVED_SCHEMA = pa.schema(
    {
        "doc_id": pa.uint64(),
        "id": pa.string(),
        "source": pa.string(),
        "reason": pa.string(),
        "value": pa.float64(),  # what the rule measured
        "limit": pa.float64(),  # null where the rule has none: a language that is not kept
    }
)


@dataclass
class Tally:
    """What one part kept, lost and masked, by source."""

    by_source: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)  # [source][reason]
    masked: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)  # [source][kind]

    def count(self, sources: pa.Array, reason: str, documents: int, bytes_: np.ndarray) -> None:
        """Add for each row of `sources` this many documents (0 or 1) and its bytes; rows without bytes or documents
        leave no entry."""
        for source, rows, sums in _sums(sources, bytes_):
            if documents or sums[0]:
                entry = self.by_source.setdefault(source, {}).setdefault(reason, {})
                add_counts(entry, {"documents": documents * rows, "bytes": sums[0]})

    def count_masked(self, sources: pa.Array, kind: str, *columns: np.ndarray) -> None:
        """Add items, removed bytes and inserted bytes of one kind."""
        for source, _, sums in _sums(sources, *columns):
            if sums[0]:
                entry = self.masked.setdefault(source, {}).setdefault(kind, {})
                for name, value in zip(("items", "removed_bytes", "inserted_bytes"), sums, strict=True):
                    entry[name] = entry.get(name, 0) + value


def _sums(sources: pa.Array, *columns: np.ndarray) -> Iterator[tuple[str, int, list[int]]]:
    """Per source: its name, its rows and the sum of each column."""
    table = pa.table({"source": sources, **{str(k): pa.array(column) for k, column in enumerate(columns)}})
    wanted = [(str(k), "sum") for k in range(len(columns))]
    for row in table.group_by("source").aggregate([*wanted, ("source", "count")]).to_pylist():
        yield row["source"], row["source_count"], [row[f"{k}_sum"] for k in range(len(columns))]


@dataclass
class Passage:
    """The documents of one batch on their way through the rules."""

    batch: pa.RecordBatch  # those that are left, with their text as it is now
    tally: Tally
    entered: np.ndarray  # int64[rows]: bytes with which each came
    taken: dict[str, np.ndarray] = field(default_factory=dict)  # reason -> int64[rows] bytes taken by changes
    removed: list[pa.RecordBatch] = field(default_factory=list)

    @property
    def text(self) -> pa.Array:
        """The texts as they are now."""
        return self.batch.column("text")

    def sift(self, limits: Sequence[Rule]) -> np.ndarray:
        """Remove the documents on which a rule fires; returns which stay, bool[rows before]."""
        verdict = judge(limits, len(self.batch))
        stays = verdict.which < 0
        if stays.all():
            return stays
        sources = self.batch.column("source")
        for index, reason in enumerate(verdict.reasons):
            mine = verdict.which == index
            if mine.any():
                self.tally.count(sources.filter(pa.array(mine)), reason, 1, self.entered[mine])
        gone = pa.array(~stays)
        limit = verdict.limit[~stays]
        columns = [
            *(self.batch.column(name).filter(gone) for name in ("doc_id", "id", "source")),
            pa.array(np.array(verdict.reasons, object)[verdict.which[~stays]], pa.string()),
            pa.array(verdict.value[~stays]),
            pa.array(limit, mask=np.isnan(limit)),
        ]
        self.removed.append(pa.record_batch(columns, schema=REMOVED_SCHEMA))
        self.batch = self.batch.filter(pa.array(stays))
        self.entered = self.entered[stays]
        self.taken = {reason: bytes_[stays] for reason, bytes_ in self.taken.items()}
        return stays

    def rewrite(self, text: pa.Array, taken: Mapping[str, np.ndarray]) -> None:
        """Give every document another text; `taken` says which bytes the change took, by reason."""
        place = self.batch.schema.get_field_index("text")
        self.batch = self.batch.set_column(place, self.batch.schema.field(place), text)
        self.taken |= taken

    def add(self, name: str, column: pa.Array) -> None:
        """Add a column, in place of one of that name."""
        place = self.batch.schema.get_field_index(name)
        if place >= 0:
            self.batch = self.batch.remove_column(place)
        self.batch = self.batch.append_column(name, column)

    def finish(self) -> None:
        """Count what is left, and the bytes that changes took from it."""
        sources = self.batch.column("source")
        self.tally.count(sources, KEPT, 1, _sizes(self.text))
        for reason, bytes_ in self.taken.items():
            self.tally.count(sources, reason, 0, bytes_)


Step = Callable[[Passage, FilterConfig], None]


def check_words(passage: Passage, config: FilterConfig) -> None:
    """Length, then language, then Gopher: all of the text as it came, whose words are counted once."""
    counts = rules.count_words(passage.text, config.gopher_quality.stop_words)
    counts = counts[passage.sift(list(rules.length_rules(passage.text, config.length, counts)))]
    if config.language.enabled:
        counts = counts[check_language(passage, config)]
    if config.gopher_quality.enabled:
        counts = counts[passage.sift(list(rules.gopher_quality_rules(config.gopher_quality, counts)))]
    if config.gopher_repetition.enabled:
        passage.sift(list(rules.gopher_repetition_rules(passage.text, config.gopher_repetition, counts)))


def check_language(passage: Passage, config: FilterConfig) -> np.ndarray:
    """Add the columns of the language, and remove documents by them; returns which stay, bool[rows before]."""
    settings = config.language
    languages, scores = identify(passage.text, settings.characters)
    passage.add("language", languages)
    passage.add("language_score", pa.array(scores))
    wanted = pc.is_in(languages, pa.array(settings.keep, pa.string())).to_numpy(zero_copy_only=False)
    wanted = wanted | (len(settings.keep) == 0)
    is_other = Rule("language: not kept", scores.astype(float), None, fired=~wanted)
    is_unsure = Rule("language: low score", scores.astype(float), settings.min_score, is_minimum=True)
    return passage.sift([is_other, is_unsure])


def clean_by_c4(passage: Passage, config: FilterConfig) -> None:
    """Drop lines, then remove the documents that they condemn."""
    came = _sizes(passage.text)
    text = c4.cut_citations(passage.text) if config.c4.citations else passage.text
    cited = came - _sizes(text)
    text, outcome, sentences, dropped = c4.clean_lines(text, config.c4)
    taken = {"c4: citation": cited}
    for index, reason in enumerate(c4.LINE_REASONS):
        taken[f"c4 line: {reason}"] = dropped[:, index]
    taken["c4: white space"] = came - _sizes(text) - sum(taken.values())
    passage.rewrite(text, taken)
    sizes = _sizes(text)
    passage.sift(
        [
            Rule("c4: lorem ipsum", (outcome == c4.LOREM_IPSUM).astype(float), 0),
            Rule("c4: curly bracket", (outcome == c4.CURLY_BRACKET).astype(float), 0),
            Rule("c4: few sentences", sentences, config.c4.min_sentences, is_minimum=True),
            Rule("c4: no line left", sizes, 1, is_minimum=True),
        ]
    )


def check_fineweb(passage: Passage, config: FilterConfig) -> None:
    """The rules of FineWeb."""
    passage.sift(list(rules.fineweb_rules(passage.text, config.fineweb)))


def mask_personal_data(passage: Passage, config: FilterConfig) -> None:
    """Mask e-mail addresses first: what stands behind their @ may look like an IP address."""
    for kind in config.mask.kinds:
        done = mask(passage.text, kind, config.mask)
        passage.tally.count_masked(
            passage.batch.column("source"), kind, done.items, done.removed_bytes, done.inserted_bytes
        )
        passage.rewrite(done.text, {f"mask: {kind}": done.removed_bytes - done.inserted_bytes})


def steps_of(config: FilterConfig) -> list[Step]:
    """What happens to a batch, in order."""
    looks_at_words = config.gopher_quality.enabled or config.gopher_repetition.enabled or config.language.enabled
    steps: list[tuple[bool, Step]] = [
        (looks_at_words or config.length != LengthRules(), check_words),
        (config.c4.enabled, clean_by_c4),
        (config.fineweb.enabled, check_fineweb),
        (bool(config.mask.kinds), mask_personal_data),
    ]
    return [step for enabled, step in steps if enabled]


def filter_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """One documents part through all rules; what it lost goes to `.state/`."""
    config = build(FilterConfig, payload["config"], "filter")
    source = Path(payload["documents"]["path"])
    schema = _schema(source, config, payload)
    tally, entry = Tally(), Funnel("filter")
    removed: list[pa.RecordBatch] = []

    def kept_batches() -> Iterator[pa.RecordBatch]:
        for batch in document_batches(source):
            passage = Passage(batch, tally, _sizes(batch.column("text")))
            entry.enter(len(batch), int(passage.entered.sum()))
            for step in steps_of(config):
                step(passage, config)
            passage.finish()
            removed.extend(passage.removed)
            entry.leave(len(passage.batch), int(_sizes(passage.text).sum()))
            yield pa.record_batch(passage.batch.select(schema.names).columns, schema=schema)

    name = f"{payload['part']}.arrow"
    rows = write_arrow(out / name, schema, kept_batches())
    for reasons in tally.by_source.values():
        for reason, count in reasons.items():
            if reason != KEPT:
                entry.lose(reason, count["documents"], count["bytes"])
    lost = pa.Table.from_batches(removed, REMOVED_SCHEMA).sort_by("doc_id").combine_chunks()
    lost_name = f"{STATE_FOLDER}/removed-{name}"
    files = {name: rows, lost_name: write_arrow(out / lost_name, REMOVED_SCHEMA, lost.to_batches())}
    stats = {"funnel": entry.entry(), "by_source": tally.by_source, "masked": tally.masked, "removed": lost_name}
    return UnitResult(files, stats)


def _schema(source: Path, config: FilterConfig, payload: Mapping[str, Any]) -> pa.Schema:
    """The columns that come, and those of the language behind them."""
    with pa.ipc.open_stream(pa.memory_map(str(source))) as reader:
        schema = reader.schema
    if config.language.enabled:
        schema = pa.schema([entry for entry in schema if entry.name not in LANGUAGE_COLUMNS])
        for name, kind in LANGUAGE_COLUMNS.items():
            schema = schema.append(pa.field(name, kind))
    return with_metadata(schema, "documents", config=dict(payload["config"]))


def collect_removed(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """The evidence of all parts in one file, one row group a part."""
    rows = 0
    with (
        atomic_path(out / REMOVED) as temporary,
        pq.ParquetWriter(temporary, REMOVED_SCHEMA, compression="zstd") as sink,
    ):
        for file in payload["removed"]:
            lost = read_arrow(Path(file["path"]))
            sink.write_table(lost, row_group_size=max(1, len(lost)))
            rows += len(lost)
    return UnitResult({REMOVED: rows})


def _sizes(text: pa.Array) -> np.ndarray:
    return pc.binary_length(text).to_numpy(zero_copy_only=False)
