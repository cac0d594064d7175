"""Tokens and the bytes they stand for."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from seqmill.tokenizers_ext import Encoder
from seqmill.tokenizers_ext.encoder import id_type, offsets_and_bytes


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of every text, as arrays of the tokenizer's unsigned type."""
    lists = encoder.encode(pa.array(texts, pa.large_string()))
    offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy()
    return [values[start:stop] for start, stop in pairwise(offsets)]


def encode_behind_space(encoder: Encoder, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of every text as it stands in a document, where a space goes before it: " lorem ipsum"."""
    return encode_texts(encoder, [f" {text}" for text in texts])


def decode_ids(encoder: Encoder, ids: np.ndarray) -> bytes:
    """The bytes that ids stand for."""
    one = pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), pa.array(ids))
    return encoder.decode(one)[0].as_py()


def bytes_per_id(encoder: Encoder) -> np.ndarray:
    """int64[vocab_size]: how many bytes each id stands for, by itself."""
    count = encoder.vocab_size
    ids = pa.array(np.arange(count), id_type(count))
    alone = pa.ListArray.from_arrays(pa.array(np.arange(count + 1), pa.int32()), ids)
    return np.diff(offsets_and_bytes(encoder.decode(alone))[0])
