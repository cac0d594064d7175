"""The segments of packed rows as flat arrays: what the checks beyond one record batch compare."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.packing.validation.report import Violation

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Lists:
    """A list column as numpy arrays, of lists that need not begin at 0."""

    offsets: Int64s  # int64[rows + 1], from 0
    values: np.ndarray

    @property
    def counts(self) -> Int64s:
        """Values per list."""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, column: pa.ListArray) -> "Lists":
        """Correct for slices too: `.values` is the whole child, and the offsets say which part of it is meant."""
        offsets = column.offsets.to_numpy(zero_copy_only=True).astype(np.int64)
        values = column.values
        is_bits = pa.types.is_boolean(values.type)
        return cls(offsets - offsets[0], values.to_numpy(zero_copy_only=not is_bits)[offsets[0] : offsets[-1]])


@dataclass(frozen=True, eq=False)
class Segments:
    """All segments of a dataset; every array has one element per segment."""

    file: npt.NDArray[np.int32]  # number in the manifest
    row: Int64s  # in the whole dataset
    doc_id: UInt64s
    start: Int64s  # doc_offset
    stop: Int64s
    first_token: Int64s
    next_token: Int64s
    doc_targets: Int64s
    digest: UInt64s  # of tokens and is_repeat, where the id stands for several documents of the tokens folder; else 0

    @classmethod
    def join(cls, parts: Iterable["Segments"]) -> "Segments":
        """One after the other."""
        dtypes = (np.int32, np.int64, np.uint64, *[np.int64] * 5, np.uint64)
        parts = list(parts)
        names = [field.name for field in fields(cls)]
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in parts] or [np.empty(0, dtype)])
                for name, dtype in zip(names, dtypes, strict=True)
            )
        )


def any_of(flags: Bools, offsets: Int64s) -> Bools:
    """Whether any flag of each list is set: bool[rows]; empty lists have none."""
    cumulated = np.concatenate([[0], np.cumsum(flags)])
    return cumulated[offsets[1:]] > cumulated[offsets[:-1]]


def count_distinct(ids: UInt64s) -> int:
    """How many different values there are."""
    ordered = np.sort(ids)
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + bool(len(ids))


def number_keys(*keys: np.ndarray) -> Int64s:
    """A number for each tuple of keys, int64[n]: equal for equal tuples, and rising with them from 0."""
    order = np.lexsort(keys[::-1])
    changes = np.zeros(len(order), np.bool_)
    for key in keys:
        changes[1:] |= key[order][1:] != key[order][:-1]
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(changes)
    return numbers


def ranks(group: Int64s, value: np.ndarray) -> tuple[Int64s, Int64s]:
    """The order by group and value, and each element's rank in its group by that order, from 0."""
    order = np.lexsort((value, group))
    first = np.concatenate([[0], np.cumsum(np.bincount(group))])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - first[group[order]]
    return order, rank


def per_file(
    manifest: Mapping[str, Any], segments: Segments, order: Int64s, wrong: Bools, invariant: str, detail: str
) -> Iterator[Violation]:
    """One violation per file for the segments `order[wrong]`."""
    culprits = order[wrong]
    for number in np.unique(segments.file[culprits]):
        here = culprits[segments.file[culprits] == number]
        name = manifest["files"][number]["name"]
        yield Violation(invariant, name, int(segments.row[here].min()), len(here), detail)
