"""The one place where benchmarks call the kernels of near deduplication."""

import numpy as np
import pyarrow as pa

from seqmill.pipeline.dedup import DedupConfig
from seqmill.pipeline.dedup.sketch import near_keys, nfc


def band_keys_of(texts: pa.Array) -> np.ndarray:
    """uint64[documents, bands], equal where a band of two signatures is equal: text to shingles to signature to bands,
    with the default preset."""
    offsets, data = nfc(texts)
    keys, _ = near_keys(offsets, data, np.zeros(len(texts), np.uint64), DedupConfig())
    return keys


def candidate_probability(similarity: np.ndarray) -> np.ndarray:
    """The S-curve of the default preset."""
    recipe = DedupConfig().recipe
    return 1 - (1 - similarity**recipe.rows) ** recipe.bands
