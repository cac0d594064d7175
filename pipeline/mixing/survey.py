"""Pass zero: what each source has, as numbers per document. All planning reads these files and no text.

A survey file has the rows of its part grouped by source, in input order within each: doc_id, bytes, tokens and
row_bytes (memory). 32 bytes a document, so that a plan over terabytes reads gigabytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqmill.pipeline.documents import document_batches
from seqmill.pipeline.execution import UnitResult
from seqmill.pipeline.mixing.columns import Int64s, num_bytes, num_tokens, row_bytes
from seqmill.storage import read_arrow, write_arrow

SCHEMA = pa.schema({"doc_id": pa.uint64(), "bytes": pa.int64(), "tokens": pa.int64(), "row_bytes": pa.int64()})


def survey_part(payload: Mapping[str, Any], out: Path) -> UnitResult:
    """Survey one part; the statistics give the sources of its rows, [name, rows] in the order of the file."""
    surveyed: list[pa.RecordBatch] = []
    sources: list[pa.Array] = []
    for batch in document_batches(Path(payload["part"]["path"])):
        numbers = [pa.array(count(batch)) for count in (num_bytes, num_tokens, row_bytes)]
        surveyed.append(pa.record_batch([batch.column("doc_id"), *numbers], schema=SCHEMA))
        sources.append(batch.column("source").cast(pa.string()))
    names, codes = _encoded(sources)
    table = pa.Table.from_batches(surveyed, SCHEMA).take(np.argsort(codes, kind="stable"))
    name = f"{payload['name']}.arrow"
    rows = write_arrow(out / name, SCHEMA, table.combine_chunks().to_batches())
    counts = np.bincount(codes, minlength=len(names)).tolist()
    return UnitResult({name: rows}, {"sources": [list(pair) for pair in zip(names, counts, strict=True)]})


def _encoded(sources: Sequence[pa.Array]) -> tuple[list[str], Int64s]:
    """Names of sources in alphabetical order, and the position in them of each row's, int64[rows]."""
    column = pa.chunked_array(sources, pa.string())
    names = sorted(pc.unique(column).to_pylist())
    return names, pc.index_in(column, pa.array(names, pa.string())).to_numpy().astype(np.int64)


class Surveys:
    """The survey files of all parts, mapped, and joined by source.

    Attributes:
        sources: all names, in alphabetical order.
        documents: source -> number of documents.
    """

    def __init__(self, parts: Sequence[Mapping[str, Any]], folders: int) -> None:
        """`parts`: {"folder": index, "path": survey file, "sources": [[name, rows], ...]} in input order."""
        self.folders = folders
        self.shifts = np.zeros(folders, np.uint64)  # added to the ids of each folder
        self._slices: dict[str, list[tuple[int, pa.Table]]] = {}
        for part in parts:
            table = read_arrow(Path(part["path"]))
            first = 0
            for source, rows in part["sources"]:
                self._slices.setdefault(source, []).append((part["folder"], table.slice(first, rows)))
                first += rows
        self.sources = sorted(self._slices)
        self.documents = {name: sum(len(table) for _, table in self._slices[name]) for name in self.sources}

    def numbers(self, source: str, column: str) -> Int64s:
        """One column of all documents of a source, int64[documents]."""
        return np.concatenate([table[column].to_numpy() for _, table in self._slices[source]])

    def doc_ids(self, source: str) -> npt.NDArray[np.uint64]:
        """The ids of all documents of a source, as they will be written, uint64[documents]."""
        return np.concatenate([table["doc_id"].to_numpy() + self.shifts[k] for k, table in self._slices[source]])

    def ids_of_folder(self, folder: int) -> npt.NDArray[np.uint64]:
        """The ids of one folder's documents as they are stored, uint64[documents], in no particular order."""
        return np.concatenate([np.empty(0, np.uint64), *self._ids(folder)])

    def _ids(self, folder: int) -> Iterator[np.ndarray]:
        for slices in self._slices.values():
            yield from (table["doc_id"].to_numpy() for k, table in slices if k == folder)
