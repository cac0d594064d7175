"""Documents into fragments of at most one row: what the overflow policies keep of a document, and what they count.

capacity 8      "split"           "truncate"   "drop"
20 tokens       0-8 8-16 16-20    0-8          -
5 tokens        0-5               0-5          0-5
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

OVERFLOWS: Final = ("split", "truncate", "drop", "error")
SPLIT, TRUNCATE, DROP, ERROR = range(len(OVERFLOWS))

Int64s = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """The fragments of all rows, as `PackPlan` describes them."""

    row_offsets: Int64s
    item: Int64s
    start: Int64s
    stop: Int64s


@dataclass(frozen=True, eq=False)
class Documents:
    """What a packer packs."""

    lengths: Int64s  # int64[documents], in tokens
    capacity: int  # tokens per row
    policy: int  # number of the overflow policy
    seed: int
    window: int  # documents per window, for the packer that has windows
    threads: int  # at most so many at a time


@njit(cache=True, nogil=True)
def kept_tokens(length: int, capacity: int, policy: int) -> int:
    """Of a document of `length` tokens: its first tokens up to here are packed."""
    if length <= capacity or policy == SPLIT:
        return length
    return capacity if policy == TRUNCATE else 0


@njit(cache=True, nogil=True)
def count_fragments(lengths: Int64s, capacity: int, policy: int) -> int:
    """The fragments of all documents together."""
    fragments = 0
    for length in lengths:
        if length <= capacity:
            fragments += length > 0
        else:
            fragments += (kept_tokens(length, capacity, policy) + capacity - 1) // capacity
    return fragments
