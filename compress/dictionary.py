"""A dictionary of byte strings with an id each: what a window of up to 20 bits amounts to.

A window coder that forgets everything at a window's start gives the same bytes the same code wherever a window begins
with them. So its codes are numbered strings, and coding is looking up: no model is needed any more.
"""

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from seqmill.compress.byte_model import BYTE_VALUES
from seqmill.errors import UserError

LONGEST_STRING = 255  # bytes, for lengths are stored in one


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Strings in the order of their bytes; the id of a string is its rank. All 256 single bytes are among them."""

    offsets: np.ndarray  # int64[strings + 1]: where in `blob` each string begins and ends
    blob: np.ndarray  # uint8[bytes of all strings]

    @classmethod
    def from_strings(cls, strings: Iterable[bytes]) -> "Dictionary":
        """A dictionary of these strings, in any order.

        Raises:
            UserError: a string is empty, longer than 255 bytes or there twice, or a single byte is missing.
        """
        ordered = sorted(strings)
        lengths = np.fromiter((len(string) for string in ordered), np.int64, len(ordered))
        blob = np.frombuffer(b"".join(ordered), np.uint8)
        dictionary = cls(np.concatenate([[0], np.cumsum(lengths)]), blob)
        dictionary.check()
        return dictionary

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64[strings]: bytes of every string."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the strings and their lengths."""
        return hashlib.sha256(self.lengths.astype("<u8").tobytes() + self.blob.tobytes()).hexdigest()

    def string(self, id: int) -> bytes:  # noqa: A002 -- the field's word
        """The bytes that an id stands for."""
        return self.blob[self.offsets[id] : self.offsets[id + 1]].tobytes()

    def strings(self) -> list[bytes]:
        """All strings, in the order of their ids."""
        blob, ends = self.blob.tobytes(), self.offsets.tolist()
        return [blob[first:last] for first, last in itertools.pairwise(ends)]

    def check(self) -> None:
        """Raise UserError unless strings are 1 to 255 bytes, ascending without repeats, and hold every single byte."""
        if len(self) and not 1 <= self.lengths.min() <= self.lengths.max() <= LONGEST_STRING:
            raise UserError(
                f"a dictionary's strings have {self.lengths.min()} to {self.lengths.max()} bytes: 1 to "
                f"{LONGEST_STRING} are possible"
            )
        strings = self.strings()
        for rank, (former, string) in enumerate(itertools.pairwise(strings)):
            if former >= string:
                raise UserError(f"strings {rank} and {rank + 1} of a dictionary do not ascend: {former!r}, {string!r}")
        missing = set(range(BYTE_VALUES)) - {string[0] for string in strings if len(string) == 1}
        if missing:
            raise UserError(
                f"a dictionary lacks {len(missing)} of the 256 single bytes, the first {min(missing)}: text with them "
                "could not be encoded"
            )
