"""Reading the documents table: batches of bounded size, and flat views of their text."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import offsets_and_bytes


def document_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of one documents part, mapped into memory one at a time.

    Raises:
        UserError: the file is missing, truncated or no Arrow stream.
    """
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
            yield from reader
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read {path} as documents ({error}); delete it and run its stage again") from error


def utf8_buffers(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets int64[documents + 1] into the UTF-8 bytes uint8[...] of a large_string column without nulls."""
    return offsets_and_bytes(text.cast(pa.large_string()).view(pa.large_binary()))
