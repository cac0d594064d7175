"""The evidence table of the stages that remove copies: which document left, for which one, and how alike they are."""

import pyarrow as pa

REMOVED = "removed.parquet"
INPUT = "input"  # `kept_from` of a document that was among those the stage read
REMOVED_SCHEMA = pa.schema(
    {
        "doc_id": pa.uint64(),
        "id": pa.string(),  # the user's
        "reason": pa.string(),  # "exact", "near", "substring" or "holdout"
        "kept_doc_id": pa.uint64(),
        "kept_id": pa.string(),
        "kept_from": pa.string(),  # INPUT, "index/0003" or "holdout": doc_ids are unique in each
        "similarity": pa.float32(),
        "cluster_id": pa.uint64(),  # doc_id of the one kept for the whole cluster; null if not of the input
    }
)
