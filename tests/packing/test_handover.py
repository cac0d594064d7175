"""Batches of workers travel as numbers, and arrive as what the worker had."""

import copy
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils.collate import default_convert

from seqmill.errors import UserError
from seqmill.packing import PackedDataset, handover
from seqmill.packing.handover import StepBatch

Batch = dict[str, Any]


@pytest.fixture
def folder(pack: Callable) -> Path:
    return pack([5, 9, 3, 30, 8, 2, 7, 7], 8, shards=3).folder


@pytest.fixture
def dataset(folder: Path) -> PackedDataset:
    return PackedDataset(folder, batch_rows=3)


@pytest.fixture
def batch(dataset: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> StepBatch:
    """As a worker's iterator gives it."""
    monkeypatch.setattr("seqmill.packing.steps.get_worker_info", lambda: SimpleNamespace(num_workers=1, id=0))
    monkeypatch.setattr(dataset, "_named_in", 1)  # in the process that started the worker
    found = next(iter(dataset))
    assert isinstance(found, StepBatch)
    return found


def plain(batch: Batch) -> Batch:
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def test_an_untouched_batch_travels_as_a_number(batch: StepBatch) -> None:
    for one in (batch, default_convert(batch), copy.copy(batch)):
        content = pickle.dumps(one)
        assert len(content) < 250
        arrived = pickle.loads(content)
        assert type(arrived) is dict
        assert plain(arrived) == plain(batch)


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch["input_ids"].add_(1),
        lambda batch: batch["targets"][:2].zero_(),
        lambda batch: batch.update(more=5),
        lambda batch: batch.pop("targets"),
        lambda batch: batch.__setitem__("step", 77),
        lambda batch: batch.__setitem__("input_ids", batch["input_ids"] + 1),
    ],
)
@pytest.mark.parametrize("converted", [False, True])
def test_a_changed_batch_travels_as_it_is(batch: StepBatch, change: Callable, converted: bool) -> None:
    change(batch)
    expected = plain(batch)
    sent = default_convert(batch) if converted else batch
    assert plain(pickle.loads(pickle.dumps(sent))) == expected


def test_tensors_that_count_no_changes_travel_as_they_are(batch: StepBatch) -> None:
    with torch.inference_mode():
        made = StepBatch({"a": torch.ones(3)}, *batch._made_by)
    assert plain(pickle.loads(pickle.dumps(made))) == {"a": [1, 1, 1]}


def test_without_its_dataset_a_number_means_nothing(batch: StepBatch, dataset: PackedDataset, folder: Path) -> None:
    content, expected = pickle.dumps(batch), plain(batch)
    dataset.seed = 5
    with pytest.raises(UserError, match="step 0 came from a worker whose copy of the dataset is not the one of this"):
        pickle.loads(content)
    dataset.seed = 0
    assert plain(pickle.loads(content)) == expected
    handover._MAKERS.pop(dataset._name)
    with pytest.raises(UserError, match=r"whose dataset is not in this process; pass on dict\(batch\)"):
        pickle.loads(content)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda dataset: pickle.loads(pickle.dumps(dataset))])
@pytest.mark.parametrize("named_in", ["this process", "the process that started this one"])
def test_a_copy_may_become_another_dataset(
    dataset: PackedDataset, batch: StepBatch, monkeypatch: pytest.MonkeyPatch, way: Callable, named_in: str
) -> None:
    if named_in == "this process":
        monkeypatch.setattr(dataset, "_named_in", os.getpid())
    content, expected = pickle.dumps(batch), plain(batch)
    other = way(dataset)
    other.seed = 5
    assert plain(pickle.loads(content)) == expected
    del other
    assert plain(pickle.loads(content)) == expected


class Copied(IterableDataset[Batch]):
    """A dataset that only its worker has."""

    def __init__(self, dataset: PackedDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Batch]:
        return iter(copy.deepcopy(self.dataset))


def test_what_a_copy_in_a_worker_gives_arrives(dataset: PackedDataset) -> None:
    loader: Any = DataLoader(Copied(dataset), batch_size=None, num_workers=1)
    assert [plain(batch) for batch in loader] == [plain(batch) for batch in dataset]


def with_more(batch: Batch) -> Batch:
    batch["more"] = 1
    return batch


@pytest.mark.parametrize("collate", [None, with_more])
def test_workers_that_stay_do_not_overlook_a_loaded_state(dataset: PackedDataset, collate: Callable | None) -> None:
    loader: Any = DataLoader(dataset, None, num_workers=1, persistent_workers=True, collate_fn=collate)
    assert len(list(loader)) == len(list(loader)) == len(dataset)
    dataset.load_state_dict(dataset.state_at(2))
    with pytest.raises(UserError, match=r"or has loaded a state since; use seqmill.packing.Loader, or make a new"):
        next(iter(loader))
    fresh: Any = DataLoader(dataset, None, num_workers=1, collate_fn=collate)
    assert next(iter(fresh))["step"] == 2


@pytest.mark.parametrize("changed", [False, True])
def test_errors_of_the_thread_that_pins_memory_arrive_with_their_cause(
    batch: StepBatch, dataset: PackedDataset, changed: bool
) -> None:
    """What torch's DataLoader does with a message, but for the pinning."""
    if changed:
        batch["more"] = 1
    content, arrived = pickle.dumps(batch), []
    dataset.seed = 5
    thread = threading.Thread(target=lambda: arrived.append(pickle.loads(content)))
    thread.start()
    thread.join()
    assert isinstance(arrived[0], ExceptionWrapper)  # torch passes these on
    with pytest.raises(UserError, match="step 0 came from a worker whose copy"):
        arrived[0].reraise()


class Doubled(IterableDataset[Batch]):
    """A dataset on top of another, which changes its batches."""

    def __init__(self, dataset: PackedDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.dataset:
            batch["input_ids"] *= 2
            yield batch


def test_workers_may_change_and_collate_batches(dataset: PackedDataset) -> None:
    expected = [batch["input_ids"].tolist() for batch in dataset]
    doubled: Any = DataLoader(Doubled(dataset), batch_size=None, num_workers=1)
    assert [batch["input_ids"].tolist() for batch in doubled] == [[2 * token for token in ids] for ids in expected]
    collated: Any = DataLoader(dataset, batch_size=None, num_workers=1, collate_fn=lambda batch: batch["input_ids"] + 1)
    assert [ids.tolist() for ids in collated] == [[token + 1 for token in ids] for ids in expected]


def test_what_workers_check_is_not_checked_again(folder: Path) -> None:
    dataset = PackedDataset(folder, verify=True)
    expected = [plain(batch) for batch in dataset]
    dataset._rows.verify = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        dataset.batch_at(0)
    assert plain(dataset.make(0)) == expected[0]
