"""The traps table: one row per trap, in a Parquet file.

trap_id    int32    0, 1, 2, ...
text       string   without white space at its ends
tokens     int32    length under the tokenizer it was made for
perplexity float64  under the model that wrote it
bucket     int32    of perplexity, from 0
member     bool     to be injected; the others never are
copies     int32    how often it was injected; 0 for non-members, and for everyone before `inject`
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seqmill.errors import UserError
from seqmill.storage import atomic_path, read_metadata, with_metadata

TRAPS = "traps.parquet"
KIND = "traps"
SCHEMA = pa.schema(
    {
        "trap_id": pa.int32(),
        "text": pa.string(),
        "tokens": pa.int32(),
        "perplexity": pa.float64(),
        "bucket": pa.int32(),
        "member": pa.bool_(),
        "copies": pa.int32(),
    }
)


def write_traps(path: Path, traps: pa.Table, **made: Any) -> None:
    """Write a table of `SCHEMA` atomically; `made` are JSON values that say how it came about."""
    with atomic_path(path) as temporary:
        pq.write_table(traps.cast(with_metadata(SCHEMA, KIND, **made)), temporary, compression="zstd")


def read_traps(path: Path) -> pa.Table:
    """The table that `write_traps` left at `path`.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        traps = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read {path} as traps ({error}); make them with `seqmill traps make`") from error
    if read_metadata(traps.schema).get("kind") != KIND or not traps.schema.equals(SCHEMA):
        raise UserError(f"{path} is no table of traps; make one with `seqmill traps make`")
    return traps
