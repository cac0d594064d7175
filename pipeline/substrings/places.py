"""Text where it lies: parts mapped into memory, and bytes read by their address.

A place is a byte position in the part files laid end to end. Places order as documents and offsets do, need no table
to turn into an address, and let a kernel compare any two spans of a corpus without copying either.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pyarrow as pa
from llvmlite import ir
from numba.extending import intrinsic

from seqmill.errors import UserError


@dataclass(frozen=True)
class MappedPart:
    """A documents part in memory."""

    buffer: pa.Buffer  # the whole file; keeps the mapping alive, and no file open
    base: int  # place of the file's first byte

    @classmethod
    def open(cls, reference: Mapping[str, Any]) -> "MappedPart":
        """Map the part that a payload names by path and base.

        Raises:
            UserError: the file is missing.
        """
        try:
            with pa.memory_map(reference["path"]) as file:
                return cls(file.read_buffer(), reference["base"])
        except OSError as error:
            raise UserError(f"cannot read {reference['path']} ({error}); run its stage again") from error

    def bytes(self) -> np.ndarray:
        """uint8[file size]: the file."""
        return np.frombuffer(self.buffer, np.uint8)

    def batches(self) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Each batch, and int64[documents + 1]: where its texts lie in `bytes()`, one behind the other.

        Raises:
            UserError: the file is truncated or no documents part.
        """
        end = 0  # where an empty text lies does not matter, as long as positions ascend
        try:
            with pa.ipc.open_stream(pa.BufferReader(self.buffer)) as reader:
                for batch in reader:
                    text = batch.column("text")
                    offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + len(text) + 1]
                    if offsets[-1] > offsets[0]:
                        positions = offsets + (text.buffers()[2].address - self.buffer.address)
                    else:
                        positions = np.full(len(text) + 1, end)
                    end = int(positions[-1])
                    yield batch, positions
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"cannot read a part as documents ({error}); run its stage again") from error


def mapped_batches(path: str) -> list[pa.RecordBatch]:
    """The batches of one of the stage's own files, mapped into memory, with the file closed: they may be many."""
    with pa.memory_map(path) as file:
        return list(pa.ipc.open_stream(pa.BufferReader(file.read_buffer())))


def addresses(places: np.ndarray, parts: Sequence[MappedPart]) -> np.ndarray:
    """uint64[...]: where in memory the bytes at `places` lie; `parts` stand in the order of their bases."""
    bases = np.array([part.base for part in parts], np.int64)
    shifts = np.array([part.buffer.address - part.base for part in parts], np.int64)
    return (places + shifts[np.searchsorted(bases, places, side="right") - 1]).astype(np.uint64)


def _loader(bits: int, result: numba.types.Type) -> Any:
    """An intrinsic that loads an integer of any alignment from an address."""

    @intrinsic
    def load(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer()), align=1)

        return result(numba.types.uint64), generate

    return load


byte_at = _loader(8, numba.types.uint8)
_word_at = _loader(64, numba.types.uint64)


@numba.njit(nogil=True, cache=True)
def equal_bytes(one: np.uint64, other: np.uint64, count: int) -> bool:
    """Whether `count` bytes at two addresses are the same."""
    at = np.uint64(0)
    whole = np.uint64(count - count % 8)
    while at < whole:
        if _word_at(one + at) != _word_at(other + at):
            return False
        at += np.uint64(8)
    while at < np.uint64(count):
        if byte_at(one + at) != byte_at(other + at):
            return False
        at += np.uint64(1)
    return True
