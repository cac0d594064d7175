"""Super-words: tokens that span several words.

After Liu et al. 2025, "SuperBPE: Space Travel for Language Models": an ordinary BPE is learned first, then
merging goes on with the rule lifted that no token crosses the space between two words.
"""

from collections.abc import Iterable

import numpy as np
import orjson
import pyarrow as pa

from seqmill.tokenizers_ext.merging.boundaries import flat_rows, segments_of
from seqmill.tokenizers_ext.merging.engine import learn_merges
from seqmill.tokenizers_ext.merging.text import text_of
from seqmill.tokenizers_ext.subword import SubwordEncoder
from seqmill.tokenizers_ext.training.bpe import grow, tokenizer_json

RULE = "superword"


def add_superwords(
    base: bytes, batches: Iterable[pa.Array], vocab_size: int, most_tokens: int, min_count: int = 2
) -> bytes:
    """Learn merges across words on top of a byte-level BPE; returns the contents of a `tokenizer.json`.

    Args:
        base: the `tokenizer.json` of a BPE with the gpt2 rule, as `bpe_from_counts` makes it.
        batches: documents as Arrow text columns.
        vocab_size: ids wanted, those of `base` included.
        most_tokens: text to learn from, in tokens of `base`; what comes after is not read.
        min_count: a pair that occurs less often is not merged.
    """
    encoder = SubwordEncoder(base)
    ids, segments = _tokens_of(encoder, batches, most_tokens)
    weights = np.ones(1 + segments.max(initial=0), np.int64)
    merges = learn_merges(
        text_of(ids, segments, weights), encoder.vocab_size, vocab_size - encoder.vocab_size, min_count=min_count
    )
    model = orjson.loads(base)["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    pairs = [(left, right) for left, right in model["merges"]]
    pairs += grow(tokens, merges.left, merges.right)
    return tokenizer_json(tokens, pairs, RULE)


def _tokens_of(encoder: SubwordEncoder, batches: Iterable[pa.Array], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Base ids of whole batches, about `most` of them, and the stretches of words that they form."""
    ids, segments = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    tokens, stretches = 0, 0
    for texts in batches:
        if tokens >= most:
            break
        values, offsets = flat_rows(encoder.encode(texts))
        if not len(values):
            continue
        ids.append(values.astype(np.int32))
        segments.append(segments_of(values, offsets, encoder, RULE) + np.int32(stretches))
        tokens += len(values)
        stretches = int(segments[-1][-1]) + 1
    return np.concatenate(ids), np.concatenate(segments)
