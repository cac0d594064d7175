"""Packed shards, read by others: what `datasets`, pyarrow and Parquet give are the rows that PackedRows gives."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch

from seqmill.packing import PackedRows

LENGTHS = np.random.default_rng(0).integers(0, 60, 60).tolist()
Row = dict[str, Any]


@pytest.fixture(scope="module", params=[50_000, 100_000], ids=["uint16", "uint32"])
def folder(request: pytest.FixtureRequest, pack_once: Callable) -> Path:
    flags = [number % 3 == 0 for number in range(len(LENGTHS))]
    return pack_once(LENGTHS, 32, vocab_size=request.param, is_repeat=flags, shards=3).folder


@pytest.fixture(scope="module")
def parts(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("part-*.arrow"))]


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[Row]:
    packed = PackedRows(folder)
    return [plain(packed.row(index)) for index in range(packed.rows)]


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, without the network and its progress bars."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def plain(row: Row) -> Row:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}


def stream(path: str) -> pa.Table:
    with pa.memory_map(path) as file:
        return pa.ipc.open_stream(file).read_all()


def features_of(datasets: Any, table: pa.Table) -> Any:
    """What `datasets` would say of these columns by their Arrow types."""
    return datasets.Features.from_arrow_schema(table.schema.remove_metadata())


def test_pyarrow_reads_a_part_as_a_stream(parts: list[str], rows: list[Row]) -> None:
    assert [row for part in parts for row in stream(part).to_pylist()] == rows


def test_pyarrow_datasets_take_the_tables(parts: list[str], rows: list[Row]) -> None:
    """They open Arrow's file format by its name and not its stream format, so the mapped tables are handed over."""
    dataset = pyarrow.dataset.dataset([stream(part) for part in parts])
    assert dataset.to_table().to_pylist() == rows
    long = dataset.to_table(columns=["row_id"], filter=pyarrow.dataset.field("n_tokens") == 32)["row_id"].to_pylist()
    assert long == [row["row_id"] for row in rows if row["n_tokens"] == 32]
    assert len(long) > 10


def test_dataset_from_file_maps_a_part(datasets: Any, parts: list[str], rows: list[Row]) -> None:
    found = []
    for part in parts:
        dataset = datasets.Dataset.from_file(part)
        assert dataset.features == features_of(datasets, stream(part))
        assert [file["filename"] for file in dataset.cache_files] == [part]  # mapped where it is, not copied
        found += list(dataset)
    assert found == rows


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_reads_all_parts(
    datasets: Any, parts: list[str], rows: list[Row], tmp_path: Path, streaming: bool
) -> None:
    options = {"streaming": True} if streaming else {"cache_dir": str(tmp_path)}
    dataset = datasets.load_dataset("arrow", data_files=parts, split="train", **options)
    assert dataset.features == features_of(datasets, stream(parts[0]))
    assert list(dataset) == rows


def test_load_dataset_takes_the_folder(datasets: Any, folder: Path, rows: list[Row], tmp_path: Path) -> None:
    dataset = datasets.load_dataset(
        "arrow", data_files=f"{folder}/part-*.arrow", split="train", cache_dir=str(tmp_path)
    )
    assert dataset[len(rows) - 1] == rows[-1]
    assert dataset[3:9]["input_ids"] == [row["input_ids"] for row in rows[3:9]]  # several rows: a list per column


def test_rows_come_as_tensors(datasets: Any, parts: list[str], rows: list[Row]) -> None:
    """Unsigned ids too, which torch has few operations for: `datasets` widens them to int64."""
    dataset = datasets.Dataset.from_file(parts[0]).with_format("torch", columns=["input_ids", "cu_seqlens"])
    for index, row in enumerate(rows[:5]):
        assert dataset[index]["input_ids"].dtype == torch.int64
        assert dataset[index]["input_ids"].tolist() == row["input_ids"]
        assert dataset[index]["cu_seqlens"].tolist() == row["cu_seqlens"]
    several = dataset[0:5]["input_ids"]
    assert [ids.tolist() for ids in several] == [row["input_ids"] for row in rows[:5]]


def test_features_are_told_by_the_schema(datasets: Any, parts: list[str]) -> None:
    """Not only guessed from the types: the entry that `datasets` writes and reads is there, and says the same."""
    table = stream(parts[0])
    info = datasets.DatasetInfo.from_dict(json.loads(table.schema.metadata[b"huggingface"])["info"])
    assert info.features == features_of(datasets, table)
    assert list(info.features) == table.column_names
    assert info.features.arrow_schema.remove_metadata() == table.schema.remove_metadata()


def test_parquet_gives_the_rows_back(datasets: Any, parts: list[str], rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "archive.parquet"
    table = pa.concat_tables([stream(part) for part in parts])
    pyarrow.parquet.write_table(table, path, compression="zstd")
    again = pyarrow.parquet.read_table(path)
    assert again.equals(table)
    assert {key: again.schema.metadata[key] for key in table.schema.metadata} == table.schema.metadata
    assert pyarrow.dataset.dataset(path, format="parquet").to_table().to_pylist() == rows
    dataset = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert dataset.features == features_of(datasets, table)
    assert list(dataset) == rows


def test_trl_reads_position_ids_from_seq_lengths(datasets: Any, folder: Path, parts: list[str]) -> None:
    """Its padding-free collator counts up within each of a row's seq_lengths, as the rows do here."""
    packed = PackedRows(folder)
    for row in datasets.Dataset.from_file(parts[0]):
        positions = [position for length in row["seq_lengths"] for position in range(length)]
        index = np.array([row["row_id"]])
        assert packed.read(index, index).ids_targets_positions[2].tolist() == positions
        assert row["seq_lengths"] == [end - begin for begin, end in pairwise(row["cu_seqlens"])]
