"""Bags of feature vectors, mapped: sizes for the planner, instances for the writer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import carray, njit

from seqmill.errors import UserError
from seqmill.packing.addresses import address_of, pointer
from seqmill.storage import read_arrow

Int64s = npt.NDArray[np.int64]
Float16s = npt.NDArray[np.float16]
ARROW_FILE = b"ARROW1"  # how a file in the format with a footer begins; streams do not


class BagStore:
    """Random access to the instances of bags.

    Attributes:
        counts: instances of every bag, int64[bags].
        dim: length of a feature vector.
        bag_ids: string[bags] or int64[bags]; uint64[bags] where one is 2^63 or more.
        labels: int64[bags] or float64[bags].
    """

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        """Describe `tables` with the columns bag_id, features and label; 16 bytes per bag besides ids and labels.

        Raises:
            UserError: there is no table, a column is missing, has nulls or another type, or tables differ in them.
        """
        if not tables:
            raise UserError("no bags were given: name Arrow or Parquet files with columns bag_id, features and label")
        self.dim = _dimension(tables[0])
        checked = [_checked(table, self.dim) for table in tables]
        if len({(pa.types.is_string(table["bag_id"].type), table["label"].type) for table in checked}) > 1:
            raise UserError("the tables of bags differ in the types of bag_id or label; write them with equal types")
        checked = _with_equal_ids(checked)
        joined = pa.concat_tables(checked)
        self.bag_ids: pa.Array = joined["bag_id"].combine_chunks()
        self.labels: np.ndarray = joined["label"].to_numpy()
        self._held = [chunk for chunk in joined["features"].chunks if len(chunk)]
        described = [_describe(chunk, self.dim) for chunk in self._held]
        empty = np.empty(0, np.int64)
        self.counts: Int64s = np.concatenate([empty, *(counts for counts, _ in described)])
        self._address: Int64s = np.concatenate([empty, *(address for _, address in described)])

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "BagStore":
        """Map Arrow files, streams or with a footer.

        Raises:
            UserError: one cannot be read, or its columns are not those of bags.
        """
        return cls([_open(path) for path in paths])

    @property
    def bags(self) -> int:
        """Number of bags."""
        return len(self.counts)

    def gather(self, bag: Int64s, sizes: Int64s, instances: npt.NDArray[np.int32]) -> Float16s:
        """Instances of these bags, one after the other, float16[len(instances), dim].

        Args:
            bag, sizes: sizes[k] of `instances` are of bag[k].

        Raises:
            IndexError: an instance is not in its bag.
        """
        out = np.empty((len(instances), self.dim), np.uint16)
        bad = _gather(self._address[bag], self.counts[bag], sizes, instances, out)
        if bad >= 0:
            raise IndexError(f"instance {instances[bad]} of the request lies outside its bag")
        return out.view(np.float16)


def bags_table(features: Sequence[Float16s], labels: Sequence[float], bag_ids: Sequence[str | int]) -> pa.Table:
    """A table of bags from one array per bag, float16[instances, dim], such as `numpy.load` gives."""
    dim = features[0].shape[1]
    flat = np.concatenate([np.ascontiguousarray(one, np.float16).reshape(-1) for one in features])
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in features])])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), dim)
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), vectors)
    return pa.table({"bag_id": list(bag_ids), "features": lists, "label": list(labels)})


def _open(path: Path) -> pa.Table:
    with path.open("rb") as file:
        has_footer = file.read(len(ARROW_FILE)) == ARROW_FILE
    if not has_footer:
        return read_arrow(path)
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read {path} as an Arrow file ({error}); write it again") from error


def _dimension(table: pa.Table) -> int:
    kind = table.schema.field("features").type if "features" in table.column_names else None
    is_list = kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))
    vector = kind.value_type if kind is not None and is_list else None
    if vector is None or not pa.types.is_fixed_size_list(vector) or vector.value_type != pa.float16():
        raise UserError(
            f"the column features of bags has type {kind}, but list<fixed_size_list<float16>[d]> is needed; cast it"
        )
    return int(vector.list_size)


def _checked(table: pa.Table, dim: int) -> pa.Table:
    """bag_id as strings or the integers that it has, features, and label as int64 or float64."""
    missing = [name for name in ("bag_id", "label") if name not in table.column_names]
    if missing:
        raise UserError(f"the bags have no column {missing[0]!r}, only {', '.join(table.column_names)}")
    if (found := _dimension(table)) != dim:
        raise UserError(f"some bags have features of {dim} numbers, others of {found}; pack them apart")
    ids, label = table["bag_id"], table["label"]
    is_number = pa.types.is_integer(label.type) or pa.types.is_floating(label.type)
    is_name = pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)
    if not is_number or not (pa.types.is_integer(ids.type) or is_name):
        raise UserError(f"bags have a bag_id of integers or strings and a numeric label, not {ids.type}, {label.type}")
    table.validate()
    features = table["features"]
    vectors = [chunk.values for chunk in features.chunks]
    nulls = sum(part.null_count + part.flatten().null_count for part in vectors)
    if ids.null_count or label.null_count or features.null_count or nulls:
        raise UserError("the bags have nulls; drop or fill them first")
    return pa.table(
        {
            "bag_id": ids.cast(pa.string()) if is_name else ids,
            "features": features.cast(pa.large_list(pa.list_(pa.float16(), dim))),
            "label": label.cast(pa.int64() if pa.types.is_integer(label.type) else pa.float64()),
        }
    )


def _with_equal_ids(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Integer ids of all tables as int64, or as uint64 where one of them has no room in that."""
    ids = [table["bag_id"] for table in tables]
    if pa.types.is_string(ids[0].type):
        return list(tables)
    bounds = [pc.min_max(one).as_py() for one in ids if len(one)]
    wanted = pa.uint64() if max((bound["max"] for bound in bounds), default=0) >= 1 << 63 else pa.int64()
    if wanted == pa.uint64() and (least := min(bound["min"] for bound in bounds)) < 0:
        raise UserError(f"the bags have ids of 2^63 or more, and {least}: no integer type holds both; use strings")
    return [table.set_column(0, "bag_id", one.cast(wanted)) for table, one in zip(tables, ids, strict=True)]


def _describe(features: pa.Array, dim: int) -> tuple[Int64s, Int64s]:
    """Instances of every bag of a chunk, and the address of each bag's first number."""
    offsets = features.offsets.to_numpy()
    vectors = features.values
    if (np.diff(offsets) < 0).any() or offsets[0] < 0 or offsets[-1] > len(vectors):
        raise UserError("the bags have list offsets outside their features: the file is damaged; write it again")
    first = address_of(vectors.values) + vectors.offset * dim * 2  # bytes; a slice begins at its own offset
    return np.diff(offsets), first + offsets[:-1] * dim * 2


@njit(cache=True, nogil=True)
def _gather(
    address: Int64s, counts: Int64s, sizes: Int64s, instances: npt.NDArray[np.int32], out: npt.NDArray[np.uint16]
) -> int:
    """Copy instances to `out`; the number of a bad one, or -1."""
    dim = out.shape[1]
    place = 0
    for fragment in range(address.size):
        stored = carray(pointer(address[fragment]), counts[fragment] * dim, np.uint16)
        for index in range(place, place + sizes[fragment]):
            instance = np.int64(instances[index])
            if instance < 0 or instance >= counts[fragment]:
                return index
            begin = instance * dim
            for number in range(dim):
                out[index, number] = stored[begin + number]
        place += sizes[fragment]
    return -1
