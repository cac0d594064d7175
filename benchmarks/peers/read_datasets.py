"""HF datasets: rows of int64 in Arrow, by random access through a shuffled index, and as a stream with a buffer."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
from batches import BATCH, ROW, SEED, Batches, Reader, main, rows_of, skip
from datasets import Dataset, IterableDataset, disable_progress_bars, load_from_disk
from torch.utils.data import DataLoader


def prepare(corpus: Path, data: Path) -> None:
    """One column of lists of fixed size."""
    disable_progress_bars()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows_of(corpus).reshape(-1)), ROW)
    Dataset(pa.table({"input_ids": lists})).save_to_disk(data)


def opened(data: Path) -> Dataset:
    """Of torch tensors, in stored order."""
    dataset: Dataset = load_from_disk(data)
    return dataset.with_format("torch")


def streamed(data: Path) -> IterableDataset:
    """The same as a stream with a buffer of 1,000 rows, which is its default."""
    return opened(data).to_iterable_dataset().shuffle(seed=SEED)


def random_access(data: Path, workers: int) -> Callable[[], Batches]:
    """An index of its own for every pass, or torch's sampler where there is a worker."""
    dataset, epochs = opened(data), count()
    if not workers:
        return lambda: shuffled(dataset, next(epochs)).iter(batch_size=BATCH)
    loader: Any = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    return lambda: loader


def stream(data: Path, workers: int) -> Callable[[], Batches]:
    """The stream of the next epoch."""
    dataset, epochs = streamed(data), count()
    loader: Any = DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=True) if workers else None

    def next_epoch() -> Batches:
        dataset.set_epoch(next(epochs))
        return dataset.iter(batch_size=BATCH) if loader is None else loader

    return next_epoch


def shuffled(dataset: Dataset, epoch: int) -> Dataset:
    """The order of an epoch, in memory."""
    return dataset.shuffle(seed=SEED + epoch, keep_in_memory=True)


def place(dataset: Dataset, step: int) -> tuple[int, int]:
    """Epoch and step within it."""
    return divmod(step, -(-len(dataset) // BATCH))


def save_place(data: Path, step: int) -> Any:
    """Random access has no state: epoch and rows read say as much."""
    epoch, within = place(opened(data), step)
    return {"epoch": epoch, "rows": within * BATCH}


def resume_place(data: Path, state: Any) -> Batches:
    """The rest of the index."""
    dataset = opened(data)
    rest = shuffled(dataset, state["epoch"]).select(range(state["rows"], len(dataset)), keep_in_memory=True)
    batches: Batches = rest.iter(batch_size=BATCH)
    return batches


def save_stream(data: Path, step: int) -> Any:
    """Only reading tells the state."""
    dataset = streamed(data)
    epoch, within = place(opened(data), step)
    dataset.set_epoch(epoch)
    skip(dataset.iter(batch_size=BATCH), within)
    return {"epoch": epoch, "state": dataset.state_dict()}


def resume_stream(data: Path, state: Any) -> Batches:
    """Behind the rows that went into the buffer: those that were still in it are lost."""
    dataset = streamed(data)
    dataset.set_epoch(state["epoch"])
    dataset.load_state_dict(state["state"])
    batches: Batches = dataset.iter(batch_size=BATCH)
    return batches


VARIANTS = {
    "random access": Reader(random_access, save_place, resume_place),
    "stream": Reader(stream, save_stream, resume_stream),
}

if __name__ == "__main__":
    main("datasets", prepare, VARIANTS)
