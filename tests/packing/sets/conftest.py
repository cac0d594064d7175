"""Bags of random features, packed and written."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from seqmill.manifest import OutputFile, write_manifest
from seqmill.packing.sets import BagStore, SetPlan, SetSettings, bags_table, plan_sets, set_manifest_entries, write_sets
from seqmill.storage import write_arrow


def random_bags(sizes: Sequence[int], dim: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(size, dim)).astype(np.float16) for size in sizes]


def table_of(bags: list[np.ndarray]) -> pa.Table:
    return bags_table(bags, [k % 3 for k in range(len(bags))], [f"slide {k}" for k in range(len(bags))])


def write_all(folder: Path, planned: SetPlan, store: BagStore, shards: int = 2) -> Path:
    files = []
    for begin, end in ((0, planned.main.rows), (planned.main.rows, planned.rows)):
        for first, last in pairwise(np.linspace(begin, end, shards + 1).astype(int).tolist()):
            name = f"part-{len(files):05d}.arrow"
            files.append(OutputFile.of(folder, name, write_sets(folder / name, planned, first, last, store)))
    write_manifest(folder, "sets", files, **set_manifest_entries(planned, store.dim))
    return folder


@pytest.fixture
def bags_of() -> Callable[..., list[np.ndarray]]:
    return random_bags


@pytest.fixture
def write_bags(tmp_path: Path) -> Callable[..., Path]:
    """Write bags as an Arrow stream of several record batches."""

    def call(bags: list[np.ndarray], name: str = "bags.arrow", each: int = 3) -> Path:
        table = table_of(bags)
        write_arrow(tmp_path / name, table.schema, table.to_batches(max_chunksize=each))
        return tmp_path / name

    return call


@pytest.fixture
def pack_bags(tmp_path: Path, write_bags: Callable[..., Path]) -> Callable[..., tuple[Path, BagStore]]:
    """Pack bags; the folder, and the store of the mapped bags."""
    used = 0

    def call(bags: list[np.ndarray], shards: int = 2, **settings: object) -> tuple[Path, BagStore]:
        nonlocal used
        used += 1
        store = BagStore.open([write_bags(bags, f"bags-{used}.arrow")])
        planned = plan_sets(store.counts, SetSettings(**settings))  # type: ignore[arg-type]
        return write_all(tmp_path / f"packed-{used}", planned, store, shards), store

    return call
