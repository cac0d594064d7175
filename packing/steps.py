"""Datasets that are read by the number of a step, which means the same for any number of ranks, workers and restarts.

Worker w of n reads steps w, w + n, ... of its rank, so that a DataLoader gives them in their order.
"""

import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Final

from torch.utils.data import IterableDataset, get_worker_info

from seqmill.packing.handover import StepBatch, is_registered, register

STEPS_AHEAD: Final = 2  # items that a DataLoader asks of every worker before they are needed: its prefetch_factor

Batch = dict[str, Any]


class StepDataset(IterableDataset[Batch]):
    """The steps of a run for one rank, from a position on that is one integer.

    Every `iter()` begins at the loaded state, or at the beginning where none was loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first_step = 0  # where the next iterator begins
        self.next_step = 0  # where the latest iterator is
        self._draw_name()

    @property
    @abstractmethod
    def end(self) -> int | None:
        """Steps of the whole run; None for no end."""

    @abstractmethod
    def batch_at(self, step: int) -> Batch:
        """This rank's item of a global step; the cost does not depend on the step."""

    @abstractmethod
    def read_ahead(self, step: int) -> None:
        """All of `batch_at` that waits: its rows are fetched, read from disk, and checked where that is wanted."""

    @abstractmethod
    def make(self, step: int) -> Batch:
        """As `batch_at`, for a step that a worker has read: its rows are checked, and the next shards on their way."""

    @abstractmethod
    def check_cache(self, steps: int) -> None:
        """Whether the shards of so many steps have room in the cache at one time.

        Raises:
            UserError: they have not.
        """

    @abstractmethod
    def definition(self) -> tuple[Any, ...]:
        """What a batch depends on, beside the contents of the folders and its step; and where iterators begin."""

    @abstractmethod
    def state_at(self, step: int) -> dict[str, Any]:
        """The state in which global step `step` is next: the same for all ranks, whatever their number."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator begin at a state.

        Raises:
            UserError: the state means something else here.
        """

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch of the latest iterator in this process, as JSON of under 300 bytes."""
        return self.state_at(self.next_step)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        workers, offset = (worker.num_workers, worker.id) if worker else (1, 0)
        if worker:
            self.check_cache(STEPS_AHEAD * workers + 1)
        # A dataset that was made or copied in the worker is unknown to the process that gets its batches.
        is_known = worker is not None and self._named_in != os.getpid()
        self.next_step = self.first_step
        step = self.first_step + offset
        while self.end is None or step < self.end:
            batch = self.batch_at(step)
            self.next_step = step + workers - offset  # where all workers go on that load this state
            yield StepBatch(batch, self._name, self.definition(), step) if is_known else batch
            step += workers

    def _draw_name(self) -> None:
        """A name of its own, by which batches of worker processes find it."""
        self._name, self._named_in = os.urandom(8).hex(), os.getpid()
        register(self._name, self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if is_registered(self._name):  # a copy in one process may go its own way
            self._draw_name()
        else:
            register(self._name, self)
