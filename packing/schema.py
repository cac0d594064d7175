"""The Arrow schema of packed rows, and the hash that every row carries.

    row_id        int64        position in the whole dataset: dense, in file order
    input_ids     list<uint16> tokens of all segments, no padding (uint32 for vocabularies beyond 65,536)
    seq_lengths   list<int32>  tokens per segment; the name that TRL reads
    cu_seqlens    list<int32>  [segments + 1] cumulated, from 0 to n_tokens: the argument of varlen attention
    max_seqlen    int32        longest segment, tokens
    n_tokens      int32        == cu_seqlens[-1]
    n_loss_tokens int32        targets: tokens whose successor in the document is known
    sum_sq        int64        sum of squared segment lengths, the cost of attention
    doc_id        list<uint64> document of every segment
    doc_offset    list<int64>  first token of the segment within its document
    doc_targets   list<int64>  targets of the segment's whole document, in all its rows (seqmill.packing.loss_weights)
    next_token    list<int32>  the token after the segment where its document goes on in another one, else -1
    pos_start     list<int32>  position of the segment's first token (see seqmill.packing.write)
    source        list<int16>  index into the source names of the metadata and manifest, per segment
    is_repeat     list<bool>   whether the segment's document occurs several times by intent; only where the tokens say
    xxh3          int64        xxh3-64 over the bytes of input_ids and then of cu_seqlens

A segment is one fragment of one document: attention and targets never leave it. Several documents of a tokens folder
may share a doc_id, as the copies of a repeated document do; their segments then share doc_id and doc_offset.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.storage import with_metadata

KIND: Final = "packed"
NO_NEXT: Final = -1  # in next_token: the document ends here
SEGMENT_COLUMNS: Final = ("seq_lengths", "doc_id", "doc_offset", "doc_targets", "next_token", "pos_start", "source")
LIST_COLUMNS: Final = ("input_ids", "cu_seqlens", *SEGMENT_COLUMNS)
REPEAT_COLUMN: Final = "is_repeat"  # of tokens and of segments; optional in both


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned dtype that holds every id below `vocab_size`: uint16 or uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def packed_schema(vocab_size: int, metadata: Mapping[str, Any], is_repeat: bool = False) -> pa.Schema:
    """The schema of a shard: columns, the feature types for `datasets`, and `metadata` as seqmill's own entry.

    Args:
        is_repeat: with the column of that name.
    """
    columns = {
        "row_id": pa.int64(),
        "input_ids": pa.from_numpy_dtype(token_dtype(vocab_size)),
        "seq_lengths": pa.int32(),
        "cu_seqlens": pa.int32(),
        "max_seqlen": pa.int32(),
        "n_tokens": pa.int32(),
        "n_loss_tokens": pa.int32(),
        "sum_sq": pa.int64(),
        "doc_id": pa.uint64(),
        "doc_offset": pa.int64(),
        "doc_targets": pa.int64(),
        "next_token": pa.int32(),
        "pos_start": pa.int32(),
        "source": pa.int16(),
        **({REPEAT_COLUMN: pa.bool_()} if is_repeat else {}),
        "xxh3": pa.int64(),
    }
    features: dict[str, Any] = {}
    fields = []
    for name, value in columns.items():
        feature: dict[str, Any] = {"dtype": str(value), "_type": "Value"}
        is_list = name in (*LIST_COLUMNS, REPEAT_COLUMN)
        features[name] = {"feature": feature, "_type": "List"} if is_list else feature
        fields.append(pa.field(name, pa.list_(value) if is_list else value))
    huggingface = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return with_metadata(pa.schema(fields, metadata=huggingface), KIND, **metadata)


def hash_rows(
    tokens: npt.NDArray[np.unsignedinteger],
    token_offsets: npt.NDArray[np.integer],
    cu_seqlens: npt.NDArray[np.int32],
    cu_offsets: npt.NDArray[np.integer],
) -> npt.NDArray[np.int64]:
    """The hash of every row, int64[rows].

    Args:
        tokens, token_offsets: the tokens of all rows and where each row begins, [rows + 1].
        cu_seqlens, cu_offsets: the same for the cumulated segment lengths.
    """
    import xxhash  # here, so that reading rows does not need it

    token_bytes = np.ascontiguousarray(tokens).view(np.uint8).data
    cu_bytes = np.ascontiguousarray(cu_seqlens).view(np.uint8).data
    token_ends = (np.asarray(token_offsets, np.int64) * tokens.itemsize).tolist()
    cu_ends = (np.asarray(cu_offsets, np.int64) * cu_seqlens.itemsize).tolist()
    hashes = np.empty(len(token_ends) - 1, np.uint64)
    for row in range(len(hashes)):
        digest = xxhash.xxh3_64(token_bytes[token_ends[row] : token_ends[row + 1]])
        digest.update(cu_bytes[cu_ends[row] : cu_ends[row + 1]])
        hashes[row] = digest.intdigest()
    return hashes.view(np.int64)
