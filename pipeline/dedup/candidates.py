"""The units that find duplicates: equal texts and equal bands, a range of keys at a time, then clusters of all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.pipeline.dedup.clusters import all_roots, exact_removals, join_pairs, star_edges
from seqmill.pipeline.dedup.exchange import KeyRange, read_range
from seqmill.pipeline.execution import UnitResult
from seqmill.storage import read_arrow, write_arrow

EXACT_ROW_BYTES = 32  # of the rows that an `exact` unit sorts
BAND_ROW_BYTES = 16
CLUSTER_DOCUMENT_BYTES = 26  # of memory per document of the corpus in `cluster`: parent, root, size and flags
CANDIDATE_BYTES = 64  # more per document of a component: position, root, unit, shingles and their sorting
SHINGLE_BYTES, BAND_BYTES = 8, 16  # of a cluster's shingle sets and buckets
SHARE_OF_MEMORY = 8  # these bytes of one verify unit fit this often into the budget
COMPARING = 4  # memory that comparing a cluster takes, in sizes of these bytes
MOST_BYTES = 64_000_000  # of one verify unit, so that units can be worked on side by side; a cluster is never cut


def exact(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Documents of equal text whose key lies in one range: which are removed, and for which."""
    key_range = KeyRange(payload["range"], payload["ranges"])
    rows = read_range(payload["files"], "high", key_range, ("high", "low", "rank"))
    alive = ~flags(payload["documents"], payload["gone"])[rows["position"]]
    high, low, rank, position = (rows[name][alive] for name in ("high", "low", "rank", "position"))
    rank[position < payload["fresh"]] = 0  # what the index holds stays
    removed, kept = exact_removals(high, low, rank, position)
    is_fresh = removed >= payload["fresh"]
    return _write(out, payload["name"], {"removed": removed[is_fresh], "kept": kept[is_fresh]})


def bucket(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Documents that share a band whose key lies in one range: an edge from each to the first of them."""
    key_range = KeyRange(payload["range"], payload["ranges"])
    rows = read_range(payload["files"], "key", key_range, ("key",))
    alive = ~flags(payload["documents"], payload["gone"])[rows["position"]]
    keys, positions = rows["key"][alive], rows["position"][alive]
    first, other, largest = star_edges(keys, positions, np.argsort(keys, kind="stable"), payload["fresh"])
    result = _write(out, payload["name"], {"first": first, "other": other})
    return UnitResult(result.files, {"largest": int(largest)})


def cluster(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Connected components of all edges, and which verify unit each goes to.

    Writes one row per document of a component of two or more: its position, its cluster (the smallest position in it)
    and its unit.
    """
    parent = np.arange(payload["documents"])
    for file in payload["edges"]:
        edges = read_arrow(Path(file["path"]))
        for batch in edges.to_batches():
            join_pairs(batch.column("first").to_numpy(), batch.column("other").to_numpy(), parent)
    roots = all_roots(parent)
    sizes = np.bincount(roots, minlength=len(roots))
    members = np.flatnonzero(sizes[roots] > 1)
    root = roots[members]
    needed = len(parent) * CLUSTER_DOCUMENT_BYTES + len(members) * CANDIDATE_BYTES
    require_memory(f"{len(members):,} candidates of {len(parent):,} documents", needed, payload["memory"])
    unit = _verify_units(root, _shingle_counts(payload["sketches"], members), payload["bands"], payload["memory"])
    result = _write(out, "clusters", {"position": members, "cluster": root, "unit": unit})
    histogram = np.bincount(np.ceil(np.log2(sizes[sizes > 1])).astype(np.int64))
    by_size = {str(2**power): int(count) for power, count in enumerate(histogram) if count}
    stats = {"units": int(unit.max(initial=-1)) + 1, "candidates": len(members), "candidate_clusters_up_to": by_size}
    return UnitResult(result.files, stats)


def flags(documents: int, removals: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """bool[documents]: whether one of the files lists the document as removed."""
    gone = np.zeros(documents, bool)
    for file in removals:
        gone[read_arrow(Path(file["path"]))["removed"].to_numpy()] = True
    return gone


def _shingle_counts(sketches: Sequence[Mapping[str, Any]], positions: np.ndarray) -> np.ndarray:
    """int64[n]: the shingles of the documents at increasing `positions`."""
    counts = np.empty(len(positions), np.int64)
    for file in sketches:
        column = read_arrow(Path(file["path"]))["shingles"].to_numpy()
        low, high = np.searchsorted(positions, [file["first"], file["first"] + len(column)])
        counts[low:high] = column[positions[low:high] - file["first"]]
    return counts


def _verify_units(root: np.ndarray, shingles: np.ndarray, bands: int, memory: int) -> np.ndarray:
    """int64[members]: clusters in the order of their roots, cut where their bytes pass a multiple of the limit."""
    names, inverse, sizes = np.unique(root, return_inverse=True, return_counts=True)
    weight = SHINGLE_BYTES * np.bincount(inverse, weights=shingles, minlength=len(names)) + BAND_BYTES * bands * sizes
    if len(names):
        largest = int(weight.argmax())
        count = int(shingles[inverse == largest].sum())
        what = f"a cluster of {sizes[largest]:,} documents with {count:,} shingles"
        require_memory(what, int(weight[largest]) * COMPARING, memory)
    limit = min(MOST_BYTES, memory // SHARE_OF_MEMORY)
    share = (np.cumsum(weight) - weight) // limit
    return np.unique(share, return_inverse=True)[1][inverse].astype(np.int64)


def require_memory(what: str, needed: int, memory: int) -> None:
    """Refuse what does not fit, with the numbers."""
    if needed > memory:
        raise UserError(
            f"{what} need {-(-needed // 2**20):,} MiB to be compared, dedup.memory_mb allows {memory // 2**20:,}; "
            "raise it, or leave out what they share (documents of boilerplate, or very long ones) by [filter] first"
        )


def _write(out: Path, name: str, columns: Mapping[str, np.ndarray]) -> UnitResult:
    table = pa.table(dict(columns)).combine_chunks()
    return UnitResult({f"{name}.arrow": write_arrow(out / f"{name}.arrow", table.schema, table.to_batches())})
