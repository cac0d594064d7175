"""The work units of the dedup stage: each reads files and writes files, and knows nothing of the others.

sketch    documents part          -> exact keys and MinHash band keys           (one unit a part)
cluster   all sketches            -> exact removals, candidate clusters          (one unit)
shingle   documents part, clusters -> shingle sets of the candidates             (one unit a part)
verify    clusters, shingle sets  -> removed.parquet                             (one unit)
filter    documents part, removed -> documents part without the removed          (one unit a part)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from seqmill.pipeline.dedup.characters import character_tables
from seqmill.pipeline.dedup.clusters import (
    Removals,
    all_roots,
    exact_removals,
    join_equal_keys,
    survivor_rank,
    verified_leaders,
)
from seqmill.pipeline.dedup.config import DedupConfig
from seqmill.pipeline.dedup.minhash import band_keys, hash_family
from seqmill.pipeline.dedup.shingles import collapse_white_space, shingle_sets
from seqmill.pipeline.documents import document_batches, utf8_buffers
from seqmill.pipeline.execution import UnitResult
from seqmill.storage import atomic_path, read_arrow, with_metadata, write_arrow

CLUSTERS = "clusters.arrow"
REMOVED = "removed.parquet"
CLUSTER_COLUMNS = ("cluster_id", "cluster_size")
REMOVED_SCHEMA = pa.schema(
    {
        "doc_id": pa.uint64(),
        "id": pa.string(),
        "reason": pa.string(),
        "kept_doc_id": pa.uint64(),
        "kept_id": pa.string(),
        "similarity": pa.float32(),
        "cluster_id": pa.uint64(),
    }
)


def config_of(payload: Mapping[str, Any]) -> DedupConfig:
    """The stage's configuration as it travelled in a payload."""
    settings = dict(payload["config"])
    return DedupConfig(**{**settings, "source_priority": tuple(settings["source_priority"])})


def sketch(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Exact keys and band keys of one documents part."""
    config = config_of(payload)
    recipe = config.recipe
    family = hash_family(recipe.bands * recipe.rows, config.seed)
    tables = character_tables(recipe.normaliser)
    width = recipe.bands if config.near else 0
    schema = with_metadata(_sketch_schema(width), "sketches", config=dict(payload["config"]))

    def sketches() -> Any:
        for batch in document_batches(Path(payload["documents"]["path"])):
            text = batch.column("text")
            offsets, data = _nfc(text)
            high, low = _exact_keys(offsets, data)
            if config.near:
                keys, shingles = band_keys(data, offsets, *tables, recipe.spaced, recipe.ngram, *family, recipe.bands)
            else:
                keys, shingles = np.empty((len(text), 0), np.uint64), np.zeros(len(text), np.int64)
            columns = [
                batch.column("doc_id"),
                batch.column("id"),
                batch.column("source"),
                pc.binary_length(text).cast(pa.uint64()),
                pa.array(high),
                pa.array(low),
                pa.array(shingles),
                pa.FixedSizeListArray.from_arrays(pa.array(keys.reshape(-1)), width) if width else None,
            ]
            yield pa.record_batch([column for column in columns if column is not None], schema=schema)

    name = f"{payload['part']}.arrow"
    return UnitResult({name: write_arrow(out / name, schema, sketches())})


def _sketch_schema(width: int) -> pa.Schema:
    fields = {
        "doc_id": pa.uint64(),
        "id": pa.string(),
        "source": pa.string(),
        "num_bytes": pa.uint64(),
        "exact_high": pa.uint64(),
        "exact_low": pa.uint64(),
        "shingles": pa.int64(),
    }
    if width:
        fields["keys"] = pa.list_(pa.uint64(), width)
    return pa.schema(fields)


def _nfc(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and UTF-8 bytes of the documents in NFC; ASCII is in NFC as it is."""
    offsets, data = utf8_buffers(text)
    if len(data) and data.max() < 0x80:
        return offsets, data
    return utf8_buffers(pc.utf8_normalize(text, form="NFC"))


def _exact_keys(offsets: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The halves of the xxh3-128 of every document, with white space collapsed."""
    ends, collapsed = collapse_white_space(data, offsets, character_tables()[0])
    view = memoryview(collapsed)
    digests = b"".join(xxhash.xxh3_128_digest(view[ends[d] : ends[d + 1]]) for d in range(len(ends) - 1))
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)
    return halves[:, 0].copy(), halves[:, 1].copy()


def cluster(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Exact removals and candidate clusters of the whole corpus.

    Writes one row per document that takes part in either: its cluster (the smallest position among its candidates, or
    its own), its rank, and for exact duplicates the document kept.
    """
    config = config_of(payload)
    table = pa.concat_tables([read_arrow(Path(file["path"])) for file in payload["sketches"]])
    num_bytes = table["num_bytes"].to_numpy()
    priority = _priorities(table["source"], config.source_priority)
    rank = survivor_rank(priority, num_bytes)
    salts = _scope_salts(table["source"], config)
    exact = Removals(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    if config.exact:
        exact = exact_removals(table["exact_high"].to_numpy() ^ salts, table["exact_low"].to_numpy(), rank)
    roots = np.arange(len(table))
    if config.near and len(table):
        alive = np.ones(len(table), bool)
        alive[exact.removed] = False
        roots = _candidate_roots(table, np.flatnonzero(alive & (table["shingles"].to_numpy() > 0)), salts, config)
    exact_kept = np.full(len(table), -1, np.int64)
    exact_kept[exact.removed] = exact.kept
    sizes = np.bincount(roots, minlength=len(table))
    is_candidate = (sizes[roots] > 1) & (exact_kept < 0)
    members = np.flatnonzero(is_candidate | (exact_kept >= 0))
    clusters = pa.table(
        {
            "doc_id": table["doc_id"].take(members),
            "id": table["id"].take(members),
            "source": table["source"].take(members),
            "num_bytes": table["num_bytes"].take(members),
            "cluster": pa.array(roots[members]),
            "rank": pa.array(rank[members]),
            "candidate": pa.array(is_candidate[members]),
            "exact_kept_doc_id": _optional_take(table["doc_id"], exact_kept[members]),
            "exact_kept_id": _optional_take(table["id"], exact_kept[members]),
            "exact_kept_source": _optional_take(table["source"], exact_kept[members]),
        }
    )
    schema = with_metadata(clusters.schema, "clusters")
    rows = write_arrow(out / CLUSTERS, schema, clusters.cast(schema).combine_chunks().to_batches())
    return UnitResult({CLUSTERS: rows})


def _priorities(sources: pa.ChunkedArray, best_first: Sequence[str]) -> np.ndarray:
    """int64[documents]: the position of each document's source in `best_first`, the last position for all others."""
    found = pc.index_in(sources, pa.array(list(best_first), pa.string()))
    return pc.fill_null(found, len(best_first)).to_numpy().astype(np.int64)


def _scope_salts(sources: pa.ChunkedArray, config: DedupConfig) -> np.ndarray:
    """uint64[documents]: equal for documents that may be duplicates of each other. A source in no group is one."""
    if config.scope == "global":
        return np.zeros(len(sources), np.uint64)
    group_of = {source: f"group {group}" for group, members in config.groups.items() for source in members}
    encoded = sources.combine_chunks().dictionary_encode()
    names = [group_of.get(name, f"source {name}") for name in encoded.dictionary.to_pylist()]
    return np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names], np.uint64)[encoded.indices.to_numpy()]


def _candidate_roots(table: pa.Table, documents: np.ndarray, salts: np.ndarray, config: DedupConfig) -> np.ndarray:
    """int64[all documents]: the smallest position among the documents connected by equal bands; itself if none is."""
    all_keys = table["keys"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    parent = np.arange(len(documents))
    for band in range(config.recipe.bands):
        keys = all_keys[documents, band] ^ salts[documents]
        join_equal_keys(keys, np.argsort(keys, kind="stable"), parent)
    roots = np.arange(len(table))
    roots[documents] = documents[all_roots(parent)]
    return roots


def _optional_take(column: pa.ChunkedArray, indices: np.ndarray) -> pa.ChunkedArray:
    """`column[indices]` with null where the index is negative."""
    return column.take(pa.array(indices, mask=indices < 0))


def shingle(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Shingle sets of the candidates of one documents part."""
    config = config_of(payload)
    recipe = config.recipe
    tables = character_tables(recipe.verifier)
    clusters = read_arrow(Path(payload["clusters"]["path"]))
    candidates = clusters.filter(clusters["candidate"])["doc_id"].combine_chunks()
    fields = {"doc_id": pa.uint64(), "shingles": pa.large_list(pa.uint64())}
    schema = with_metadata(pa.schema(fields), "shingles")

    def sets() -> Any:
        for batch in document_batches(Path(payload["documents"]["path"])):
            chosen = batch.filter(pc.is_in(batch.column("doc_id"), candidates))
            offsets, data = _nfc(chosen.column("text"))
            ends, hashes = shingle_sets(data, offsets, *tables, recipe.spaced, recipe.ngram)
            lists = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(hashes))
            yield pa.record_batch([chosen.column("doc_id"), lists], schema=schema)

    name = f"{payload['part']}.arrow"
    return UnitResult({name: write_arrow(out / name, schema, sets())})


def verify(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Decide what is removed, and write the evidence: one row per removed document, sorted by doc_id."""
    config = config_of(payload)
    clusters = read_arrow(Path(payload["clusters"]["path"]))
    exact = clusters.filter(pc.is_valid(clusters["exact_kept_doc_id"]))
    near = clusters.filter(clusters["candidate"]).sort_by([("cluster", "ascending"), ("rank", "ascending")])
    leader, similarity = np.empty(0, np.int64), np.empty(0, np.float32)
    if len(near):
        sets = pa.concat_tables([read_arrow(Path(file["path"])) for file in payload["shingles"]])
        lists = sets.take(pc.index_in(near["doc_id"], sets["doc_id"].combine_chunks()))["shingles"].combine_chunks()
        starts = np.flatnonzero(np.diff(near["cluster"].to_numpy(), prepend=-1))
        leader, similarity = verified_leaders(
            np.append(starts, len(near)), lists.offsets.to_numpy(), lists.values.to_numpy(), config.threshold
        )
    gone = np.flatnonzero(leader != np.arange(len(leader)))
    near_kept = near.take(leader[gone])
    final = dict(zip(near["doc_id"].take(gone).to_pylist(), near_kept["doc_id"].to_pylist(), strict=True))
    exact_kept = exact["exact_kept_doc_id"].to_pylist()
    removed = pa.table(
        {
            "doc_id": pa.chunked_array([*exact["doc_id"].chunks, *near["doc_id"].take(gone).chunks], pa.uint64()),
            "id": pa.chunked_array([*exact["id"].chunks, *near["id"].take(gone).chunks], pa.string()),
            "reason": pa.array(["exact"] * len(exact) + ["near"] * len(gone), pa.string()),
            "kept_doc_id": pa.array([*exact_kept, *near_kept["doc_id"].to_pylist()], pa.uint64()),
            "kept_id": pa.array([*exact["exact_kept_id"].to_pylist(), *near_kept["id"].to_pylist()], pa.string()),
            "similarity": pa.array(np.concatenate([np.ones(len(exact), np.float32), similarity[gone]])),
            # the kept copy of an exact duplicate may itself have been removed as a near one
            "cluster_id": pa.array(
                [*(final.get(kept, kept) for kept in exact_kept), *near_kept["doc_id"].to_pylist()], pa.uint64()
            ),
        },
        schema=REMOVED_SCHEMA,
    ).sort_by("doc_id")
    with atomic_path(out / REMOVED) as temporary:
        pq.write_table(removed, temporary, compression="zstd")
    rejected = len(near) - len(gone) - len(np.unique(near["cluster"].to_numpy())) if len(near) else 0
    overlap = _overlap(exact, exact["exact_kept_source"]) + _overlap(near.take(gone), near_kept["source"])
    stats = {"candidates": len(near), "kept_after_verification": rejected, "overlap": overlap}
    return UnitResult({REMOVED: len(removed)}, stats)


def _overlap(removed: pa.Table, kept_source: pa.ChunkedArray) -> list[dict[str, Any]]:
    """Removed documents and their bytes by the source they were in and the source of the document kept."""
    pairs = pa.table({"source": removed["source"], "kept_source": kept_source, "bytes": removed["num_bytes"]})
    totals = pairs.group_by(["source", "kept_source"]).aggregate([("bytes", "count"), ("bytes", "sum")])
    names = {"bytes_count": "documents", "bytes_sum": "bytes"}
    return [{names.get(key, key): value for key, value in row.items()} for row in totals.to_pylist()]


def filter_documents(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """One documents part without its removed documents, with cluster_id and cluster_size."""
    removed = pq.read_table(payload["removed"]["path"], columns=["doc_id", "reason", "cluster_id"])
    removed_ids = removed["doc_id"].combine_chunks()
    followers = removed["cluster_id"].value_counts()
    leaders, follower_counts = followers.field("values"), followers.field("counts")
    source = Path(payload["documents"]["path"])
    schema = pa.ipc.open_stream(pa.memory_map(str(source))).schema
    passed_on = [name for name in schema.names if name not in CLUSTER_COLUMNS]  # those of an earlier dedup are replaced
    schema = pa.schema([schema.field(name) for name in passed_on])
    schema = schema.append(pa.field("cluster_id", pa.uint64())).append(pa.field("cluster_size", pa.uint32()))
    schema = with_metadata(schema, "documents", config=dict(payload["config"]))
    stats: dict[str, dict[str, dict[str, int]]] = {}

    def kept_batches() -> Any:
        for batch in document_batches(source):
            place = pc.index_in(batch.column("doc_id"), removed_ids)
            reasons = pc.fill_null(removed["reason"].combine_chunks().take(place), "kept")
            _count(stats, batch, reasons)
            kept = batch.filter(pc.is_null(place))
            ids = kept.column("doc_id")
            size = pc.fill_null(follower_counts.take(pc.index_in(ids, leaders)), 0)
            size = pc.add(size, 1).cast(pa.uint32())
            yield pa.record_batch([*kept.select(passed_on).columns, ids, size], schema=schema)

    name = f"{payload['part']}.arrow"
    rows = write_arrow(out / name, schema, kept_batches())
    return UnitResult({name: rows}, {"sources": stats})


def _count(stats: dict[str, dict[str, dict[str, int]]], batch: pa.RecordBatch, reasons: pa.Array) -> None:
    """Add a batch to stats[source][reason] = {documents, bytes}."""
    counted = pa.table(
        {"source": batch.column("source"), "reason": reasons, "bytes": pc.binary_length(batch.column("text"))}
    )
    totals = counted.group_by(["source", "reason"]).aggregate([("bytes", "sum"), ("bytes", "count")])
    for row in totals.to_pylist():
        entry = stats.setdefault(row["source"], {}).setdefault(row["reason"], {"documents": 0, "bytes": 0})
        entry["documents"] += row["bytes_count"]
        entry["bytes"] += row["bytes_sum"]
