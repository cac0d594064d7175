"""Exchange between documents parts: ranges of keys, cut from files sorted by key, and positions of documents.

A document's position is its row in the concatenation of all parts, so positions order documents as their ids do.
Ranges are equal shares of the 64-bit key space: keys are hashes, so ranges are equally full. How many there are depends
on the number of rows and the memory budget; the result of the stage does not depend on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from seqmill.storage import read_arrow

SORTING = 4  # memory that sorting a range takes, in sizes of the range
ROWS_PER_RANGE = 8_000_000  # at most, so that ranges can be worked on side by side


@dataclass(frozen=True)
class KeyRange:
    """Range `index` of `count` equal ranges of the 64-bit keys."""

    index: int
    count: int

    def slice(self, keys: np.ndarray) -> slice:
        """Where the keys of this range lie in sorted `keys` uint64[n]."""
        bounds = [-(-(self.index + side) * 2**64 // self.count) for side in (0, 1)]
        first = np.searchsorted(keys, np.uint64(bounds[0]))
        last = len(keys) if bounds[1] == 2**64 else np.searchsorted(keys, np.uint64(bounds[1]))
        return slice(int(first), int(last))


def count_ranges(rows: int, row_bytes: int, memory: int) -> int:
    """How many ranges keep one range's rows, while they are sorted, within `memory` bytes."""
    return max(1, -(-rows * row_bytes * SORTING // memory), -(-rows // ROWS_PER_RANGE))


def read_range(files: Sequence[Any], key: str, key_range: KeyRange, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """The rows of a range from all parts' files, with their documents' `position`. Only these rows are read.

    Args:
        files: one {"path", "first"} per part; "first" is the position of the part's first document.
        key: the column that each batch of a file is sorted by.
    """
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in (*columns, "position")}
    for file in files:
        for batch in read_arrow(Path(file["path"])).to_batches():
            part = key_range.slice(batch[key].to_numpy())
            for name in columns:
                pieces[name].append(batch[name].to_numpy()[part])
            pieces["position"].append(batch["row"].to_numpy()[part].astype(np.int64) + file["first"])
    return {
        name: np.concatenate(arrays) if arrays else np.empty(0, np.int64 if name == "position" else np.uint64)
        for name, arrays in pieces.items()
    }


def look_up(positions: np.ndarray, files: Sequence[Any], columns: Sequence[str]) -> pa.Table:
    """`columns` of the documents at `positions` int64[n], in that order; of each part's file only their rows are read.

    Args:
        files: one {"path", "first"} per part, of files with one row per document.
    """
    firsts = np.array([file["first"] for file in files], np.int64)
    part = np.searchsorted(firsts, positions, side="right") - 1
    order = np.argsort(part, kind="stable")
    pieces = [read_arrow(Path(files[0]["path"])).select(columns).slice(0, 0)]
    for index in np.unique(part):
        rows = positions[part == index] - firsts[index]
        pieces.append(read_arrow(Path(files[index]["path"])).select(columns).take(pa.array(rows)))
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return pa.concat_tables(pieces).take(pa.array(back))
