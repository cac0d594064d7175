"""The units that keep evaluation sets out of the training documents: what equals a holdout document, resembles one, or
holds most of one. Scopes do not count here: every document is compared with every holdout document.

reference  holdout documents          -> their keys, shingles and runs of words           (one unit)
match      documents part, sketch     -> removals for holdout documents                   (one unit a part)
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from seqmill.errors import UserError
from seqmill.pipeline.dedup.characters import character_tables
from seqmill.pipeline.dedup.clusters import MOST_LEADERS, jaccard
from seqmill.pipeline.dedup.config import DedupConfig
from seqmill.pipeline.dedup.containment import best_contained, run_sets, slot_table
from seqmill.pipeline.dedup.shingles import shingle_sets
from seqmill.pipeline.dedup.sketch import config_of, exact_keys, near_keys, nfc, scope_salts
from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import UnitResult
from seqmill.storage import read_arrow, write_arrow

REFERENCE_FILES = ("documents.arrow", "bands.arrow", "runs.arrow")
MATCHES = ("exact", "near", "contained")  # how a document matches, best first
# memory of a match unit: of a shingle; of a run its hash, slots, holders and stamp; of a band its sorting
SHINGLE_BYTES, RUN_BYTES, BAND_BYTES = 8, 48, 56
EMPTY_TEXT = xxhash.xxh3_128_intdigest(b"")
LOW = 2**64 - 1


def reference(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Everything that `match` compares with, of all holdout documents.

    documents.arrow  doc_id, id, source, high, low, has_shingles, runs, shingles: large_list<uint64>
    bands.arrow      key, document                                                         sorted by key
    runs.arrow       run, documents: large_list<int32>                                     sorted by run

    Raises:
        UserError: they do not fit into the memory that a unit may use.
    """
    config = config_of(payload)
    documents, bands, runs, used = [], [np.empty((0, config.recipe.bands), np.uint64)], [], 0
    for batch, band, sets, (ends, hashes) in _compared(payload["parts"], config):
        used += SHINGLE_BYTES * len(sets.values) + RUN_BYTES * len(hashes) + BAND_BYTES * band.size
        if used > payload["memory"]:
            raise UserError(
                f"the holdout documents need more than {used // 2**20:,} MiB to be compared with, dedup.memory_mb "
                f"allows {payload['memory'] // 2**20:,}; raise it, or hold out one set after the other"
            )
        documents.append(pa.table({**batch, "runs": np.diff(ends), "shingles": sets}))
        bands.append(band)
        runs.append((np.diff(ends), hashes))
    if not documents:
        raise UserError("dedup.holdout: there are no documents in it; name other files, or leave it out")
    table = pa.concat_tables(documents).combine_chunks()
    files = dict(zip(REFERENCE_FILES, (table, _bands(np.concatenate(bands), table), _runs(runs)), strict=True))
    stats = {"documents": len(table), "too_short": pc.sum(pc.equal(table["runs"], 0)).as_py() or 0}
    return UnitResult({name: write_arrow(out / name, t.schema, t.to_batches()) for name, t in files.items()}, stats)


def _compared(
    parts: Sequence[Mapping[str, Any]], config: DedupConfig
) -> Iterator[tuple[dict[str, Any], np.ndarray, pa.LargeListArray, tuple[np.ndarray, np.ndarray]]]:
    """Columns, band keys, shingle sets and sets of runs, a batch at a time."""
    recipe, tables = config.recipe, character_tables(config.recipe.verifier)
    for part in parts:
        for batch in document_batches(Path(part["path"])):
            offsets, data = nfc(batch.column("text"))
            high, low = exact_keys(offsets, data)
            everywhere = np.zeros(len(batch), np.uint64)
            band, shingles = near_keys(offsets, data, everywhere, config)
            ends, hashes = shingle_sets(data, offsets, *tables, recipe.spaced, recipe.ngram)
            columns = {name: batch.column(name) for name in ("doc_id", "id", "source")} | {"high": high, "low": low}
            columns["has_shingles"] = shingles > 0
            sets = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(hashes))
            yield columns, band, sets, run_sets(data, offsets, *character_tables(), config.holdout_ngram)


def _bands(keys: np.ndarray, documents: pa.Table) -> pa.Table:
    """Bands of documents that have a shingle; of one key the first documents, as many as leaders of a bucket."""
    near = np.flatnonzero(documents["has_shingles"].to_numpy(zero_copy_only=False))
    flat, document = keys[near].reshape(-1), np.repeat(near, keys.shape[1])
    order = np.argsort(flat, kind="stable")
    flat, document = flat[order], document[order]
    first = np.searchsorted(flat, flat)
    few = np.arange(len(flat)) - first < MOST_LEADERS
    return pa.table({"key": flat[few], "document": document[few]})


def _runs(sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> pa.Table:
    """Every distinct run with the documents that it is in."""
    counts = np.concatenate([np.empty(0, np.int64), *(count for count, _ in sets)])
    hashes = np.concatenate([np.empty(0, np.uint64), *(found for _, found in sets)])
    document = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    order = np.argsort(hashes, kind="stable")
    runs, first = np.unique(hashes[order], return_index=True)
    holders = pa.LargeListArray.from_arrays(pa.array(np.append(first, len(hashes))), pa.array(document[order]))
    return pa.table({"run": runs, "documents": holders})


def match(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """The documents of one part that match a holdout document: for which, how similar, and how they match.

    A removal's `kept` is the row of the holdout document plus `payload["holdout_first"]`.
    """
    config = config_of(payload)
    held, bands, runs = (read_arrow(Path(file["path"])).combine_chunks() for file in payload["reference"])
    sketches = [read_arrow(Path(payload["sketches"][kind]["path"])) for kind in ("documents", "exact", "bands")]
    salts = scope_salts(sketches[0]["source"].combine_chunks(), config)
    rows, documents, how = len(salts), np.full(len(salts), -1), np.full(len(salts), len(MATCHES), np.int8)
    similarity = np.zeros(rows, np.float64)

    def note(kind: str, row: np.ndarray, document: np.ndarray, alike: np.ndarray) -> None:
        documents[row], similarity[row], how[row] = document, alike, MATCHES.index(kind)

    by_row = np.argsort(sketches[2]["row"].to_numpy(), kind="stable")
    row_of, key_of = (sketches[2][name].to_numpy()[by_row] for name in ("row", "key"))
    known, holders = runs["run"].to_numpy(), runs["documents"].combine_chunks()
    contents = (known, slot_table(known), holders.offsets.to_numpy(), holders.values.to_numpy())
    totals, sets = held["runs"].to_numpy(), held["shingles"].combine_chunks()
    first = 0
    for batch in document_batches(Path(payload["documents"]["path"])):
        offsets, data = nfc(batch.column("text"))
        words = (data, offsets, *character_tables(), config.holdout_ngram)
        document, share = best_contained(*words, *contents, totals)
        row = np.flatnonzero(share >= config.holdout_share)
        note("contained", first + row, document[row], share[row])
        here = slice(*np.searchsorted(row_of, [first, first + len(batch)]))
        row, document = _band_pairs(row_of[here].astype(np.int64) - first, key_of[here] ^ salts[row_of[here]], bands)
        row, document, alike = _most_similar(batch, row, document, sets, config)
        near = alike >= config.threshold
        note("near", first + row[near], document[near], alike[near])
        first += len(batch)
    row, document = _equal(sketches[1], held, salts)
    note("exact", row, document, np.ones(len(row)))
    gone = np.flatnonzero(documents >= 0)
    columns = {
        "removed": gone + payload["first"],
        "kept": documents[gone] + payload["holdout_first"],
        "similarity": similarity[gone].astype(np.float32),
    }
    table = pa.table(columns)
    name = f"{payload['part']}.arrow"
    counts = {kind: int(np.sum(how == k)) for k, kind in enumerate(MATCHES)}
    return UnitResult({name: write_arrow(out / name, table.schema, table.to_batches())}, counts)


def _digests(high: np.ndarray, low: np.ndarray) -> pa.FixedSizeBinaryArray:
    buffer = pa.py_buffer(np.stack([high, low], axis=1).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(high), [None, buffer])


def _equal(exact: pa.Table, held: pa.Table, salts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose text equals a holdout document's, and the first such holdout document. Empty texts equal nothing."""
    row = exact["row"].to_numpy().astype(np.int64)
    mine = _digests(exact["high"].to_numpy() ^ salts[row], exact["low"].to_numpy())
    nothing = _digests(*np.array([EMPTY_TEXT >> 64, EMPTY_TEXT & LOW], np.uint64).reshape(2, 1))
    found = pc.index_in(mine, _digests(held["high"].to_numpy(), held["low"].to_numpy()))
    is_equal = pc.and_not(found.is_valid(), pc.is_in(mine, nothing)).to_numpy(zero_copy_only=False)
    return row[is_equal], found.filter(pa.array(is_equal)).to_numpy().astype(np.int64)


def _band_pairs(row: np.ndarray, wanted: np.ndarray, held: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs of a row and a holdout document that share a band, sorted; `wanted` are the band keys of `row`."""
    keys = held["key"].to_numpy()
    low = np.searchsorted(keys, wanted)
    shares = np.searchsorted(keys, wanted, side="right") - low
    entry = np.repeat(low - np.cumsum(shares) + shares, shares) + np.arange(shares.sum())
    pairs = np.unique(np.stack([np.repeat(row, shares), held["document"].to_numpy()[entry]], axis=1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _most_similar(
    batch: pa.RecordBatch, row: np.ndarray, document: np.ndarray, held: pa.LargeListArray, config: DedupConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the pairs of each row the one of the largest exact similarity, the first of equals."""
    rows, index = np.unique(row, return_inverse=True)
    offsets, data = nfc(batch.column("text").take(pa.array(rows)))
    tables, recipe = character_tables(config.recipe.verifier), config.recipe
    sets = shingle_sets(data, offsets, *tables, recipe.spaced, recipe.ngram)
    alike = _similarities(index, document, *sets, held.offsets.to_numpy(), held.values.to_numpy())
    order = np.lexsort([document, -alike, row])
    best = order[np.diff(row[order], prepend=-1) > 0]
    return row[best], document[best], alike[best]


@numba.njit(nogil=True, cache=True)
def _similarities(
    left: np.ndarray, right: np.ndarray, ends: np.ndarray, sets: np.ndarray, held_ends: np.ndarray, held: np.ndarray
) -> np.ndarray:
    """float64[pairs]: the Jaccard similarity of set left[k] of the first and right[k] of the second collection."""
    alike = np.empty(len(left), np.float64)
    for k in range(len(left)):
        mine = sets[ends[left[k]] : ends[left[k] + 1]]
        alike[k] = jaccard(mine, held[held_ends[right[k]] : held_ends[right[k] + 1]])
    return alike
