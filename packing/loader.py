"""Steps of a dataset, read ahead by worker processes and made where they are used.

torch's DataLoader moves every batch through a queue, which takes longer than making the batch from rows that lie in
memory. So workers do what waits: they fetch shards, read rows from disk, and check hashes, for a run of steps at a
time. What travels is the run's two bounds. Memory and the copies of shards are shared by all processes of a machine, so
the process that trains finds the rows there and makes its batches (seqmill.packing.rows: a few cycles per token).

    workers   read 0, 2 to 3, 8 to 15 ...          runs are short at first, so that the first batch comes soon
              read 1, 4 to 5, 16 to 23 ...
    here      make 0, 1, 2, 3, ... 8, 9, ...
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from torch.utils.data import DataLoader, Dataset, Sampler

from seqmill.errors import UserError
from seqmill.packing.steps import STEPS_AHEAD, Batch, StepDataset

RUN_STEPS: Final = 16  # a message between processes takes as long as making about five batches of 16,384 tokens


class Loader:
    """The batches of a `PackedDataset` or `MixedDataset`, with worker processes that read ahead.

        loader = Loader(dataset, workers=2)
        for batch in loader:
            ...
            save(loader.state_dict())

    Gives what iterating over the dataset gives, in the same order, for any number of workers. Every `iter()` begins at
    the loaded state, or at the beginning where none was loaded, and ends the iterator before it. Workers are started by
    the first one and stay for later ones.

    Attributes:
        dataset: that makes the batches.
        run_steps: steps that a worker reads at a time; fewer than asked for where the dataset's cache has no room.
    """

    def __init__(
        self, dataset: StepDataset, workers: int, *, run_steps: int = RUN_STEPS, start_method: str | None = None
    ) -> None:
        """Start no process yet.

        Args:
            workers: processes that read ahead; with 0, rows are read when they are needed.
            run_steps: at most; runs of one step make sense where steps are huge.
            start_method: of the workers: "fork", "spawn" or "forkserver"; None for the system's default.

        Raises:
            UserError: a number is out of its range, or the cache of the dataset is too small for so many workers.
        """
        if workers < 0 or run_steps < 1:
            raise UserError(f"a loader of {workers} workers and runs of {run_steps} steps: give at least 0 and 1")
        self.dataset = dataset
        self.run_steps = _fitting(dataset, workers, run_steps) if workers else run_steps
        self._readers: Any = None  # DataLoader[Run]
        self._iterators = 0  # begun so far
        if workers:
            self._readers = DataLoader(
                _ReadAhead(dataset),
                batch_size=None,
                sampler=_Runs(dataset, workers, self.run_steps),
                num_workers=workers,
                collate_fn=_as_it_is,  # type: ignore[arg-type]
                prefetch_factor=STEPS_AHEAD,
                persistent_workers=True,
                multiprocessing_context=start_method,
            )

    def __len__(self) -> int:
        """Steps of the dataset's epoch or run."""
        return len(self.dataset)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch that the latest iterator gave, as the dataset's own state."""
        return self.dataset.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator begin at a state; as the dataset's own method."""
        self.dataset.load_state_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        self._iterators += 1
        if self._readers is None:
            yield from self.dataset
            return
        dataset, number = self.dataset, self._iterators
        dataset.next_step = dataset.first_step
        for run in self._readers:
            for step in range(run.begin, run.end):
                batch = dataset.make(step)
                dataset.next_step = step + 1
                yield batch
                if number != self._iterators:
                    raise UserError("another iterator of this loader began, which ended this one; use two loaders")
            if run.error is not None:
                raise UserError(run.error)


class Run(NamedTuple):
    """Steps that a worker has read."""

    begin: int
    end: int
    error: str | None  # that step `end` has: a UserError's message


class _Runs(Sampler[range]):
    """The steps of each run, from the position of the dataset on; DataLoader gives them to its workers in turn."""

    def __init__(self, dataset: StepDataset, workers: int, most: int) -> None:
        self.dataset, self.workers, self.most = dataset, workers, most

    def __iter__(self) -> Iterator[range]:
        begin, end, size, number = self.dataset.first_step, self.dataset.end, 1, 0
        while end is None or begin < end:
            yield range(begin, begin + size if end is None else min(begin + size, end))
            begin, number = begin + size, number + 1
            if number % self.workers == 0:  # all have had a run of this size
                size = min(2 * size, self.most)


class _ReadAhead(Dataset[Run]):
    """What workers do; in a worker, `dataset` is its copy."""

    def __init__(self, dataset: StepDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, steps: range) -> Run:
        for step in steps:
            try:
                self.dataset.read_ahead(step)
            except UserError as error:  # torch would wrap it in the text of its traceback
                return Run(steps.start, step, str(error))
        return Run(steps.start, steps.stop, None)


def _as_it_is(run: Run) -> Run:
    return run


def _fitting(dataset: StepDataset, workers: int, run_steps: int) -> int:
    """The longest runs, up to `run_steps`, whose shards have room in the cache with those of all other runs.

    Raises:
        UserError: runs of one step have not.
    """
    while True:
        try:
            dataset.check_cache((STEPS_AHEAD * workers + 1) * run_steps)
        except UserError:
            if run_steps == 1:
                raise
            run_steps //= 2
        else:
            return run_steps
