"""Packed sets to a shard, and what their manifest says.

row_id      int64        position in the whole dataset: main rows, then residual ones
is_residual bool         whether the row holds what was not drawn
features    list<fixed_size_list<float16>[d]>  of all segments, no padding
instance    list<int32>  number of each of them in its bag
seq_lengths list<int32>  instances per segment
cu_seqlens  list<int32>  [segments + 1] cumulated
max_seqlen  int32        longest segment
bag         list<int64>  number of every segment's bag in the input
bag_id      list<string, int64 or uint64>  its own id
label       list<int64 or float64>         its label
xxh3        int64        xxh3-64 over the bytes of features and then of cu_seqlens
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.packing.pack_plan import PackPlan
from seqmill.packing.schema import hash_rows
from seqmill.packing.sets.bags import BagStore
from seqmill.packing.sets.drawing import draw
from seqmill.packing.sets.planning import SetPlan
from seqmill.storage import with_metadata, write_arrow

KIND: Final = "sets"
BATCH_BYTES = 32 << 20  # of features in a record batch, about

Int64s = npt.NDArray[np.int64]


def set_schema(dim: int, bag_id: pa.DataType, label: pa.DataType, metadata: dict[str, Any]) -> pa.Schema:
    """The columns of packed sets, with `metadata` as seqmill's own entry."""
    lists = {"features": pa.list_(pa.float16(), dim), "instance": pa.int32(), "seq_lengths": pa.int32()}
    lists |= {"cu_seqlens": pa.int32(), "bag": pa.int64(), "bag_id": bag_id, "label": label}
    columns = {"row_id": pa.int64(), "is_residual": pa.bool_()}
    columns |= {name: pa.list_(type_) for name, type_ in lists.items()}
    columns |= {"max_seqlen": pa.int32(), "xxh3": pa.int64()}
    return with_metadata(pa.schema(columns), KIND, **metadata)


def write_sets(path: Path, planned: SetPlan, first_row: int, last_row: int, store: BagStore) -> int:
    """Write rows first_row to last_row (exclusive), of one kind, as one shard; returns their number.

    The bytes depend on the arguments alone. Memory: two record batches and the sizes of the bags in one.

    Raises:
        UserError: the plan is of other bags, or the rows are not in it or not of one kind.
    """
    if not np.array_equal(planned.counts, store.counts):
        raise UserError(f"the plan is of other bags than the {store.bags} that are given; plan again")
    if not 0 <= first_row <= last_row <= planned.rows or first_row < planned.main.rows < last_row:
        raise UserError(f"rows {first_row} to {last_row} are not rows of one kind of the plan; choose others")
    schema = schema_of(planned, store)

    def batches() -> Iterator[pa.RecordBatch]:
        for begin, end in batch_bounds(planned, first_row, last_row, store.dim):
            yield pack_batch(planned, begin, end, store, schema)

    return write_arrow(path, schema, batches())


def batch_bounds(planned: SetPlan, first_row: int, last_row: int, dim: int) -> Iterator[tuple[int, int]]:
    """The rows of every record batch."""
    rows = max(1, BATCH_BYTES // (2 * dim * planned.settings.capacity))
    for begin in range(first_row, last_row, rows):
        yield begin, min(begin + rows, last_row)


def pack_batch(planned: SetPlan, first_row: int, last_row: int, store: BagStore, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of one kind as a record batch; its list offsets begin at 0."""
    segments, bag, start, stop = planned.fragments(first_row, last_row)
    sizes = stop - start
    ends = np.concatenate([[0], np.cumsum(sizes)])
    instances = _instances(planned, bag, start, sizes)
    features = store.gather(bag, sizes, instances)
    offsets = ends[segments]
    cu_offsets = segments + np.arange(len(segments))
    cu_seqlens = np.zeros(int(cu_offsets[-1]), np.int32)
    row = np.repeat(np.arange(last_row - first_row), np.diff(segments))
    cu_seqlens[np.arange(len(bag)) + row + 1] = ends[1:] - offsets[row]
    flat = pa.array(features.reshape(-1))
    columns = {
        "row_id": pa.array(np.arange(first_row, last_row)),
        "is_residual": pa.array(np.full(last_row - first_row, first_row >= planned.main.rows)),
        "features": _lists(offsets, pa.FixedSizeListArray.from_arrays(flat, store.dim)),
        "instance": _lists(offsets, pa.array(instances)),
        "seq_lengths": _lists(segments, pa.array(sizes.astype(np.int32))),
        "cu_seqlens": _lists(cu_offsets, pa.array(cu_seqlens)),
        "bag": _lists(segments, pa.array(bag)),
        "bag_id": _lists(segments, store.bag_ids.take(pa.array(bag))),
        "label": _lists(segments, pa.array(store.labels[bag])),
        "max_seqlen": pa.array(np.maximum.reduceat(sizes, segments[:-1]).astype(np.int32)),
        "xxh3": pa.array(hash_rows(features.view(np.uint16).reshape(-1), offsets * store.dim, cu_seqlens, cu_offsets)),
    }
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def set_manifest_entries(planned: SetPlan, dim: int) -> dict[str, Any]:
    """The entries of a manifest of kind "sets": settings, and counts that add up to all instances of all bags."""
    kinds = {"main": planned.main, "residual": planned.residual}
    counted = {name: _counts(part) for name, part in kinds.items()}
    return {
        "sets": {**asdict(planned.settings), "dim": dim, **counted},
        "totals": {
            "bags": len(planned.counts),
            "bags_empty": int(np.count_nonzero(planned.counts == 0)),
            "instances": int(planned.counts.sum()),
            "rows": planned.rows,
        },
    }


def _counts(part: PackPlan) -> dict[str, Any]:
    return {"rows": part.rows, "segments": len(part.item), "instances": part.tokens, "efficiency": part.efficiency}


def schema_of(planned: SetPlan, store: BagStore) -> pa.Schema:
    """The columns of what is packed of `store`."""
    described = {**asdict(planned.settings), "dim": store.dim}
    return set_schema(store.dim, store.bag_ids.type, pa.from_numpy_dtype(store.labels.dtype), described)


def _instances(planned: SetPlan, bag: Int64s, start: Int64s, sizes: Int64s) -> npt.NDArray[np.int32]:
    """The instances of all fragments: the draw of each of their bags is made once, and cut."""
    bags, which = np.unique(bag, return_inverse=True)
    counts = planned.counts[bags]
    drawn = draw(bags, counts, planned.drawn[bags], planned.settings)
    begins = (np.cumsum(counts) - counts)[which] + start
    ends = np.cumsum(sizes)
    within = np.arange(len(drawn) if not len(ends) else int(ends[-1])) - np.repeat(ends - sizes, sizes)
    chosen: npt.NDArray[np.int32] = drawn[np.repeat(begins, sizes) + within]
    return chosen


def _lists(offsets: Int64s, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
