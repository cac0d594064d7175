"""Batches from worker processes, handed over as a number.

torch moves a tensor between processes through shared memory and a socket of its own, which takes longer than reading
the rows it was made of: those lie in memory that all processes of a machine have mapped. So a batch that a worker made
and nobody touched is pickled as (dataset, step), and made again where it arrives: in the process that the worker was
started from, which has the dataset. The worker has had the waiting: for the disk, for a shard from afar, for hashes.
"""

import threading
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch._utils import ExceptionWrapper

from seqmill.errors import UserError


class Maker(Protocol):
    """Makes batches by their step."""

    def make(self, step: int) -> dict[str, Any]:
        """The batch of a step; always the same one."""

    def definition(self) -> tuple[Any, ...]:
        """What its batches depend on, beside the step; plain values."""


_MAKERS: WeakValueDictionary[str, Any] = WeakValueDictionary()


def register(name: str, maker: Maker) -> None:
    """Let batches of this name be made by `maker` in this process, as long as it lives."""
    _MAKERS[name] = maker


def is_registered(name: str) -> bool:
    """Whether a maker of this name lives in this process."""
    return name in _MAKERS


class StepBatch(dict[str, Any]):
    """A batch of a worker: a dictionary that travels as a number until something in it is changed."""

    def __init__(self, entries: dict[str, Any], name: str, definition: tuple[Any, ...], step: int) -> None:
        super().__init__(entries)
        self._made_by = (name, definition, step)
        self._made = {key: (value, _version(value)) for key, value in entries.items()}

    def is_untouched(self) -> bool:
        """Whether it has its first entries, and no operation of torch has changed one."""
        return self.keys() == self._made.keys() and all(
            self[key] is value and version is not None and _version(value) == version
            for key, (value, version) in self._made.items()
        )

    def __copy__(self) -> "StepBatch":
        """Another dictionary with the same entries, as torch's `default_convert` makes."""
        copied = StepBatch(dict(self), *self._made_by)
        copied._made = self._made
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """As a number, or as a dictionary."""
        return (_make_again, self._made_by) if self.is_untouched() else (_arrived, (*self._made_by, dict(self)))


def _version(value: Any) -> int | None:
    """Counts the changes of a tensor; 0 for what cannot change; None where changes are not counted."""
    if not isinstance(value, torch.Tensor):
        return 0
    return None if value.is_inference() else value._version


def _make_again(name: str, definition: tuple[Any, ...], step: int) -> dict[str, Any] | ExceptionWrapper:
    """What a number stands for."""
    try:
        if name not in _MAKERS:
            raise UserError(
                f"step {step} came from a worker whose dataset is not in this process; pass on dict(batch), or keep "
                "the dataset as long as its batches"
            )
        _check_unchanged(name, definition, step)
        made: dict[str, Any] = _MAKERS[name].make(step)
    except Exception as error:
        if threading.current_thread() is threading.main_thread():
            raise
        return _Failure(error)
    return made


def _arrived(
    name: str, definition: tuple[Any, ...], step: int, entries: dict[str, Any]
) -> dict[str, Any] | ExceptionWrapper:
    """A batch that was sent as it is; without its dataset, it is taken on trust."""
    try:
        _check_unchanged(name, definition, step)
    except UserError as error:
        if threading.current_thread() is threading.main_thread():
            raise
        return _Failure(error)
    return entries


def _check_unchanged(name: str, definition: tuple[Any, ...], step: int) -> None:
    maker = _MAKERS.get(name)
    if maker is not None and maker.definition() != definition:
        raise UserError(
            f"step {step} came from a worker whose copy of the dataset is not the one of this process, which was "
            "changed or has loaded a state since; use seqmill.packing.Loader, or make a new DataLoader"
        )


class _Failure(ExceptionWrapper):
    """An error of the thread in which torch pins memory: raised there, it would end the thread and tell nobody.
    A DataLoader passes this on, and raises the error where the batch was asked for."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def reraise(self) -> None:
        """Called by torch."""
        raise self.error
