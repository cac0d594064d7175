"""Buckets: rows of power-of-two room, one bucket after the other in one packed folder.

    bucket 0 of 256   row 0 ...  pieces of 256 tokens, then rows of leftovers
    bucket 1 of 512   ...        pieces of 512 tokens
    ...

One folder and not one per bucket: writer, reader, validator, hashes and manifest stay what they are for rows of one
length, and a document's fragments are checked against each other wherever they lie. A bucket is a run of row numbers,
so nothing needs to be stored per row.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seqmill.errors import UserError

OVERLONG: Final = ("longest", "equal_tokens", "seeded_random")
LEFTOVERS: Final = ("carry_to_packer", "drop", "pad")

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Buckets:
    """How the rows of a plan are divided by length."""

    shortest: int  # tokens of a row in bucket 0, a power of two; bucket i has rows of shortest * 2^i
    overlong: str  # how documents beyond the longest row were cut: one of OVERLONG
    leftovers: str  # what became of ends shorter than the shortest row: one of LEFTOVERS
    rows: tuple[int, ...]  # of every bucket
    leftover_rows: int  # the last rows of bucket 0, which hold leftovers; all other rows are one piece, and full
    leftover_tokens: int  # in those rows

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Buckets":
        """From what `as_json` gave."""
        return cls(**{**entry, "rows": tuple(entry["rows"])})

    def as_json(self) -> dict[str, Any]:
        """All fields by name: the entry "buckets" of a plan and of a packed folder."""
        return {**asdict(self), "rows": list(self.rows)}

    @property
    def lengths(self) -> Int64s:
        """Tokens that a row of each bucket has room for, int64[buckets]."""
        return self.shortest << np.arange(len(self.rows))

    @property
    def bounds(self) -> Int64s:
        """Where the rows of each bucket begin, and where the last ones end, int64[buckets + 1]."""
        return np.concatenate([[0], np.cumsum(self.rows, dtype=np.int64)]).astype(np.int64)

    @property
    def places(self) -> int:
        """Tokens that all rows together have room for."""
        return int(self.lengths @ np.array(self.rows, np.int64))

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return self.places - self.leftover_rows * self.shortest + self.leftover_tokens

    def bucket_of(self, row: Int64s) -> Int64s:
        """The bucket of every row, int64[len(row)]; the last one for rows beyond the end."""
        found = np.searchsorted(self.bounds[1:], row, "right")
        return np.minimum(found, len(self.rows) - 1)

    def room_of(self, row: Int64s) -> Int64s:
        """Tokens that each of these rows has room for."""
        return self.lengths[self.bucket_of(row)]

    def is_leftover(self, row: Int64s) -> npt.NDArray[np.bool_]:
        """Whether each of these rows holds leftovers, and so may be less than full."""
        return (row < self.rows[0]) & (row >= self.rows[0] - self.leftover_rows)


def check_lengths(shortest: int, longest: int, most: int) -> tuple[int, int]:
    """The exponents of the shortest and the longest row.

    Raises:
        UserError: they are no powers of two in order, or exceed `most`.
    """
    for name, length in (("shortest", shortest), ("longest", longest)):
        if not 1 <= length <= most or length & (length - 1):
            raise UserError(
                f"a {name} bucket of {length} tokens: rows of buckets are powers of two from 1 to {most}; write "
                "SHORTEST:LONGEST such as 256:8192"
            )
    if shortest > longest:
        raise UserError(f"the shortest bucket of {shortest} tokens exceeds the longest of {longest}; swap them")
    return shortest.bit_length() - 1, longest.bit_length() - 1
