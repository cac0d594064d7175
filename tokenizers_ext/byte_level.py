"""Bytes as ids: 0-255 are the bytes themselves, special ids lie outside them, so that no text can spell one."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from seqmill.tokenizers_ext.encoder import as_large_binary, flat_ids, list_array, offsets_and_bytes

BYTE_VALUES = 256
SPECIAL_IDS = {"eos": 256, "pad": 257}


@dataclass(frozen=True)
class ByteEncoder:
    """The tokenizer without a vocabulary: lossless for arbitrary bytes."""

    kind: str = "byte"
    vocab_size: int = BYTE_VALUES + len(SPECIAL_IDS)
    special_ids: Mapping[str, int] = field(default_factory=lambda: dict(SPECIAL_IDS))
    fingerprint: str = hashlib.sha256(f"seqmill byte {SPECIAL_IDS}".encode()).hexdigest()

    def encode(self, texts: pa.Array) -> pa.ListArray:
        """The bytes of every document as uint16; see `Encoder.encode`."""
        offsets, data = offsets_and_bytes(as_large_binary(texts))
        return list_array(offsets - offsets[0], data[offsets[0] : offsets[-1]], self.vocab_size)

    def decode(self, ids: pa.ListArray) -> pa.LargeBinaryArray:
        """The bytes of every document, special ids left out; see `Encoder.decode`."""
        values = flat_ids(ids, self.vocab_size)
        is_byte = values < BYTE_VALUES
        bytes_before = np.concatenate([[0], np.cumsum(is_byte)])
        ends = np.cumsum(np.diff(ids.offsets.to_numpy()), dtype=np.int64)
        offsets = bytes_before[np.concatenate([[0], ends])]
        data = values[is_byte].astype(np.uint8)
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(ids), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        )
