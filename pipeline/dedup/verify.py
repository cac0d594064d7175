"""The units that verify candidates: their shingle sets, dealt to the unit of their cluster, and who leaves for whom."""

from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.pipeline.dedup.characters import character_tables
from seqmill.pipeline.dedup.clusters import verified_leaders
from seqmill.pipeline.dedup.config import DedupConfig
from seqmill.pipeline.dedup.shingles import shingle_sets
from seqmill.pipeline.dedup.sketch import BANDS, DOCUMENTS, config_of, nfc
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import UnitResult
from seqmill.storage import read_arrow, write_arrow

CLUSTER_SALT = np.uint64(0x9E3779B97F4A7C15)  # odd: different clusters, different products


def shingle(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Shingle sets and band keys of the candidates of one documents part: one batch for every verify unit, in order."""
    config = config_of(payload)
    clusters = read_arrow(Path(payload["clusters"]["path"]))
    positions = clusters["position"].to_numpy()
    low, high = np.searchsorted(positions, [payload["first"], payload["first"] + payload["documents"]["rows"]])
    mine = clusters.slice(low, high - low)
    schema = pa.schema(
        {
            "position": pa.int64(),
            "cluster": pa.int64(),
            "rank": pa.uint64(),
            "keys": pa.list_(pa.uint64(), config.recipe.bands),
            "shingles": pa.large_list(pa.uint64()),
        }
    )
    rows = mine["position"].to_numpy() - payload["first"]
    rank = read_arrow(Path(payload["sketches"][DOCUMENTS]["path"]))["rank"].take(pa.array(rows))
    keys = _band_keys(read_arrow(Path(payload["sketches"][BANDS]["path"])), rows, config.recipe.bands)
    sets = _shingle_sets(payload["documents"], rows, config)
    table = pa.table([mine["position"], mine["cluster"], rank, keys, sets], schema=schema)
    unit = mine["unit"].to_numpy()
    order = np.argsort(unit, kind="stable")
    bounds = np.searchsorted(unit[order], np.arange(payload["units"] + 1))

    def batches() -> Iterator[pa.RecordBatch]:
        for first, last in pairwise(bounds):
            chosen = table.take(pa.array(order[first:last])).combine_chunks().to_batches()
            yield chosen[0] if chosen else pa.RecordBatch.from_pylist([], schema=schema)

    name = f"{payload['part']}.arrow"
    return UnitResult({name: write_arrow(out / name, schema, batches())})


def _band_keys(bands: pa.Table, rows: np.ndarray, count: int) -> pa.FixedSizeListArray:
    """The `count` band keys of each of the increasing `rows`, in any order: keys of different bands are different."""
    row = bands["row"].to_numpy()
    is_wanted = np.zeros(int(row.max(initial=0)) + 1, bool)
    is_wanted[rows] = True
    chosen = np.flatnonzero(is_wanted[row])
    by_row = chosen[np.argsort(row[chosen], kind="stable")]
    return pa.FixedSizeListArray.from_arrays(bands["key"].take(pa.array(by_row)).combine_chunks(), count)


def _shingle_sets(documents: Mapping[str, Any], rows: np.ndarray, config: DedupConfig) -> pa.LargeListArray:
    """Shingle sets of the documents at the increasing `rows` of a part."""
    recipe = config.recipe
    tables = character_tables(recipe.verifier)
    sizes, hashes = [np.zeros(1, np.int64)], [np.empty(0, np.uint64)]
    first = 0
    for batch in document_batches(Path(documents["path"])) if len(rows) else ():
        low, high = np.searchsorted(rows, [first, first + len(batch)])
        chosen = batch.column("text").take(pa.array(rows[low:high] - first))
        first += len(batch)
        offsets, data = nfc(chosen)
        ends, found = shingle_sets(data, offsets, *tables, recipe.spaced, recipe.ngram)
        sizes.append(np.diff(ends))
        hashes.append(found)
    ends = np.cumsum(np.concatenate(sizes))
    return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(hashes)))


def _batch(path: Path, index: int) -> pa.RecordBatch:
    """Batch `index` of a stream, mapped into memory. (Reading a whole table would leave empty batches out.)"""
    with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
        return next(islice(reader, index, None))


def verify(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Decide for the clusters of one unit who is removed, for whom, and how similar they are. Documents of the index,
    those before position `fresh`, come first and stay."""
    config, fresh = config_of(payload), payload["fresh"]
    table = pa.Table.from_batches([_batch(Path(file["path"]), payload["unit"]) for file in payload["shingles"]])
    last_first = ("position", "rank", "is_fresh", "cluster")
    table = table.append_column("is_fresh", pc.greater_equal(table["position"], fresh))
    order = np.lexsort([table[name].to_numpy() for name in last_first])
    table = table.take(pa.array(order)).combine_chunks()
    position, cluster = table["position"].to_numpy(), table["cluster"].to_numpy()
    starts = np.flatnonzero(np.diff(cluster, prepend=-1))
    # documents of the index that share a key may lie in several clusters: each has a bucket of its own
    own = np.repeat(cluster.astype(np.uint64) * CLUSTER_SALT, config.recipe.bands)
    names, bucket = np.unique(table["keys"].chunk(0).flatten().to_numpy() ^ own, return_inverse=True)
    sets = table["shingles"].chunk(0)
    leader, similarity, capped = verified_leaders(
        np.append(starts, len(table)),
        bucket.reshape(len(table), -1),
        len(names),
        sets.offsets.to_numpy(),
        sets.values.to_numpy(),
        position < fresh,
        config.threshold,
        np.inf if config.containment is None else config.containment,
    )
    gone = np.flatnonzero(leader != np.arange(len(leader)))
    found = {"removed": position[gone], "kept": position[leader[gone]], "similarity": similarity[gone]}
    removed = pa.table(found).combine_chunks()
    name = f"{payload['name']}.arrow"
    rows = write_arrow(out / name, removed.schema, removed.to_batches())
    kept = int(np.sum(position >= fresh) - np.sum(position[starts] >= fresh)) - len(gone)
    return UnitResult({name: rows}, {"kept_after_verification": kept, "capped_buckets": int(capped)})
