"""MinHash signatures and their bands (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.3-3.4).

Two documents agree in one row of their signatures with probability equal to the Jaccard similarity of their shingle
sets, and become candidates when all rows of one band agree: P = 1 - (1 - similarity ** rows) ** bands.
"""

import numba
import numpy as np

from seqmill.pipeline.dedup.shingles import BUFFER, mix, next_shingles, whole_shingle

_NONE = np.uint32(0xFFFFFFFF)  # in every row of a document without shingles


def hash_family(permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd multipliers and addends uint32[permutations] of the permutations x -> a * x + b of the 32-bit numbers.

    Linear permutations, as in Broder, Charikar, Frieze, Mitzenmacher 2000, section 4; modulo a power of two, where the
    low bits of a product are weak, they do for keys that are hashes already. 32 bits fill a vector with twice as many
    as 64 would.
    """
    random = np.random.Generator(np.random.Philox(seed))
    return (
        random.integers(0, 2**32, permutations, np.uint32) | np.uint32(1),
        random.integers(0, 2**32, permutations, np.uint32),
    )


def candidate_probability(similarity: float, bands: int, rows: int) -> float:
    """The chance that a pair of this Jaccard similarity agrees in at least one band: the S-curve."""
    return 1.0 - (1.0 - similarity**rows) ** bands


@numba.njit(nogil=True, cache=True, inline="always")
def _lower(row: np.ndarray, shingle: np.uint64, multipliers: np.ndarray, addends: np.ndarray) -> None:
    """Let one shingle lower the minima of `row`."""
    key = np.uint32(shingle >> np.uint64(32))
    for p in range(len(row)):
        row[p] = min(row[p], np.uint32(multipliers[p] * key + addends[p]))


@numba.njit(nogil=True, cache=True)
def signature(
    data: np.ndarray,
    start: int,
    stop: int,
    kind: np.ndarray,
    folded: np.ndarray,
    spaced: bool,
    ngram: int,
    multipliers: np.ndarray,
    addends: np.ndarray,
    units: np.ndarray,
    block: np.ndarray,
    row: np.ndarray,
) -> int:
    """Write the minima of the document data[start:stop] into `row` uint32[permutations], without keeping its shingles.

    Returns:
        how many shingles it has (with repeats). A document without one keeps the largest value in every row.
    """
    row[:] = _NONE
    mode = 1 if spaced else 0
    while True:
        at, carried, total = start, 0, 0
        while at < stop:
            count, at, carried = next_shingles(data, at, stop, kind, folded, mode, ngram, units, carried, block)
            for s in range(count):
                _lower(row, block[s], multipliers, addends)
            total += count
        if total or mode == 2:
            break
        mode = 2
    if total == 0 and carried:
        _lower(row, whole_shingle(units, carried), multipliers, addends)
        total = 1
    return total


@numba.njit(nogil=True, cache=True)
def signatures(
    data: np.ndarray,
    offsets: np.ndarray,
    kind: np.ndarray,
    folded: np.ndarray,
    spaced: bool,
    ngram: int,
    multipliers: np.ndarray,
    addends: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """MinHash signatures of documents.

    Args:
        data: uint8[...], UTF-8 in NFC.
        offsets: int64[documents + 1] into `data`.
        kind, folded: from `character_tables`.
        spaced: units are characters, and white space between them counts.
        ngram: units per shingle.
        multipliers, addends: from `hash_family`.

    Returns:
        uint32[documents, permutations] minima, and int64[documents] shingles (with repeats).
    """
    documents = len(offsets) - 1
    units, block = np.empty(ngram + BUFFER, np.uint64), np.empty(ngram + BUFFER, np.uint64)
    minima = np.empty((documents, len(multipliers)), np.uint32)
    counts = np.empty(documents, np.int64)
    for d in range(documents):
        counts[d] = signature(
            data, offsets[d], offsets[d + 1], kind, folded, spaced, ngram, multipliers, addends, units, block, minima[d]
        )
    return minima, counts


@numba.njit(nogil=True, cache=True)
def band_keys(
    data: np.ndarray,
    offsets: np.ndarray,
    kind: np.ndarray,
    folded: np.ndarray,
    spaced: bool,
    ngram: int,
    multipliers: np.ndarray,
    addends: np.ndarray,
    bands: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The keys of the bands of documents; arguments as for `signatures`, of which no more than one is in memory.

    Returns:
        uint64[documents, bands], equal where a band is equal, and int64[documents] shingles (with repeats).
    """
    documents = len(offsets) - 1
    units, block = np.empty(ngram + BUFFER, np.uint64), np.empty(ngram + BUFFER, np.uint64)
    row = np.empty(len(multipliers), np.uint32)
    rows = len(multipliers) // bands
    keys = np.empty((documents, bands), np.uint64)
    counts = np.empty(documents, np.int64)
    for d in range(documents):
        counts[d] = signature(
            data, offsets[d], offsets[d + 1], kind, folded, spaced, ngram, multipliers, addends, units, block, row
        )
        for b in range(bands):
            key = mix(np.uint64(b))
            for p in range(b * rows, (b + 1) * rows):
                key = mix(key ^ np.uint64(row[p]))
            keys[d, b] = key
    return keys, counts
