"""Drawing a sample of documents by bytes, the same on every machine and for every number of workers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.errors import UserError
from seqmill.pipeline.documents import document_batches


def source_shares(source_bytes: Mapping[str, int], sample_bytes: int, alpha: float) -> dict[str, float]:
    """What share of every source to draw so that the sample has `sample_bytes` bytes in all.

    A source of b bytes gets a part of the sample proportional to b ** alpha: alpha = 1 keeps the proportions of the
    corpus, 0 gives all sources the same, values between lift small ones (Conneau and Lample 2019, "Cross-lingual
    Language Model Pretraining", section 3.1). What a source cannot fill goes to the others in proportion.

        {"en": 900, "de": 90, "ka": 10}, 300 bytes, alpha 0: ka gives its 10 and the others 145; de has 90, so en 200
    """
    weights = {source: float(size) ** alpha for source, size in source_bytes.items() if size > 0}
    shares = dict.fromkeys(source_bytes, 0.0)
    left = float(sample_bytes)
    while weights:
        scale = left / sum(weights.values())
        filled = [source for source, weight in weights.items() if weight * scale >= source_bytes[source]]
        if not filled:
            return shares | {source: weight * scale / source_bytes[source] for source, weight in weights.items()}
        for source in filled:
            shares[source] = 1.0
            left -= source_bytes[source]
            del weights[source]
    return shares


def drawn(doc_ids: np.ndarray, shares: np.ndarray | float, seed: int) -> np.ndarray:
    """bool[documents]: a pseudo-random share of the documents that depends on nothing but their ids and the seed.

    The hash is the finaliser of splitmix64 over the id; a document is in when its hash lies in the lowest share of
    the 64-bit range.

    Args:
        doc_ids: uint64[documents].
        shares: of each document's source, or one for all; between 0 and 1.
    """
    x = doc_ids.astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    chosen: np.ndarray = (x >> np.uint64(11)).astype(np.float64) < np.asarray(shares) * 2.0**53
    return chosen


@dataclass
class Sample:
    """The documents to learn from; counts those it gives out."""

    shares: Mapping[str, float]  # of every source
    seed: int
    documents: int = 0
    bytes: int = 0

    def of(self, file: Mapping[str, Any]) -> Iterator[pa.Array]:
        """The texts of the sampled documents of one part, batch by batch."""
        names = pa.array(list(self.shares), pa.string())
        shares = np.array([*self.shares.values()])
        for batch in document_batches(Path(file["path"])):
            source = pc.index_in(pc.fill_null(batch.column("source"), ""), names).to_numpy(zero_copy_only=False)
            chosen = drawn(batch.column("doc_id").to_numpy(), shares[source], self.seed)
            texts = batch.column("text").filter(pa.array(chosen))
            self.documents += len(texts)
            self.bytes += pc.sum(pc.binary_length(texts)).as_py() or 0
            yield texts

    def figures(self) -> dict[str, int]:
        """What was given out so far, in documents and bytes."""
        return {"documents": self.documents, "bytes": self.bytes}


def shares_for(shares: Mapping[str, float], sample_bytes: int, most_tokens: int) -> dict[str, float]:
    """Shares of a smaller sample, of about `most_tokens` tokens: 2 bytes make a token or more, safely reckoned."""
    smaller = min(1.0, 2 * most_tokens / max(1, sample_bytes))
    return {source: share * smaller for source, share in shares.items()}


def require_documents(sample: Mapping[str, int]) -> None:
    """Raise UserError when a sample holds no document."""
    if not sample["documents"]:
        raise UserError(
            "there is no document to train a tokenizer on: all were filtered out, or sample_bytes is too small"
        )
