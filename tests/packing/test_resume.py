"""A run that is cut anywhere goes on exactly, on any number of ranks and workers, and as often as you like."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset

from seqmill.errors import UserError
from seqmill.packing import Loader, PackedDataset
from seqmill.packing.steps import StepDataset

LENGTHS = np.random.default_rng(3).integers(1, 40, 60).tolist()
EPOCHS, BATCH_ROWS = 2, 12
BLOCKS = {"seed": 7, "shuffle_shards": 2}
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # fewer cores than workers


@pytest.fixture
def folder(pack: Callable) -> Path:
    return pack(LENGTHS, 16, shards=5).folder


@pytest.fixture
def cached(folder: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The same folder elsewhere, with a cache that has room for four of its five shards."""
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/resume/packed", recursive=True)
    sizes = sorted(path.stat().st_size for path in folder.glob("part-*"))
    yield {"path": "memory://resume/packed", "cache": tmp_path / "cache", "cache_bytes": sum(sizes[-4:])}
    store.rm("/resume", recursive=True)


class Ranks(IterableDataset[list[dict[str, Any]]]):
    """All ranks in the processes of one loader, each as if it had that loader for itself."""

    def __init__(self, datasets: list[PackedDataset]) -> None:
        self.datasets = datasets

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return (list(step) for step in zip(*self.datasets, strict=True))


class RanksAtOnce(StepDataset):
    """The same for a Loader: an item is a step of all ranks, by rank."""

    def __init__(self, datasets: list[PackedDataset]) -> None:
        super().__init__()
        self.datasets = datasets
        self.first_step = datasets[0].first_step

    @property
    def end(self) -> int | None:
        return self.datasets[0].end

    def batch_at(self, step: int) -> dict[Any, Any]:
        raise AssertionError("workers read, and batches are made here")

    def read_ahead(self, step: int) -> None:
        for dataset in self.datasets:
            dataset.read_ahead(step)

    def make(self, step: int) -> dict[Any, Any]:
        return {dataset.rank: dataset.make(step) for dataset in self.datasets}

    def check_cache(self, steps: int) -> None:
        for dataset in self.datasets:
            dataset.check_cache(steps)

    def definition(self) -> tuple[Any, ...]:
        return tuple(dataset.definition() for dataset in self.datasets)

    def state_at(self, step: int) -> dict[str, Any]:
        return self.datasets[0].state_at(step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("each rank has loaded it")


def by_data_loader(datasets: list[PackedDataset], workers: int) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """The steps of all ranks, each with the state behind it."""
    for step in DataLoader(Ranks(datasets), batch_size=None, num_workers=workers):
        yield step, datasets[0].state_at(step[0]["step"] + 1)


def by_loader(datasets: list[PackedDataset], workers: int) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """The same; workers are ahead by several runs of steps, the state is not."""
    loader = Loader(RanksAtOnce(datasets), workers, run_steps=3)
    for step in loader:
        yield list(step.values()), loader.state_dict()


def read(way: Any, options: dict[str, Any], ranks: int, workers: int, state: Any, steps: int) -> list[list[int]]:
    """The row ids of `steps` steps from a state on, of all ranks together; the next state is left in `state`."""
    options = {**options, "world_size": ranks, "batch_rows": BATCH_ROWS, "epochs": EPOCHS}
    datasets = [PackedDataset(**options, rank=rank) for rank in range(ranks)]
    for dataset in datasets if state else []:
        dataset.load_state_dict(json.loads(json.dumps(state)))
        assert dataset.state_dict() == state  # not stale before the first batch
    found = []
    for step, behind in islice(way(datasets, workers), steps):
        assert {batch["global_loss_tokens"] for batch in step} == {sum(batch["n_loss_tokens"] for batch in step)}
        assert len({batch["step"] for batch in step}) == 1
        found.append([row for batch in step for row in batch["row_ids"].tolist()])
        state.update(behind)
    return found


def check(way: Any, options: dict[str, Any], stop: str, before: int, workers: int) -> None:
    """Cut after some steps on `before` ranks, go on for two steps on 8, and then to the end on `before`."""
    whole = PackedDataset(**options, batch_rows=BATCH_ROWS, epochs=EPOCHS)
    epoch = len(whole)
    first = {"step 0": 0, "middle": epoch // 2, "last": epoch - 1, "next epoch": epoch + 1}[stop]
    state: dict[str, Any] = {}
    order = read(way, options, before, workers, state, first) if first else []
    order += read(way, options, 8, workers, state, 2)
    order += read(way, options, before, workers, state, EPOCHS * epoch)
    assert order == [batch["row_ids"].tolist() for batch in whole]
    for part in (order[:epoch], order[epoch:]):
        assert sorted(row for step in part for row in step) == list(range(whole._rows.rows))
    assert (state["step"], state["epoch"]) == (EPOCHS * epoch, EPOCHS)


STOPS = pytest.mark.parametrize("stop", ["step 0", "middle", "last", "next epoch"])
RANKS = pytest.mark.parametrize("before", [1, 2, 3, 4])


@STOPS
@RANKS
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_run_resumed_twice_reads_what_an_unbroken_run_reads(
    folder: Path, stop: str, before: int, workers: int
) -> None:
    for options in [{"seed": 7}, BLOCKS] if workers == 0 else [BLOCKS]:
        check(by_data_loader, {"path": folder, **options}, stop, before, workers)


@STOPS
@RANKS
@pytest.mark.parametrize("workers", [1, 4])
def test_also_by_a_loader_of_runs(folder: Path, stop: str, before: int, workers: int) -> None:
    check(by_loader, {"path": folder, **BLOCKS}, stop, before, workers)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_also_from_afar(cached: dict[str, Any], folder: Path, workers: int) -> None:
    options = {**cached, **BLOCKS, "rank": 1, "world_size": 2, "batch_rows": 4}
    if workers == 4:  # which begin steps all over this small folder
        options["cache_bytes"] = None
    dataset = PackedDataset(**options)
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers)
    local = PackedDataset(**{**options, "path": folder, "cache": None, "cache_bytes": None})
    for first in (0, 2, len(dataset) - 1):
        dataset.load_state_dict(local.state_at(first))
        local.load_state_dict(local.state_at(first))
        assert [batch["row_ids"].tolist() for batch in loader] == [batch["row_ids"].tolist() for batch in local]


def test_a_cache_that_is_too_small_for_so_many_workers_is_refused(
    cached: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = PackedDataset(**cached, **BLOCKS, batch_rows=4)
    monkeypatch.setattr("seqmill.packing.steps.get_worker_info", lambda: SimpleNamespace(num_workers=4, id=0))
    with pytest.raises(UserError, match=r"9 steps that workers have begun.*, or fewer workers"):
        next(iter(dataset))


class WithState(IterableDataset[tuple[list[int], dict[str, Any]]]):
    """Row ids, and the state of the worker's own dataset behind them: what stateful loaders keep of each worker."""

    def __init__(self, dataset: PackedDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[tuple[list[int], dict[str, Any]]]:
        return ((batch["row_ids"].tolist(), self.dataset.state_dict()) for batch in self.dataset)


@pytest.mark.parametrize("given", [2, 4])
def test_the_state_that_a_worker_sees_is_where_all_workers_go_on(folder: Path, given: int) -> None:
    """After a whole round of two workers, the state of either is the next step of the loader."""
    loader = DataLoader(WithState(PackedDataset(folder, batch_rows=4, seed=1)), batch_size=None, num_workers=2)
    seen = list(islice(loader, given))
    straight = [batch["row_ids"].tolist() for batch in PackedDataset(folder, batch_rows=4, seed=1)]
    assert [rows for rows, _ in seen] == straight[:given]
    for _, state in seen[-2:]:
        assert state["step"] == given
        again = PackedDataset(folder, batch_rows=4, seed=1)
        again.load_state_dict(state)
        resumed = DataLoader(WithState(again), batch_size=None, num_workers=2)
        assert [rows for rows, _ in resumed] == straight[given:]
