"""This project's loader, driven as its peers are; its batches have targets, positions and segment bounds besides."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from batches import BATCH, ROW, SEED, Batches, Reader, main

from seqmill.manifest import OutputFile, write_manifest
from seqmill.packing import Loader, PackedDataset, TokenStore, pack_settings, packed_manifest_entries, plan, write_rows

SOURCE = "random"


def prepare(corpus: Path, data: Path) -> None:
    """Pack the documents; all rows in one shard, as there are fewer tokens than one has room for."""
    tokens, lengths = (np.load(corpus / f"{name}.npy") for name in ("tokens", "lengths"))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    count = len(lengths)
    columns = {
        "doc_id": pa.array(np.arange(count), pa.uint64()),
        "input_ids": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens)),
        "num_bytes": pa.array(np.zeros(count), pa.uint32()),
        "source": pa.array([SOURCE] * count),
    }
    store = TokenStore([pa.table(columns)], {"vocab_size": 50_000, "sources": [SOURCE]})
    packed = plan(store.lengths, ROW)
    shard = data / "part-00000.arrow"
    totals = write_rows(shard, packed, 0, packed.rows, store, pack_settings(packed, store))
    files = [OutputFile.of(data, shard.name, packed.rows)]
    write_manifest(data, "packed", files, **packed_manifest_entries(packed, [totals], store))


def begin(data: Path, workers: int) -> Any:
    """What begins a pass."""
    loader = Loader(PackedDataset(data, batch_rows=BATCH, seed=SEED), workers)
    return lambda: loader


def save(data: Path, step: int) -> Any:
    """The state at a step of any epoch."""
    return PackedDataset(data, batch_rows=BATCH, seed=SEED, epochs=None).state_at(step)


def resume(data: Path, state: Any) -> Batches:
    """The batches from a state on."""
    dataset = PackedDataset(data, batch_rows=BATCH, seed=SEED, epochs=None)
    dataset.load_state_dict(state)
    return dataset


VARIANTS = {"": Reader(begin, save, resume)}

if __name__ == "__main__":
    main("seqmill", prepare, VARIANTS)
