"""Where a document is: the segments of packed rows by document id, without reading a token.

Only the columns doc_id, doc_offset, seq_lengths and next_token are touched, as the flat arrays that they are in the
mapped files: one comparison per segment of the dataset.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.manifest import open_manifest
from seqmill.packing.schema import KIND
from seqmill.storage import read_arrow

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FoundSegments:
    """The segments of one document, by their place in it; every array has one element per segment."""

    row: Int64s  # in the whole dataset
    segment: Int64s  # number within the row
    start: Int64s  # first token within the document
    stop: Int64s  # one past the last
    next_token: Int64s  # -1: the document ends here


def find_document(folder: Path, doc_id: int) -> FoundSegments:
    """All segments of a document, ordered by start and then by row; none for an id that is in no row.

    Raises:
        UserError: the folder is no finished folder of packed rows.
    """
    names = ("row", "segment", "start", "stop", "next_token")
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.int64)] for name in names}
    first_row = 0
    for batch in _batches(folder):
        offsets = batch.column("doc_id").offsets.to_numpy()
        found = np.flatnonzero(_values(batch, "doc_id") == np.uint64(doc_id))
        if len(found):
            row = np.searchsorted(offsets - offsets[0], found, "right") - 1
            start = _values(batch, "doc_offset")[found]
            columns = (
                first_row + row,
                found - (offsets[row] - offsets[0]),
                start,
                start + _values(batch, "seq_lengths")[found],
                _values(batch, "next_token")[found].astype(np.int64),
            )
            for name, values in zip(names, columns, strict=True):
                parts[name].append(values)
        first_row += batch.num_rows
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    order = np.lexsort((joined["row"], joined["start"]))
    return FoundSegments(**{name: values[order] for name, values in joined.items()})


def _batches(folder: Path) -> Iterator[pa.RecordBatch]:
    for file in open_manifest(folder, KIND)["files"]:
        yield from read_arrow(folder / file["name"]).to_batches()


def _values(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """All values of a list column, one list after the other."""
    values: np.ndarray = batch.column(name).flatten().to_numpy(zero_copy_only=True)
    return values
