"""Reading packed sets: a row as arrays without a copy, steps of rows, and fresh draws that are never written."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.manifest import open_manifest
from seqmill.packing.permutation import permutation, round_keys
from seqmill.packing.sets.bags import BagStore
from seqmill.packing.sets.drawing import SetSettings
from seqmill.packing.sets.planning import plan_sets
from seqmill.packing.sets.write import KIND, batch_bounds, pack_batch, schema_of
from seqmill.storage import read_arrow


class Pack(NamedTuple):
    """One row, or several of one kind one after the other: T instances in n segments."""

    features: npt.NDArray[np.float16]  # float16[T, d]; read-only where it is the mapped file
    cu_seqlens: npt.NDArray[np.int32]  # int32[n + 1], segment bounds
    max_seqlen: int  # longest segment; 0 for no rows
    instances: npt.NDArray[np.int32]  # int32[T], number of each in its bag
    bags: npt.NDArray[np.int64]  # int64[n], number of each segment's bag in the input
    bag_ids: list[Any]  # [n], its own id
    labels: np.ndarray  # int64[n] or float64[n]
    is_residual: bool  # one set over its bags, rather than one per segment
    row_ids: npt.NDArray[np.int64]  # int64[rows]


class SetPacks:
    """Random access to packed sets.

    Attributes:
        rows: number of rows: main ones from 0 to main_rows, then residual ones.
        main_rows: number of main rows.
        dim: length of a feature vector.
        manifest: of the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        """Map the shards of a finished folder.

        Raises:
            UserError: the folder is not finished, or its shards do not match the manifest.
        """
        folder = Path(folder)
        self.manifest: dict[str, Any] = open_manifest(folder, KIND)
        self.main_rows: int = self.manifest["sets"]["main"]["rows"]
        self.dim: int = self.manifest["sets"]["dim"]
        self._batches: list[pa.RecordBatch] = []
        for file in self.manifest["files"]:
            table = read_arrow(folder / file["name"])
            if table.num_rows != file["rows"]:
                raise UserError(
                    f"{folder / file['name']} has {table.num_rows} rows, the manifest lists {file['rows']}; pack again"
                )
            self._batches += [batch for batch in table.to_batches() if batch.num_rows]
        sizes = [batch.num_rows for batch in self._batches]
        self._first_row = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self.rows = int(self._first_row[-1])

    def pack(self, row: int) -> Pack:
        """A row by its number; its features are the mapped file itself.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows} rows")
        number = int(np.searchsorted(self._first_row, row, "right")) - 1
        return _pack_of(self._batches[number], row - int(self._first_row[number]), self.dim)

    def steps(
        self, batch_rows: int = 1, seed: int = 0, epoch: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[Pack, Pack]]:
        """An epoch for one rank: in every step some main rows, and beside them the step's part of the residual rows.

        Both are in an order of their own, drawn from seed and epoch. Over all ranks and steps each row comes once; a
        step may have no residual row, and for a rank in the last step no main one.

        Raises:
            UserError: an argument is out of its range.
        """
        if batch_rows < 1 or not 0 <= rank < world_size:
            raise UserError(f"batch_rows = {batch_rows}, rank {rank} of {world_size}: at least 1 row, ranks from 0 on")
        main = permutation(self.main_rows, round_keys("main sets", seed, epoch))
        residual = self.main_rows + permutation(self.rows - self.main_rows, round_keys("residual sets", seed, epoch))
        steps = -(-len(main) // batch_rows)
        for step in range(steps):
            mine = main[step * batch_rows : (step + 1) * batch_rows]
            beside = residual[step * len(residual) // steps : (step + 1) * len(residual) // steps]
            yield self._join(_share(mine, rank, world_size), False), self._join(_share(beside, rank, world_size), True)

    def _join(self, rows: npt.NDArray[np.int64], is_residual: bool) -> Pack:
        packs = [self.pack(int(row)) for row in rows]
        if packs:
            return join_packs(packs)
        labels = self._batches[0].schema.field("label").type.value_type.to_pandas_dtype()
        no, ids = np.zeros((0, self.dim), np.float16), np.zeros(0, np.int64)
        cu_seqlens, instances = np.zeros(1, np.int32), np.zeros(0, np.int32)
        return Pack(no, cu_seqlens, 0, instances, ids, [], np.zeros(0, labels), is_residual, ids)


def draw_packs(store: BagStore, settings: SetSettings) -> Iterator[Pack]:
    """All rows of a draw, main ones first, without writing them: those that `write_sets` would write."""
    planned = plan_sets(store.counts, settings)
    schema = schema_of(planned, store)
    for first, last in ((0, planned.main.rows), (planned.main.rows, planned.rows)):
        for begin, end in batch_bounds(planned, first, last, store.dim):
            batch = pack_batch(planned, begin, end, store, schema)
            for row in range(end - begin):
                yield _pack_of(batch, row, store.dim)


def join_packs(packs: Sequence[Pack]) -> Pack:
    """At least one pack of one kind, one after the other: a batch for attention that takes cu_seqlens."""
    ends = np.cumsum([len(pack.features) for pack in packs])
    shifted = [pack.cu_seqlens[1:] + end - len(pack.features) for pack, end in zip(packs, ends.tolist(), strict=True)]
    return Pack(
        features=np.concatenate([pack.features for pack in packs]),
        cu_seqlens=np.concatenate([np.zeros(1, np.int32), *shifted]).astype(np.int32),
        max_seqlen=max(pack.max_seqlen for pack in packs),
        instances=np.concatenate([pack.instances for pack in packs]),
        bags=np.concatenate([pack.bags for pack in packs]),
        bag_ids=[one for pack in packs for one in pack.bag_ids],
        labels=np.concatenate([pack.labels for pack in packs]),
        is_residual=packs[0].is_residual,
        row_ids=np.concatenate([pack.row_ids for pack in packs]),
    )


def mixed_labels(pack: Pack, classes: int, by_size: bool = False) -> npt.NDArray[np.float32]:
    """The label of a residual row as one set, float32[classes]: its bags of each class, over those of the commonest.

    Args:
        by_size: count instances instead of bags.
    """
    weights = np.diff(pack.cu_seqlens) if by_size else np.ones(len(pack.labels))
    counted = np.bincount(pack.labels, weights, classes)
    return (counted / max(1.0, counted.max(initial=0.0))).astype(np.float32)


def as_torch(pack: Pack) -> dict[str, Any]:
    """The arrays of a pack as tensors on their memory, by field name; bag_ids stay a list."""
    import torch

    fields = pack._asdict()
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    return fields | {
        name: torch.from_numpy(array if array.flags.writeable else array.copy()) for name, array in arrays.items()
    }


def _share(rows: npt.NDArray[np.int64], rank: int, world_size: int) -> npt.NDArray[np.int64]:
    return rows[len(rows) * rank // world_size : len(rows) * (rank + 1) // world_size]


def _pack_of(batch: pa.RecordBatch, row: int, dim: int) -> Pack:
    begin, end = (offset.as_py() for offset in batch.column("features").offsets[row : row + 2])
    numbers = batch.column("features").values.values.to_numpy(zero_copy_only=True)
    values = {name: batch.column(name)[row].values for name in ("cu_seqlens", "instance", "bag", "bag_id", "label")}
    arrays = {name: values[name].to_numpy(zero_copy_only=True) for name in ("cu_seqlens", "instance", "bag", "label")}
    return Pack(
        features=numbers[begin * dim : end * dim].reshape(-1, dim),
        cu_seqlens=arrays["cu_seqlens"],
        max_seqlen=batch.column("max_seqlen")[row].as_py(),
        instances=arrays["instance"],
        bags=arrays["bag"],
        bag_ids=values["bag_id"].to_pylist(),
        labels=arrays["label"],
        is_residual=batch.column("is_residual")[row].as_py(),
        row_ids=np.array([batch.column("row_id")[row].as_py()]),
    )
