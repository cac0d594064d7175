"""The work units of the substrings stage: each reads files and writes files, and knows nothing of the others.

Every file that is read by range holds batches that are sorted by what is searched, so a range is a slice of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqmill.errors import UserError
from seqmill.manifest import STATE_FOLDER
from seqmill.pipeline.execution import UnitResult
from seqmill.pipeline.funnel import add_counts
from seqmill.pipeline.removed import INPUT, REMOVED, REMOVED_SCHEMA
from seqmill.pipeline.substrings import anchors, copies, spans
from seqmill.pipeline.substrings.places import MappedPart, addresses, mapped_batches
from seqmill.storage import atomic_path, read_arrow, read_json, with_metadata, write_arrow

REASON = "substring"
SPANS = "spans.parquet"
DUPLICATE_BYTES = "duplicate_bytes"
KEY_RANGES = 4096  # equal ranges of keys whose anchors are counted, to cut the exchange into units that fit
ANCHOR_BYTES = 128  # working memory of one anchor in `find`: sorting, then hashing the largest group
COPY_BYTES = 256  # working memory of one copy of a batch in `cut`: sorting, spans, look-up of what is kept
SORTED_ROWS = 1 << 18  # in one sorted batch: small beside any budget, and large enough for few searches

ANCHOR_SCHEMA = pa.schema({"key": pa.uint64(), "place": pa.int64(), "nearest": pa.uint16(), "farthest": pa.uint16()})
COPY_SCHEMA = pa.schema({"start": pa.int64(), "windows": pa.int64(), "source": pa.int64(), "occurrences": pa.int64()})
DOCUMENT_SCHEMA = pa.schema({"start": pa.int64(), "doc_id": pa.uint64(), "id": pa.string()})
SPAN_SCHEMA = pa.schema(
    {
        "doc_id": pa.uint64(),
        "id": pa.string(),
        "start": pa.uint64(),
        "stop": pa.uint64(),
        "kept_doc_id": pa.uint64(),
        "kept_id": pa.string(),
        "kept_start": pa.uint64(),
    }
)


def sample(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """The anchors, repeats and table of documents of one part; counts the anchors of each key range."""
    part = MappedPart.open(payload["documents"])
    min_bytes = payload["min_bytes"]
    counts = np.zeros(KEY_RANGES, np.int64)
    documents: list[pa.RecordBatch] = []
    repeats: list[np.ndarray] = [np.empty((0, 3), np.int64)]

    def sorted_batches() -> Iterator[pa.RecordBatch]:
        waiting: list[np.ndarray] = []
        for batch, positions in part.batches():
            starts = pa.array(positions[:-1] + part.base)
            documents.append(
                pa.record_batch([starts, batch.column("doc_id"), batch.column("id")], schema=DOCUMENT_SCHEMA)
            )
            gram = anchors.gram_bytes(min_bytes)
            rows = anchors.least_grams(part.bytes(), positions, min_bytes, gram)
            needed, repeated = anchors.take_repeats(part.bytes(), rows, min_bytes)
            repeats.append(repeated + np.array([part.base, 0, part.base]))
            waiting.append(rows[needed])
            if sum(map(len, waiting)) >= SORTED_ROWS:
                yield _by_key(np.concatenate(waiting), part.base, counts)
                waiting.clear()
        if waiting:
            yield _by_key(np.concatenate(waiting), part.base, counts)

    name = payload["part"]
    anchor_file, repeat_file, document_file = f"{name}.arrow", f"{name}.repeats.arrow", f"{name}.documents.arrow"
    files = {anchor_file: write_arrow(out / anchor_file, ANCHOR_SCHEMA, sorted_batches())}
    columns = [*np.concatenate(repeats).T, np.full(sum(map(len, repeats)), 2)]
    repeat_batch = pa.record_batch([pa.array(column) for column in columns], schema=COPY_SCHEMA)
    files[repeat_file] = write_arrow(out / repeat_file, COPY_SCHEMA, [repeat_batch])
    # one batch, so that a look-up by bisection maps the table and reads a few pages of it
    table = pa.Table.from_batches(documents, DOCUMENT_SCHEMA).combine_chunks().to_batches()
    files[document_file] = write_arrow(out / document_file, DOCUMENT_SCHEMA, table)
    return UnitResult(files, {"anchors": counts.tolist()})


def _by_key(rows: np.ndarray, base: int, counts: np.ndarray) -> pa.RecordBatch:
    """Anchor rows as a batch in order of key, and of place among equals; adds to `counts` of the key ranges."""
    keys = np.ascontiguousarray(rows[:, anchors.KEY]).view(np.uint64)
    order = np.argsort(keys, kind="stable")
    counts += np.bincount(_key_range(keys), minlength=KEY_RANGES)
    place = rows[order, anchors.PLACE]
    columns = [
        pa.array(keys[order]),
        pa.array(place + base),
        pa.array((place - rows[order, anchors.LAST]).astype(np.uint16)),
        pa.array((place - rows[order, anchors.FIRST]).astype(np.uint16)),
    ]
    return pa.record_batch(columns, schema=ANCHOR_SCHEMA)


def _key_range(keys: np.ndarray) -> np.ndarray:
    return (keys // np.uint64(2**64 // KEY_RANGES)).astype(np.int64)


def key_ranges(counts: Sequence[int], min_bytes: int, memory_mb: int) -> list[tuple[int, int]]:
    """Cut the key ranges into the fewest runs [first, stop) whose anchors fit the memory.

    Raises:
        UserError: one key range alone does not fit: the corpus is too large, or has one content too often.
    """
    most = (memory_mb << 20) // ANCHOR_BYTES
    runs: list[tuple[int, int]] = []
    first = held = 0
    for index, count in enumerate(counts):
        if count > most:
            needed = -(-count * ANCHOR_BYTES >> 20)
            raise UserError(
                f"substrings.memory_mb = {memory_mb}: {count} samples of {min_bytes} bytes of text must be compared "
                f"together, which takes {needed} MB; set memory_mb = {needed} or more (--memory {needed})"
            )
        if held + count > most:
            runs.append((first, index))
            first, held = index, 0
        held += count
    return [*runs, (first, len(counts))]


def find(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """The copies among all anchors of a run of key ranges."""
    index = read_json(Path(payload["index"]["path"]))
    keys, places, nearest, farthest = _shared_anchors(index["anchors"], *payload["key_ranges"])
    parts = [MappedPart.open(reference) for reference in index["documents"]] if len(keys) else []
    changes = np.flatnonzero(keys[1:] != keys[:-1]) + 1
    bounds = np.concatenate([[0], changes, [len(keys)]]) if len(keys) else np.zeros(1, np.int64)

    def sorted_batches() -> Iterator[pa.RecordBatch]:
        group = 0
        while group < len(bounds) - 1:
            # as many groups as fill a batch, but one at least
            after = max(group + 1, int(np.searchsorted(bounds, bounds[group] + SORTED_ROWS, side="right")) - 1)
            chosen = slice(bounds[group], bounds[after])
            found = copies.find_copies(
                bounds[group : after + 1] - bounds[group],
                addresses(places[chosen], parts),
                places[chosen],
                nearest[chosen],
                farthest[chosen],
                payload["min_bytes"],
            )
            found = found[np.argsort(found[:, copies.START])]
            yield pa.record_batch([pa.array(column) for column in found.T], schema=COPY_SCHEMA)
            group = after

    name = f"{payload['name']}.arrow"
    return UnitResult({name: write_arrow(out / name, COPY_SCHEMA, sorted_batches())}, {"shared_anchors": len(keys)})


def _shared_anchors(files: Sequence[Mapping[str, Any]], first: int, stop: int) -> list[np.ndarray]:
    """The columns of the anchors in a run of key ranges whose key occurs twice or more, by key and place."""
    slices = []
    for file in files:
        for batch in read_arrow(Path(file["path"])).to_batches():
            low, high = np.searchsorted(_key_range(batch.column("key").to_numpy()), [first, stop])
            slices.append(batch.slice(low, high - low))
    table = pa.Table.from_batches(slices, ANCHOR_SCHEMA)
    columns = [table[name].to_numpy() for name in ANCHOR_SCHEMA.names]
    order = np.argsort(columns[0], kind="stable")  # merges sorted slices; they come in order of place
    keys = columns[0][order]
    equal = keys[1:] == keys[:-1]
    shared = order[np.append(equal, False) | np.append(False, equal)] if len(keys) else order
    return [column[shared] for column in columns]


def cut(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """One documents part with its marked bytes cut out or counted, and the evidence for it."""
    config = payload["config"]
    part = MappedPart.open(payload["documents"])
    index = read_json(Path(payload["index"]["path"]))
    kept = _Kept(index["tables"])
    found = [batch for file in (payload["repeats"], *index["copies"]) for batch in mapped_batches(file["path"])]
    evidence: dict[str, list[pa.RecordBatch]] = {SPANS: [], REMOVED: []}
    stats: dict[str, Any] = {"sources": {}, "occurrences": {}}
    documents = pa.ipc.open_stream(pa.BufferReader(part.buffer)).schema
    names = [name for name in documents.names if name != DUPLICATE_BYTES]
    fields = [documents.field(name) for name in names]
    if config["action"] == "annotate":
        fields.append(pa.field(DUPLICATE_BYTES, pa.uint64()))
    schema = with_metadata(pa.schema(fields, documents.metadata), "documents", config=config)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch, positions in part.batches():
            first, stop = (positions[[0, -1]] + part.base).tolist()
            inside = _copies_between(found, first, stop, payload["memory_mb"])
            inside[:, copies.START] -= part.base
            marked = spans.marked_spans(part.bytes(), positions, inside, config["min_bytes"])
            keepers = kept.look_up(marked[:, spans.SPAN_SOURCE])
            taken = np.zeros(len(batch), np.int64)
            np.add.at(taken, marked[:, spans.DOCUMENT], marked[:, spans.SPAN_STOP] - marked[:, spans.SPAN_START])
            sizes = np.diff(positions)
            gone = np.zeros(len(batch), np.bool_)
            if config["action"] == "cut":
                gone = (taken > 0) & (sizes - taken < config["min_kept_bytes"])
            evidence[SPANS].append(_span_batch(batch, positions, marked, keepers))
            evidence[REMOVED].append(_removed_batch(batch, marked, keepers, gone, taken, sizes))
            _count_occurrences(stats["occurrences"], marked)
            _count_sources(stats["sources"], batch, sizes, taken, gone, config["action"])
            columns = {name: batch.column(name) for name in names}
            if config["action"] == "annotate":
                columns[DUPLICATE_BYTES] = pa.array(taken.astype(np.uint64))
            elif len(marked):
                offsets, text = spans.without_spans(part.bytes(), positions, marked)
                buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
                columns["text"] = pa.Array.from_buffers(pa.large_string(), len(batch), buffers)
            yield pa.record_batch(list(columns.values()), schema=schema).filter(pa.array(~gone))

    name = f"{payload['part']}.arrow"
    files = {name: write_arrow(out / name, schema, batches())}
    for kind, table_schema in ((SPANS, SPAN_SCHEMA), (REMOVED, REMOVED_SCHEMA)):
        evidence_file = f"{STATE_FOLDER}/{Path(kind).stem}-{name}"
        files[evidence_file] = write_arrow(out / evidence_file, table_schema, evidence[kind])
    return UnitResult(files, {**stats, "spans": sum(map(len, evidence[SPANS]))})


def _copies_between(sorted_copies: Sequence[pa.RecordBatch], first: int, stop: int, memory_mb: int) -> np.ndarray:
    """int64[copies, 4]: the copies that start at places from `first` to `stop`, in order.

    Raises:
        UserError: they do not fit the memory.
    """
    slices = []
    for batch in sorted_copies:
        low, high = np.searchsorted(batch.column("start").to_numpy(), [first, stop])
        slices.append(batch.slice(low, high - low))
    rows = sum(map(len, slices))
    needed = -(-rows * COPY_BYTES >> 20)
    if needed > memory_mb:
        raise UserError(
            f"substrings.memory_mb = {memory_mb}: one batch of {stop - first} bytes of documents has {rows} copies, "
            f"which take {needed} MB; set memory_mb = {needed} or more (--memory {needed})"
        )
    table = pa.Table.from_batches(slices, COPY_SCHEMA)
    found = np.stack([table[name].to_numpy() for name in COPY_SCHEMA.names], axis=1)
    return found[np.argsort(found[:, copies.START])]


class _Kept:
    """Finds the documents that hold places, in the tables of all parts; a table is mapped when it is first needed."""

    def __init__(self, tables: Sequence[Mapping[str, Any]]) -> None:
        self._tables = tables
        self._bases = np.array([table["base"] for table in tables], np.int64)
        self._open: dict[int, pa.RecordBatch] = {}

    def look_up(self, places: np.ndarray) -> pa.Table:
        """doc_id, id and start (bytes in the document) of each of int64[...] places."""
        in_part = np.searchsorted(self._bases, places, side="right") - 1
        found = [pa.table({"start": [], "doc_id": [], "id": []}, DOCUMENT_SCHEMA)]
        order = np.argsort(in_part, kind="stable")
        for number in np.unique(in_part):
            table = self._table(int(number))
            inside = places[order][in_part[order] == number]
            starts = table.column("start").to_numpy()
            rows = np.searchsorted(starts, inside, side="right") - 1
            offsets = pa.array(inside - starts[rows])
            held = table.take(pa.array(rows))
            found.append(pa.table([offsets, held.column("doc_id"), held.column("id")], schema=DOCUMENT_SCHEMA))
        return pa.concat_tables(found).take(pa.array(np.argsort(order)))

    def _table(self, number: int) -> pa.RecordBatch:
        if number not in self._open:
            (self._open[number],) = mapped_batches(self._tables[number]["path"])
        return self._open[number]


def _span_batch(batch: pa.RecordBatch, positions: np.ndarray, marked: np.ndarray, keepers: pa.Table) -> pa.RecordBatch:
    """The spans of a batch of documents, in bytes of their texts."""
    documents = marked[:, spans.DOCUMENT]
    columns = [
        batch.column("doc_id").take(pa.array(documents)),
        batch.column("id").take(pa.array(documents)),
        pa.array((marked[:, spans.SPAN_START] - positions[documents]).astype(np.uint64)),
        pa.array((marked[:, spans.SPAN_STOP] - positions[documents]).astype(np.uint64)),
        keepers["doc_id"].combine_chunks(),
        keepers["id"].combine_chunks(),
        keepers["start"].cast(pa.uint64()).combine_chunks(),
    ]
    return pa.record_batch(columns, schema=SPAN_SCHEMA)


def _removed_batch(
    batch: pa.RecordBatch,
    marked: np.ndarray,
    keepers: pa.Table,
    gone: np.ndarray,
    taken: np.ndarray,
    sizes: np.ndarray,
) -> pa.RecordBatch:
    """The removed documents of a batch, each with the document that its longest span (the first such) copies."""
    lengths = marked[:, spans.SPAN_STOP] - marked[:, spans.SPAN_START]
    order = np.lexsort((-lengths, marked[:, spans.DOCUMENT]))  # stable: among equals the first
    _, leading = np.unique(marked[order, spans.DOCUMENT], return_index=True)
    longest = order[leading]
    rows = pa.array(marked[longest, spans.DOCUMENT][gone[marked[longest, spans.DOCUMENT]]])
    keepers = keepers.take(pa.array(longest[gone[marked[longest, spans.DOCUMENT]]]))
    shares = (taken[rows] / sizes[rows]).astype(np.float32)
    columns = [
        batch.column("doc_id").take(rows),
        batch.column("id").take(rows),
        pa.array([REASON] * len(rows), pa.string()),
        keepers["doc_id"].combine_chunks(),
        keepers["id"].combine_chunks(),
        pa.array([INPUT] * len(rows), pa.string()),
        pa.array(shares),
        keepers["doc_id"].combine_chunks(),
    ]
    return pa.record_batch(columns, schema=REMOVED_SCHEMA)


def _count_occurrences(stats: dict[str, dict[str, int]], marked: np.ndarray) -> None:
    """Add spans to stats["2-3"], ["4-7"], ...: by the occurrences of their content, documents that have such spans
    and the bytes of these."""
    power = np.frexp(marked[:, spans.SPAN_OCCURRENCES])[1] - 1  # 2**power <= occurrences < 2**(power + 1)
    for k in np.unique(power).tolist():
        chosen = marked[power == k]
        documents = len(np.unique(chosen[:, spans.DOCUMENT]))
        size = int((chosen[:, spans.SPAN_STOP] - chosen[:, spans.SPAN_START]).sum())
        add_counts(stats.setdefault(f"{2**k}-{2 ** (k + 1) - 1}", {}), {"documents": documents, "bytes": size})


def _count_sources(
    stats: dict[str, dict[str, dict[str, int]]],
    batch: pa.RecordBatch,
    sizes: np.ndarray,
    taken: np.ndarray,
    gone: np.ndarray,
    action: str,
) -> None:
    """Add a batch to stats[source]: what is kept, what is lost ("substring"), and what is marked ("duplicate")."""
    lost = np.where(gone, sizes, taken) if action == "cut" else np.zeros_like(taken)
    counted = pa.table(
        {
            "source": batch.column("source"),
            "gone": gone.astype(np.int64),
            "lost": lost,
            "left": sizes - lost,
            "marked": (taken > 0).astype(np.int64),
            "taken": taken,
        }
    )
    sums = counted.group_by("source").aggregate(
        [(name, "sum") for name in counted.column_names[1:]] + [([], "count_all")]
    )
    for row in sums.to_pylist():
        entry = stats.setdefault(row["source"], {name: {} for name in ("kept", REASON, "duplicate")})
        add_counts(entry["kept"], {"documents": row["count_all"] - row["gone_sum"], "bytes": row["left_sum"]})
        add_counts(entry[REASON], {"documents": row["gone_sum"], "bytes": row["lost_sum"]})
        add_counts(entry["duplicate"], {"documents": row["marked_sum"], "bytes": row["taken_sum"]})


def collect(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """spans.parquet and removed.parquet: the evidence of all parts, in order, a batch at a time."""
    files = {}
    for name, schema in ((SPANS, SPAN_SCHEMA), (REMOVED, REMOVED_SCHEMA)):
        rows = 0
        with (
            atomic_path(out / name) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            for file in payload[name]:
                for batch in read_arrow(Path(file["path"])).to_batches():
                    if len(batch):
                        writer.write_batch(batch)
                        rows += len(batch)
        files[name] = rows
    return UnitResult(files)
