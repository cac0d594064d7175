"""The sketch units: what the other documents parts need to know of one part, in record batches sorted by key, so that
any range of keys is one slice of each.

    PART.documents.arrow  doc_id, id, source, num_bytes, rank, shingles   one row per document, in order
    PART.exact.arrow      high, low, rank, row                            one row per document; one batch
    PART.bands.arrow      key, row                                        one row per band of a document
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from seqmill.pipeline.dedup.characters import character_tables, combining_classes
from seqmill.pipeline.dedup.config import DedupConfig
from seqmill.pipeline.dedup.minhash import band_keys, hash_family
from seqmill.pipeline.dedup.shingles import collapse_white_space, may_be_space, may_not_be_nfc
from seqmill.pipeline.documents import document_batches, utf8_buffers
from seqmill.pipeline.execution import UnitResult
from seqmill.storage import with_metadata, write_arrow

DOCUMENTS, EXACT, BANDS = "documents", "exact", "bands"
RUN_ROWS = 4_000_000  # of a batch of band keys, at least
KEY_VERSION = 2  # of the recipe from text to keys: keys of another version are never equal
LONGEST = 2**48 - 1  # bytes: what a rank can tell apart

DOCUMENT_FIELDS = {
    "doc_id": pa.uint64(),
    "id": pa.string(),
    "source": pa.string(),
    "num_bytes": pa.uint64(),
    "rank": pa.uint64(),
    "shingles": pa.int64(),
}

BAND_SCHEMA = pa.schema({"key": pa.uint64(), "row": pa.uint32()})


def config_of(payload: Mapping[str, Any]) -> DedupConfig:
    """The stage's configuration as it travelled in a payload."""
    settings = dict(payload["config"])
    lists = {name: tuple(settings[name]) for name in ("source_priority", "holdout")}
    return DedupConfig(**{**settings, **lists})


def sketch(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Exact keys, band keys and survivor ranks of one documents part."""
    config, part = config_of(payload), payload["part"]
    documents: list[pa.RecordBatch] = []
    exact: dict[str, list[np.ndarray]] = {"high": [], "low": [], "rank": []}
    schema = with_metadata(pa.schema(DOCUMENT_FIELDS), "sketches")

    def bands() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Band keys, batch by batch; what exact matching needs of the same text is kept on the way."""
        first = 0
        for batch in document_batches(Path(payload["documents"]["path"])):
            offsets, data = nfc(batch.column("text"))
            salts = scope_salts(batch.column("source"), config)
            high, low = exact_keys(offsets, data)
            num_bytes = pc.binary_length(batch.column("text")).to_numpy().astype(np.uint64)
            rank = _ranks(batch.column("source"), num_bytes, config)
            for name, values in (("high", high ^ salts), ("low", low), ("rank", rank)):
                exact[name].append(values)
            keys, shingles = np.empty((0, config.recipe.bands), np.uint64), np.zeros(len(batch), np.int64)
            if config.near:
                keys, shingles = near_keys(offsets, data, salts, config)
            arrays = [*(batch.column(name) for name in ("doc_id", "id", "source")), num_bytes, rank, shingles]
            documents.append(pa.record_batch([pa.array(array) for array in arrays], schema=schema))
            has_any = np.flatnonzero(shingles > 0)
            yield keys[has_any].reshape(-1), np.repeat(first + has_any, keys.shape[1]).astype(np.uint32)
            first += len(batch)

    written = {BANDS: write_arrow(out / f"{part}.{BANDS}.arrow", BAND_SCHEMA, _runs(bands()))}
    written[DOCUMENTS] = write_arrow(out / f"{part}.{DOCUMENTS}.arrow", schema, documents)
    whole = {name: np.concatenate([np.empty(0, np.uint64), *arrays]) for name, arrays in exact.items()}
    batch = _sorted("high", {**whole, "row": np.arange(len(whole["high"]), dtype=np.uint32)})
    written[EXACT] = write_arrow(out / f"{part}.{EXACT}.arrow", batch.schema, [batch])
    return UnitResult({f"{part}.{kind}.arrow": rows for kind, rows in written.items()})


def near_keys(
    offsets: np.ndarray, data: np.ndarray, salts: np.ndarray, config: DedupConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Band keys uint64[documents, bands] that agree only inside a scope, and int64[documents] shingles."""
    recipe = config.recipe
    family = hash_family(recipe.bands * recipe.rows, config.seed)
    tables = character_tables(recipe.normaliser)
    keys, shingles = band_keys(data, offsets, *tables, recipe.spaced, recipe.ngram, *family, recipe.bands)
    return keys ^ salts[:, None], shingles


def nfc(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and UTF-8 bytes of the documents in NFC. Only those that may not be in it already are normalised."""
    offsets, data = utf8_buffers(text)
    doubtful = may_not_be_nfc(data, offsets, combining_classes())
    if not doubtful.any():
        return offsets, data
    mask = pa.array(doubtful)
    normal = pc.utf8_normalize(text.filter(mask), form="NFC")
    return utf8_buffers(pc.replace_with_mask(text, mask, normal))


def scope_salts(sources: pa.Array, config: DedupConfig) -> np.ndarray:
    """uint64[documents]: equal for documents that may be duplicates of each other. A source in no group is one."""
    if config.scope == "global" or not len(sources):
        return np.zeros(len(sources), np.uint64)
    group_of = {source: f"group {group}" for group, members in config.groups.items() for source in members}
    encoded = sources.dictionary_encode()
    names = [group_of.get(name, f"source {name}") for name in encoded.dictionary.to_pylist()]
    return np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names], np.uint64)[encoded.indices.to_numpy()]


def exact_keys(offsets: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The halves of the xxh3-128 of every document, with white space collapsed."""
    ends, collapsed = collapse_white_space(data, offsets, character_tables()[0], may_be_space())
    view = memoryview(collapsed)
    digests = b"".join(xxhash.xxh3_128_digest(view[ends[d] : ends[d + 1]]) for d in range(len(ends) - 1))
    halves = np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)
    return halves[:, 0].copy(), halves[:, 1].copy()


def _ranks(sources: pa.Array, num_bytes: np.ndarray, config: DedupConfig) -> np.ndarray:
    """uint64[documents]: the smaller survives; source priority first, then the longest. Ids break ties later."""
    best_first = pa.array(list(config.source_priority), pa.string())
    priority = pc.fill_null(pc.index_in(sources, best_first), len(best_first)).to_numpy().astype(np.uint64)
    return priority << np.uint64(48) | (np.uint64(LONGEST) - np.minimum(num_bytes, np.uint64(LONGEST)))


def _sorted(key: str, columns: Mapping[str, np.ndarray]) -> pa.RecordBatch:
    order = np.argsort(columns[key], kind="stable")
    return pa.record_batch({name: values[order] for name, values in columns.items()})


def _runs(bands: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[pa.RecordBatch]:
    """Keys and rows in batches, each sorted by key: sorting takes no more memory than one of them."""
    keys, rows = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)]
    for key, row in bands:
        keys.append(key)
        rows.append(row)
        if sum(map(len, keys)) >= RUN_ROWS:
            yield _sorted("key", {"key": np.concatenate(keys), "row": np.concatenate(rows)})
            keys, rows = keys[:1], rows[:1]
    yield _sorted("key", {"key": np.concatenate(keys), "row": np.concatenate(rows)})
