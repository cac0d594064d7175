"""Counting ids by group without a table of every group and id: only pairs that occur take room."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

PENDING = 1 << 22  # counts that wait to be added up
COUNTS = pa.schema({"group": pa.uint32(), "id": pa.uint32(), "count": pa.int64()})

Int64s = npt.NDArray[np.int64]


class IdCounts:
    """How often each id occurs in each group: pairs that occur, sorted."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._keys = self._counts = np.empty(0, np.int64)  # keys are group * vocab_size + id, sorted
        self._pending: list[tuple[Int64s, Int64s]] = []  # the same, in any order

    def add(self, group: Int64s, ids: pa.ListArray) -> None:
        """Count the ids of documents whose groups are `group`, int64[documents]."""
        lengths = np.diff(ids.offsets.to_numpy())
        keys = np.repeat(group * self.vocab_size, lengths) + ids.flatten().to_numpy()
        counted = pc.value_counts(pa.array(keys))
        self.add_counts(counted.field("values").to_numpy(), counted.field("counts").to_numpy())

    def add_counts(self, keys: Int64s, counts: Int64s) -> None:
        """Add counts of keys, group * vocab_size + id, in any order."""
        self._pending.append((keys, counts))
        if sum(len(pending) for pending, _ in self._pending) > PENDING:
            self.all()

    def all(self) -> tuple[Int64s, Int64s]:
        """The keys that occur, sorted, and their counts."""
        if self._pending:
            keys, counts = zip((self._keys, self._counts), *self._pending, strict=True)
            self._keys, place = np.unique(np.concatenate(keys), return_inverse=True)
            self._counts = np.zeros(len(self._keys), np.int64)
            np.add.at(self._counts, place, np.concatenate(counts))
            self._pending = []
        return self._keys, self._counts

    def of_group(self, group: int) -> tuple[Int64s, Int64s]:
        """The ids that occur in a group, sorted, and their counts."""
        keys, counts = self.all()
        first, last = np.searchsorted(keys, [group * self.vocab_size, (group + 1) * self.vocab_size])
        return keys[first:last] - group * self.vocab_size, counts[first:last]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The counts as a table of `COUNTS`."""
        keys, counts = self.all()
        group, id_ = np.divmod(keys, self.vocab_size)
        yield pa.record_batch([group.astype(np.uint32), id_.astype(np.uint32), counts], schema=COUNTS)
