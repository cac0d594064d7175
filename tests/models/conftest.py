"""Small models and small packed folders, made by the project's own packer."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from seqmill.manifest import OutputFile, write_manifest
from seqmill.models import Model, ModelConfig

PackFolder = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """On a busy machine threads wait for each other longer than these small models compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def config() -> ModelConfig:
    """Every feature at its smallest: grouped heads, a vocabulary that is no multiple of 64."""
    return ModelConfig(vocab_size=100, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_dim=48)


@pytest.fixture
def model(config: ModelConfig) -> Model:
    """An embedding and head ten times as large as for training, so that logits are far from uniform."""
    model = Model(config, seed=1)
    with torch.no_grad():
        for table in {model.embedding.weight, model.head_weight}:
            table.mul_(10.0)
    return model


@pytest.fixture
def pack_folder(tmp_path: Path, pack_to: PackFolder) -> PackFolder:
    """pack_folder(documents, ..., name="packed"): `pack_to` a folder of this name."""

    def build(documents: Sequence[Sequence[int]], *arguments: Any, name: str = "packed", **settings: Any) -> Path:
        return pack_to(tmp_path / name, documents, *arguments, **settings)

    return build


@pytest.fixture(scope="session")
def pack_to() -> PackFolder:
    """pack_to(folder, documents, capacity, vocab_size, is_repeat, step_tokens): the folder that `seqmill pack` would
    write; with step_tokens, buckets from 8 tokens to the capacity and a schedule of such steps."""

    def build(
        folder: Path,
        documents: Sequence[Sequence[int]],
        capacity: int = 64,
        vocab_size: int = 100,
        is_repeat: Sequence[bool] | None = None,
        step_tokens: int | None = None,
    ) -> Path:
        from seqmill.packing import decompose, make_schedule, save_schedule
        from seqmill.packing.pack_plan import plan
        from seqmill.packing.tokens import TokenStore
        from seqmill.packing.totals import pack_settings, packed_manifest_entries
        from seqmill.packing.write import write_rows

        table = pa.table(
            {
                "doc_id": pa.array(range(len(documents)), pa.uint64()),
                "input_ids": pa.array([list(map(int, document)) for document in documents], pa.list_(pa.uint16())),
                "num_bytes": pa.array([len(document) for document in documents], pa.uint32()),
                "source": ["test"] * len(documents),
            }
        )
        if is_repeat is not None:
            table = table.append_column("is_repeat", pa.array(is_repeat, pa.bool_()))
        store = TokenStore([table], {"vocab_size": vocab_size, "sources": ["test"]})
        packed = decompose(store.lengths, 8, capacity) if step_tokens else plan(store.lengths, capacity)
        folder.mkdir()
        shard = "part-00000.arrow"
        totals = write_rows(folder / shard, packed, 0, packed.rows, store, pack_settings(packed, store))
        files = [OutputFile.of(folder, shard, packed.rows)]
        entries = packed_manifest_entries(packed, [totals], store)
        if packed.buckets is not None and step_tokens:
            save_schedule(folder / "schedule.arrow", make_schedule(packed.buckets, step_tokens, cycles=2))
            entries["schedule"] = {"file": "schedule.arrow"}
        write_manifest(folder, "packed", files, **entries)
        return folder

    return build


@pytest.fixture
def packed(pack_folder: PackFolder) -> Path:
    """60 documents of a language that can be learned: every id is the one before it plus 3, now and then plus 7."""
    rng = np.random.default_rng(0)
    documents = []
    for length in rng.integers(2, 60, size=60):
        steps = rng.choice([3, 7], size=length, p=[0.9, 0.1])
        documents.append((rng.integers(100) + np.cumsum(steps)) % 100)
    return pack_folder(documents)
