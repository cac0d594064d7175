"""MinHash signatures and their bands (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.3-3.4).

Two documents agree in one row of their signatures with probability equal to the Jaccard similarity of their shingle
sets, and become candidates when all rows of one band agree: P = 1 - (1 - similarity ** rows) ** bands.
"""

import numba
import numpy as np

from seqmill.pipeline.dedup.shingles import hash_shingles, hash_words, mix

_LOW = np.uint64(0xFFFFFFFF)


def hash_family(permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers and addends uint64[permutations] of h -> (a * h + b) >> 32, strongly universal on 32-bit keys
    (Dietzfelbinger 1996)."""
    random = np.random.Generator(np.random.Philox(seed))
    return (
        random.integers(0, 2**64, permutations, np.uint64),
        random.integers(0, 2**64, permutations, np.uint64),
    )


def candidate_probability(similarity: float, bands: int, rows: int) -> float:
    """The chance that a pair of this Jaccard similarity agrees in at least one band: the S-curve."""
    return 1.0 - (1.0 - similarity**rows) ** bands


@numba.njit(nogil=True, cache=True)
def signatures(
    data: np.ndarray,
    offsets: np.ndarray,
    kind: np.ndarray,
    lower: np.ndarray,
    ngram: int,
    multipliers: np.ndarray,
    addends: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """MinHash signatures of documents.

    Args:
        data: uint8[...], UTF-8.
        offsets: int64[documents + 1] into `data`.
        kind, lower: from `character_tables`.
        ngram: words per shingle.
        multipliers, addends: from `hash_family`.

    Returns:
        uint32[documents, permutations] minima, and int64[documents] shingles (with repeats); documents without a
        shingle keep the largest value in every row.
    """
    documents = len(offsets) - 1
    permutations = len(multipliers)
    longest = 0
    for d in range(documents):
        longest = max(longest, offsets[d + 1] - offsets[d])
    words = np.empty(longest + 1, np.uint64)
    shingles = np.empty(longest + 1, np.uint64)
    minima = np.full((documents, permutations), _LOW, np.uint32)
    counts = np.zeros(documents, np.int64)
    for d in range(documents):
        count = hash_words(data, offsets[d], offsets[d + 1], kind, lower, words)
        counts[d] = hash_shingles(words, count, ngram, shingles)
        row = minima[d]
        for s in range(counts[d]):
            key = shingles[s] & _LOW  # 32 bits: two products of 32 x 32 bits each, which vectorise
            for p in range(permutations):
                row[p] = min(row[p], np.uint32((multipliers[p] * key + addends[p]) >> np.uint64(32)))
    return minima, counts


@numba.njit(nogil=True, cache=True)
def band_keys(minima: np.ndarray, first: int, rows: int, salts: np.ndarray) -> np.ndarray:
    """uint64[documents]: one hash of the `rows` signature rows from `first` on, with a salt per document."""
    keys = np.empty(len(minima), np.uint64)
    for d in range(len(minima)):
        key = mix(salts[d] + np.uint64(first))
        for p in range(first, first + rows):
            key = mix(key ^ np.uint64(minima[d, p]))
        keys[d] = key
    return keys
