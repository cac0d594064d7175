"""A loader gives what its dataset gives, wherever the rows are read, and knows which batches it has given."""

import os
import pickle
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from damage import flip_token
from seqmill.errors import UserError
from seqmill.packing import Loader, MixedDataset, PackedDataset, PackedRows
from seqmill.packing.cache import RemoteFolder
from seqmill.packing.loader import _ReadAhead, _Runs

LENGTHS = np.random.default_rng(3).integers(1, 40, 60).tolist()
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # fewer cores than workers


@pytest.fixture(scope="module")
def folder(pack_once: Callable) -> Path:
    return pack_once(LENGTHS, 16, shards=5).folder


def plain(batches: Any) -> list[dict[str, Any]]:
    return [
        {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        for batch in batches
    ]


def rows_of(batches: Any) -> list[list[int]]:
    return [batch["row_ids"].tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("run_steps", [1, 4])
def test_workers_and_runs_change_nothing(folder: Path, workers: int, run_steps: int) -> None:
    options: dict[str, Any] = {"batch_rows": 3, "rank": 1, "world_size": 2, "epochs": 2, "normalisation": "sample-mean"}
    loader = Loader(PackedDataset(folder, **options), workers, run_steps=run_steps)
    expected = plain(PackedDataset(folder, **options))
    assert plain(loader) == expected
    assert 2 * len(loader) == len(expected)
    assert plain(loader) == expected  # the same workers again


def test_a_mixture_can_be_loaded_too(folder: Path) -> None:
    dataset = MixedDataset({"a": folder, "b": folder}, {"a": 2, "b": 1}, batch_rows=3)
    assert plain(Loader(dataset, 2)) == plain(dataset)


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("end", [None, 5, 6, 40])
@pytest.mark.parametrize("workers", [1, 3])
def test_runs_are_all_steps_in_order_and_grow_when_every_worker_had_one(
    first: int, end: int | None, workers: int
) -> None:
    position: Any = SimpleNamespace(first_step=first, end=end)
    runs = list(islice(_Runs(position, workers, 4), 12))
    steps = [step for run in runs for step in run]
    assert steps == list(range(first, first + len(steps)))
    assert len(runs) == 12 or first + len(steps) == end
    grown = [1] * workers + [2] * workers + [4] * 12
    assert [len(run) for run in runs[:-1]] == grown[: len(runs[:-1])]


def test_the_next_iterator_begins_at_a_loaded_state_with_the_same_workers(folder: Path) -> None:
    loader = Loader(PackedDataset(folder, batch_rows=4), 2)
    expected = rows_of(loader)
    processes = [worker.pid for worker in loader._readers._iterator._workers]
    loader.load_state_dict(loader.dataset.state_at(3))
    assert rows_of(loader) == expected[3:]
    assert [worker.pid for worker in loader._readers._iterator._workers] == processes


def test_a_new_iterator_ends_the_one_before(folder: Path) -> None:
    loader = Loader(PackedDataset(folder, batch_rows=4), 1)
    first = iter(loader)
    batch = next(first)
    assert rows_of(islice(loader, 1)) == rows_of([batch])
    with pytest.raises(UserError, match="another iterator of this loader began"):
        next(first)


def test_workers_check_hashes_and_name_the_row_behind_all_batches_before_it(
    pack: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, here, verify = pack(LENGTHS, 16, shards=5).folder, os.getpid(), PackedRows.verify

    def elsewhere(self: PackedRows, row_ids: Any) -> None:
        assert os.getpid() != here
        verify(self, row_ids)

    monkeypatch.setattr(PackedRows, "verify", elsewhere)
    row = flip_token(folder / "part-00001.arrow", 2)
    order = rows_of(PackedDataset(folder, batch_rows=2))
    sound = next(number for number, rows in enumerate(order) if row in rows)
    batches = iter(Loader(PackedDataset(folder, batch_rows=2, verify=True), 1))
    assert rows_of(islice(batches, sound)) == order[:sound]
    with pytest.raises(UserError, match=rf"\Arow {row} of .* does not match its hash[^\n]*\Z"):
        next(batches)


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """The folder in a store that is no file system."""
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/loader/packed", recursive=True)
    yield "memory://loader/packed"
    store.rm("/loader", recursive=True)


def test_workers_fetch_what_is_far_away(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, fetch = os.getpid(), RemoteFolder.fetch

    def elsewhere(self: RemoteFolder, name: str, path: Path) -> None:
        assert os.getpid() != here
        fetch(self, name, path)

    monkeypatch.setattr(RemoteFolder, "fetch", elsewhere)
    options: dict[str, Any] = {"shuffle_shards": 1, "batch_rows": 4, "epochs": 2}
    assert plain(Loader(PackedDataset(url, cache=tmp_path, **options), 2)) == plain(PackedDataset(folder, **options))


def test_runs_are_as_long_as_the_cache_has_room_for(folder: Path, url: str, tmp_path: Path) -> None:
    sizes = sorted(path.stat().st_size for path in folder.glob("part-*"))
    options: dict[str, Any] = {"cache": tmp_path, "shuffle_shards": 1, "batch_rows": 2}
    dataset = PackedDataset(url, cache_bytes=sum(sizes[-4:]), **options)
    loader = Loader(dataset, 1)
    assert 1 <= loader.run_steps < 16
    assert rows_of(loader) == rows_of(PackedDataset(folder, shuffle_shards=1, batch_rows=2))
    with pytest.raises(UserError, match=r"steps that workers have begun.*, or fewer workers"):
        Loader(PackedDataset(url, cache_bytes=sum(sizes[-2:]), **options), 9)


def test_a_started_worker_process_needs_no_more_than_the_pickled_dataset(folder: Path) -> None:
    dataset = PackedDataset(folder, batch_rows=4, seed=3)
    readers = pickle.loads(pickle.dumps(_ReadAhead(dataset)))
    assert readers[range(2, 5)] == (2, 5, None)


@pytest.mark.parametrize("options", [{"workers": -1}, {"workers": 1, "run_steps": 0}])
def test_impossible_numbers_are_refused(folder: Path, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="give at least 0 and 1"):
        Loader(PackedDataset(folder), **options)
