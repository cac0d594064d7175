"""Batches of workers travel as numbers, and arrive as what the worker had."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils.collate import default_convert

from seqmill.errors import UserError
from seqmill.packing import PackedDataset
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
    monkeypatch.setattr("seqmill.packing.dataset.get_worker_info", lambda: SimpleNamespace(num_workers=1, id=0))
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
    content = pickle.dumps(batch)
    dataset.seed = 5
    with pytest.raises(UserError, match=r"step 0 came from a worker whose dataset .* dict\(batch\)"):
        pickle.loads(content)
    dataset.seed = 0
    assert plain(pickle.loads(content)) == plain(batch)
    other = pickle.loads(pickle.dumps(dataset))
    assert other._name != dataset._name  # a copy may become another dataset


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
