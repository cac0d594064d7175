"""Tokenizers side by side on the same documents: `seqmill tokenizer report`.

    documents --measure_part, one unit a tokenizer and part--> OUT/.state/ids-*.arrow, pairs-*.arrow --> OUT/report.json

report.json keeps apart what depends on documents and tokenizers alone ("figures") and what a clock said ("timings").
Memory: one batch of documents, and 16 bytes for every id that occurs in a group; with a parallel field also about
100 bytes a document.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqmill import __version__
from seqmill.compress import bits_per_byte, unigram_entropy
from seqmill.errors import UserError
from seqmill.manifest import STATE_FOLDER, open_manifest
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import (
    Executor,
    Progress,
    Record,
    Unit,
    UnitResult,
    part_references,
    prepare_folder,
    run_units,
)
from seqmill.pipeline.sampling import drawn
from seqmill.pipeline.tokenizer_speed import measure_speed
from seqmill.storage import read_arrow, write_arrow, write_json
from seqmill.tokenizers_ext import Encoder, load
from seqmill.tokenizers_ext.id_counts import COUNTS, IdCounts
from seqmill.tokenizers_ext.metrics import RENYI_ALPHA, Measured, measure, rank_shares, renyi_efficiency, token_bytes

REPORT = "report.json"
NO_GROUP = "(none)"  # of documents that have nothing in the column that groups go by
MOST_GROUPS = 1000
MOST_PAIRS = 10_000_000  # documents with a parallel field: a gigabyte
AROUND = 20  # bytes shown on either side of where a decoded document differs
DIGITS = 6  # of ratios

SUMS = ("documents", "bytes", "characters", "unspaced", "words", "split_words", "tokens", "exact")
PAIRS = pa.schema({"content": pa.string(), "group": pa.string(), "tokens": pa.int64()})

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReportConfig:
    """What tokenizers are compared on."""

    group_by: str = "source"  # a column of the documents; every value of it gets its own figures
    sample_bytes: int = 100_000_000  # text to read at most, about; documents are drawn by a hash of their id
    parallel: bool = False  # every group is the same content as a whole: tell parity by its tokens
    parallel_field: str | None = None  # or: documents with the same value of this column are the same content
    reference: str | None = None  # the group that parity is told against
    timings: bool = True  # measure speed as well
    seed: int = 0  # of the sample

    def __post_init__(self) -> None:
        if self.sample_bytes < 1:
            raise UserError(f"sample_bytes = {self.sample_bytes}: at least 1 byte of text is needed")
        if self.seed < 0:
            raise UserError(f"seed = {self.seed}: 0 or more is needed")
        if self.parallel and self.parallel_field:
            raise UserError(
                f"parallel and parallel_field = {self.parallel_field!r} exclude each other: the content is the same "
                "either group by group or value by value"
            )
        if self.is_parallel != (self.reference is not None):
            raise UserError(
                f"reference = {self.reference!r}: parity needs both a reference group and parallel documents "
                "(parallel, or parallel_field); set both or neither"
            )

    @property
    def is_parallel(self) -> bool:
        """Whether parity is asked for."""
        return self.parallel or self.parallel_field is not None


def tokenizer_report(
    documents: Path, tokenizers: Sequence[str], config: ReportConfig, out: Path, executor: Executor, progress: Progress
) -> dict[str, Any]:
    """Compare tokenizers on a documents folder; writes `out`/report.json and returns it.

    Args:
        tokenizers: paths that `load` takes; figures name them by their last part, where that tells them apart.

    The report:
        corpus: documents and bytes in the folder and in the sample, and the share that the sample was drawn with.
        figures: one entry a tokenizer: its name and kind, vocab_size, fingerprint, "all" and "groups" (see `_figures`).
        timings: machine, and by tokenizer the speeds of `measure_speed`; absent when not asked for.

    Raises:
        UserError: a tokenizer cannot be read or is named twice, the documents lack a column, have too many groups or
            no reference group, or parallel documents do not fit in the sample.
    """
    manifest = open_manifest(documents, "documents")
    names = _names(tokenizers)
    share = min(1.0, config.sample_bytes / max(1, manifest["totals"]["bytes"]))
    _refuse_what_cannot_be_told(config, documents, manifest, share)
    prepare_folder(out)
    encoders = {name: load(path) for name, path in names.items()}
    parts = part_references(documents, manifest)
    units = [
        Unit(
            f"{number:02}-{part}",
            {
                "name": f"{number:02}-{part}",
                "documents": file,
                "tokenizer": str(Path(path).absolute()),
                "fingerprint": encoders[name].fingerprint,
                "share": share,
                "group_by": config.group_by,
                "parallel_field": config.parallel_field,
                "seed": config.seed,
            },
        )
        for number, (name, path) in enumerate(names.items())
        for part, file in parts.items()
    ]
    records = run_units("tokenizer report", measure_part, units, out, executor, progress)
    figures = [
        {
            "tokenizer": name,
            "kind": encoder.kind,
            "vocab_size": encoder.vocab_size,
            "fingerprint": encoder.fingerprint,
            **_merged(encoder, records[at * len(parts) : (at + 1) * len(parts)], config, out),
        }
        for at, (name, encoder) in enumerate(encoders.items())
    ]
    sampled = {unit: figures[0]["all"][unit] for unit in ("documents", "bytes")}
    report: dict[str, Any] = {
        "seqmill": __version__,
        "corpus": {**manifest["totals"], "sampled": sampled, "share": round(share, DIGITS)},
        "config": asdict(config),
        "renyi_alpha": RENYI_ALPHA,
        "figures": figures,
    }
    if config.timings:
        executor.close()
        texts = [documents / file["name"] for file in manifest["files"]]
        report["timings"] = measure_speed(names, texts, manifest["totals"]["bytes"], config.group_by)
    write_json(out / REPORT, report)
    return report


def measure_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """One tokenizer on one part: sums by group, and files with the counts of ids and the parallel documents."""
    encoder = load(payload["tokenizer"])
    if encoder.fingerprint != payload["fingerprint"]:
        raise UserError(f"{payload['tokenizer']} has changed while the report was made; run the same command again")
    tally = Tally(encoder, payload["group_by"], payload["parallel_field"])
    for batch in document_batches(Path(payload["documents"]["path"])):
        chosen = drawn(batch.column("doc_id").to_numpy(), payload["share"], payload["seed"])
        tally.add(batch.filter(pa.array(chosen)))
    name = payload["name"]
    files = {_ids(name): write_arrow(out / _ids(name), COUNTS, tally.ids.batches())}
    if payload["parallel_field"]:
        files[_pairs(name)] = write_arrow(out / _pairs(name), PAIRS, tally.pairs)
    sums = [row.tolist() for row in tally.sums.values()]
    return UnitResult(files, {"groups": list(tally.sums), "sums": sums, "inexact": tally.inexact})


def _ids(unit: str) -> str:
    return f"{STATE_FOLDER}/ids-{unit}.arrow"


def _pairs(unit: str) -> str:
    return f"{STATE_FOLDER}/pairs-{unit}.arrow"


class Tally:
    """What one tokenizer makes of documents, by group."""

    def __init__(self, encoder: Encoder, group_by: str, parallel_field: str | None) -> None:
        self.encoder, self.group_by, self.parallel_field = encoder, group_by, parallel_field
        self.sums: dict[str, Int64s] = {}  # group -> int64[len(SUMS)]; groups have numbers in the order of the keys
        self.ids = IdCounts(encoder.vocab_size)
        self.inexact: dict[str, dict[str, Any]] = {}  # group -> its first document that comes back changed
        self.pairs: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Encode and count a batch of documents."""
        if not len(batch):
            return
        measured, ids, decoded = measure(self.encoder, batch.column("text"))
        found, group = _numbered(batch.column(self.group_by))
        _refuse_many_groups(self.group_by, max(len(found), len(self.sums)))
        columns = [getattr(measured, name, np.ones(len(batch))) for name in SUMS]
        sums = np.zeros((len(found), len(SUMS)), np.int64)
        np.add.at(sums, group, np.stack(columns, axis=1).astype(np.int64))
        for name, row in zip(found, sums, strict=True):
            self.sums[name] = self.sums.get(name, 0) + row
        number = {name: at for at, name in enumerate(self.sums)}
        self.ids.add(np.array([number[name] for name in found])[group], ids)
        self.inexact = {**_inexact(batch, measured, decoded, found, group), **self.inexact}
        if self.parallel_field:
            content = batch.column(self.parallel_field).cast(pa.string())
            groups = pa.array(found, pa.string()).take(pa.array(group))
            self.pairs.append(pa.record_batch([content, groups, pa.array(measured.tokens)], schema=PAIRS))


def _refuse_many_groups(column: str, groups: int) -> None:
    if groups > MOST_GROUPS:
        raise UserError(
            f"the column {column!r} has {groups} values or more, a report tells up to {MOST_GROUPS} apart; group by a "
            "coarser column"
        )


def _names(tokenizers: Sequence[str]) -> dict[str, str]:
    """Name in the report -> path: the last part of the path if no other ends in the same, else the whole path."""
    if not tokenizers:
        raise UserError("name at least one tokenizer to report on")
    last = [Path(path).name for path in tokenizers]
    names = {(name if last.count(name) == 1 else path): path for name, path in zip(last, tokenizers, strict=True)}
    if len(names) < len(tokenizers):
        raise UserError(f"{max(tokenizers, key=tokenizers.count)} is named twice; name each tokenizer once")
    return names


def _refuse_what_cannot_be_told(
    config: ReportConfig, documents: Path, manifest: Mapping[str, Any], share: float
) -> None:
    for column in filter(None, (config.group_by, config.parallel_field)):
        for file in manifest["files"]:
            with pa.ipc.open_stream(pa.memory_map(str(documents / file["name"]))) as reader:
                if column not in reader.schema.names:
                    raise UserError(
                        f"{documents} has no column {column!r} (it has {', '.join(reader.schema.names)}); keep it with "
                        "ingest.keep_fields, or name another"
                    )
    if config.is_parallel and share < 1:
        raise UserError(
            f"sample_bytes = {config.sample_bytes} leaves out documents of {manifest['totals']['bytes']} bytes: a "
            "sample is not parallel any more; raise it to their size"
        )
    if config.parallel_field and manifest["totals"]["documents"] > MOST_PAIRS:
        raise UserError(
            f"{manifest['totals']['documents']} documents with a parallel field take more than a gigabyte; "
            f"give at most {MOST_PAIRS}"
        )


def _numbered(column: pa.Array) -> tuple[list[str], Int64s]:
    """The values of a column, and the place of each document's own among them."""
    encoded = column.cast(pa.string()).fill_null(NO_GROUP).dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _inexact(
    batch: pa.RecordBatch, measured: Measured, decoded: pa.Array, found: Sequence[str], group: Int64s
) -> dict[str, dict[str, Any]]:
    """The first document of every group that comes back changed, and where."""
    changed = np.flatnonzero(~measured.exact)
    _, first = np.unique(group[changed], return_index=True)
    examples = {}
    for at in changed[first]:
        text, back = batch.column("text")[at].as_buffer().to_pybytes(), decoded[at].as_py()
        same = _common_prefix(text, back)
        around = slice(max(0, same - AROUND), same + AROUND)
        examples[found[group[at]]] = {
            "doc_id": batch.column("doc_id")[at].as_py(),
            "byte": same,
            "text": text[around].decode(errors="backslashreplace"),
            "decoded": back[around].decode(errors="backslashreplace"),
        }
    return examples


def _common_prefix(one: bytes, other: bytes) -> int:
    """Bytes that both begin with."""
    shorter = min(len(one), len(other))
    differ = np.frombuffer(one[:shorter], np.uint8) != np.frombuffer(other[:shorter], np.uint8)
    return int(differ.argmax()) if differ.any() else shorter


def _merged(encoder: Encoder, records: Sequence[Record], config: ReportConfig, out: Path) -> dict[str, Any]:
    """The figures of one tokenizer: "all", and "groups" by name."""
    names = sorted({name for record in records for name in record.stats["groups"]})
    _refuse_many_groups(config.group_by, len(names))
    number = {name: at for at, name in enumerate(names)}
    sums = np.zeros((len(names), len(SUMS)), np.int64)
    counts, whole = IdCounts(encoder.vocab_size), IdCounts(encoder.vocab_size)
    inexact: dict[str, dict[str, Any]] = {}
    for record in records:
        own = np.array([number[name] for name in record.stats["groups"]], np.int64)
        sums[own] += np.array(record.stats["sums"], np.int64).reshape(len(own), len(SUMS))
        for name, example in record.stats["inexact"].items():
            inexact.setdefault(name, example)
        table = read_arrow(out / _ids(record.unit))
        ids, times = table["id"].to_numpy().astype(np.int64), table["count"].to_numpy()
        counts.add_counts(own[table["group"].to_numpy()] * encoder.vocab_size + ids, times)
        whole.add_counts(ids, times)
    parity = _parity(names, sums, records, config, out) if config.is_parallel else {}
    example = min(inexact.values(), key=lambda each: each["doc_id"], default=None)
    groups = {
        name: {
            **_figures(encoder, sums[at], *counts.of_group(at), inexact.get(name)),
            **({"parity": parity[name]} if parity else {}),
        }
        for name, at in number.items()
    }
    return {"all": _figures(encoder, sums.sum(axis=0), *whole.of_group(0), example), "groups": groups}


def _figures(
    encoder: Encoder, sums: Int64s, ids: Int64s, counts: Int64s, inexact: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What is told of one tokenizer on some documents; None where there is nothing to divide by.

    documents, bytes (of UTF-8), characters, words, tokens
    bytes_per_token, tokens_per_character
    tokens_per_word    fertility; little to say where `unspaced` is high
    split_words        share of words of two ids or more: see `metrics.is_split`
    unspaced           share of characters in scripts that are written without spaces
    exact              share of documents that decode to their own bytes; `inexact`: the first that does not
    ids_used, vocabulary_used   ids that occur, and their share of the vocabulary
    renyi_efficiency   see `metrics.renyi_efficiency`
    unigram_bits_per_byte       bits that a model needs which knows how often ids occur, and nothing else
    longest_token      the longest that occurs: id, bytes, text
    ranks              see `metrics.rank_shares`
    """
    total = dict(zip(SUMS, sums.tolist(), strict=True))
    bits = bits_per_byte(unigram_entropy(counts), total["tokens"], total["bytes"]) if total["bytes"] else None
    efficiency = renyi_efficiency(counts, encoder.vocab_size)
    return {
        **{name: total[name] for name in ("documents", "bytes", "characters", "words", "tokens")},
        "bytes_per_token": ratio(total["bytes"], total["tokens"]),
        "tokens_per_character": ratio(total["tokens"], total["characters"]),
        "tokens_per_word": ratio(total["tokens"], total["words"]),
        "split_words": ratio(total["split_words"], total["words"]),
        "unspaced": ratio(total["unspaced"], total["characters"]),
        "exact": ratio(total["exact"], total["documents"]),
        "inexact": inexact,
        "ids_used": len(ids),
        "vocabulary_used": ratio(len(ids), encoder.vocab_size),
        "renyi_efficiency": None if efficiency is None else round(efficiency, DIGITS),
        "unigram_bits_per_byte": None if bits is None else round(bits, DIGITS),
        "longest_token": _longest(encoder, ids),
        "ranks": [[rank, *(float(f"{share:.{DIGITS}g}") for share in shares)] for rank, *shares in rank_shares(counts)],
    }


def ratio(part: int, whole: int) -> float | None:
    """`part` / `whole`, rounded; None when `whole` is 0."""
    return round(part / whole, DIGITS) if whole else None


def _longest(encoder: Encoder, ids: Int64s) -> dict[str, Any] | None:
    """The id that decodes to the most bytes; of several the smallest."""
    if not len(ids):
        return None
    pieces = token_bytes(encoder, ids)
    longest = int(np.argmax(pc.binary_length(pieces).to_numpy()))
    text = pieces[longest].as_py()
    return {"id": int(ids[longest]), "bytes": len(text), "text": text.decode(errors="backslashreplace")}


def _parity(
    names: Sequence[str], sums: Int64s, records: Sequence[Record], config: ReportConfig, out: Path
) -> dict[str, float | None]:
    """Tokens of each group / tokens of the reference group for the same content: the premium of Petrov et al. 2023."""
    if config.reference is None or config.reference not in names:
        raise UserError(f"reference = {config.reference!r} is none of the groups; choose from {', '.join(names)}")
    if config.parallel:
        tokens = dict(zip(names, sums[:, SUMS.index("tokens")].tolist(), strict=True))
        return {name: ratio(tokens[name], tokens[config.reference]) for name in names}
    tables = [read_arrow(out / _pairs(record.unit)) for record in records]
    pairs = pa.concat_tables(tables).drop_null().group_by(["content", "group"]).aggregate([("tokens", "sum")])
    reference = pairs.filter(pc.equal(pairs["group"], config.reference)).select(["content", "tokens_sum"])
    both = pairs.join(reference, "content", right_suffix="_reference", join_type="inner")
    added = both.group_by("group").aggregate([("tokens_sum", "sum"), ("tokens_sum_reference", "sum")])
    own, others = (added[f"{name}_sum"].to_pylist() for name in ("tokens_sum", "tokens_sum_reference"))
    found = {name: ratio(*tokens) for name, *tokens in zip(added["group"].to_pylist(), own, others, strict=True)}
    return {name: found.get(name) for name in names}
