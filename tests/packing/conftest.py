"""Small corpora, written as a tokens folder and packed as the pipeline stage does it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seqmill.manifest import OutputFile, write_manifest
from seqmill.packing import (
    PackPlan,
    TokenStore,
    decompose,
    pack_settings,
    packed_manifest_entries,
    plan,
    write_rows,
)
from seqmill.storage import write_arrow

SOURCES = ["books", "code", "web"]


@dataclass(frozen=True)
class Corpus:
    folder: Path  # the tokens folder
    documents: list[np.ndarray]
    doc_ids: list[int]
    sources: list[str]
    vocab_size: int


@dataclass(frozen=True)
class Packed:
    folder: Path
    corpus: Corpus
    plan: PackPlan
    store: TokenStore


def random_documents(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    dtype = np.uint16 if vocab_size <= 65536 else np.uint32
    return [rng.integers(0, vocab_size, length).astype(dtype) for length in lengths]


def token_table(
    documents: list[np.ndarray], doc_ids: list[int], sources: list[str], *, large: bool = False
) -> pa.Table:
    dtype = documents[0].dtype if documents else np.dtype(np.uint16)
    value = pa.from_numpy_dtype(dtype)
    lists = (pa.large_list if large else pa.list_)(value)
    return pa.table(
        {
            "doc_id": pa.array(doc_ids, pa.uint64()),
            "input_ids": pa.array([document.tolist() for document in documents], lists),
            "num_bytes": pa.array([4 * len(document) for document in documents], pa.uint32()),
            "source": pa.array(sources, pa.large_string() if large else pa.string()),
        }
    )


def write_tokens(
    folder: Path,
    documents: list[np.ndarray],
    vocab_size: int,
    files: int = 2,
    doc_ids: list[int] | None = None,
    is_repeat: list[bool] | None = None,
) -> Corpus:
    """A tokens folder of `files` files with several record batches each; by default every document has its own id."""
    doc_ids = doc_ids or [((number % 3) << 40) + 7 * number for number in range(len(documents))]
    sources = [SOURCES[number % 3] for number in range(len(documents))]
    folder.mkdir(parents=True)
    outputs = []
    for number, part in enumerate(np.array_split(np.arange(len(documents)), files)):
        chosen = [[column[i] for i in part] for column in (documents, doc_ids, sources)]
        table = token_table(*chosen)
        table = table if documents else table.slice(0, 0)
        if is_repeat is not None:
            table = table.append_column("is_repeat", pa.array([is_repeat[i] for i in part], pa.bool_()))
        name = f"part-{number:05d}.arrow"
        rows = write_arrow(folder / name, table.schema, table.to_batches(max_chunksize=3))
        outputs.append(OutputFile.of(folder, name, rows))
    tokenizer = {"fingerprint": "f" * 32, "kind": "byte", "special_ids": {"eos": 0}}
    write_manifest(folder, "tokens", outputs, vocab_size=vocab_size, tokenizer=tokenizer, sources=SOURCES)
    return Corpus(folder, documents, doc_ids, sources, vocab_size)


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Packed]:
    """`pack(lengths, capacity, ...)` writes documents of these lengths, or `documents`, and packs them."""
    return packer(tmp_path)


@pytest.fixture(scope="module")
def pack_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Packed]:
    """`pack` for what all tests of a file read and none changes."""
    return packer(tmp_path_factory.mktemp("packed"))


def packer(tmp_path: Path) -> Callable[..., Packed]:
    used = 0

    def build(
        lengths: Sequence[int],
        capacity: int,
        overflow: str = "split",
        *,
        shards: int = 2,
        vocab_size: int = 50_000,
        batch_tokens: int = 64,
        seed: int = 0,
        buckets: tuple[Any, ...] | None = None,
        algorithm: str = "best-fit-decreasing",
        **tokens: Any,
    ) -> Packed:
        nonlocal used
        used += 1
        root = tmp_path / f"corpus-{used}"
        documents = tokens.pop("documents", None) or random_documents(lengths, vocab_size, seed)
        corpus = write_tokens(root / "tokens", documents, vocab_size, **tokens)
        store = TokenStore.open(corpus.folder)
        if buckets:  # shortest, and then as in `decompose`: overlong, leftovers
            planned = decompose(store.lengths, buckets[0], capacity, *buckets[1:], seed=seed)
        else:
            planned = plan(store.lengths, capacity, overflow, seed, algorithm)
        folder = root / "packed"
        files, totals = [], []
        edges = np.linspace(0, planned.rows, shards + 1).astype(int).tolist()
        for number, (first, last) in enumerate(pairwise(edges)):
            path = folder / f"part-{number:05d}.arrow"
            metadata = pack_settings(planned, store)
            totals.append(write_rows(path, planned, first, last, store, metadata, batch_tokens))
            files.append(OutputFile.of(folder, path.name, last - first))
        write_manifest(folder, "packed", files, **packed_manifest_entries(planned, totals, store))
        return Packed(folder, corpus, planned, store)

    return build
