"""How many rows of each source a mixture reads, and where: whole numbers that follow the weights to the row.

The rows of a mixture come in blocks of one size. After any number of blocks, n rows in all, every source has given its
quota n * weight / sum of weights, rounded by largest remainder (Hamilton 1792): down for all, and one more for those
that lost most, until the rows add up. What a block holds is the difference of two such counts, which is what carrying
the rounding errors from block to block gives; so no source is a whole row off at any border.

    weights 2 : 1, blocks of 4 rows    after 4 rows  3 1    after 8 rows  5 3    after 12 rows  8 4
                                       block 0       3 1    block 1       2 2    block 2        3 1

Within a block, a keyed permutation mixes the sources. All of it is a function of the weights, the block and the seed,
so the place of any row is found without those before it.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

from seqmill.errors import UserError
from seqmill.packing.permutation import keyed_number, permute, round_keys

MOST_BLOCK_ROWS: Final = 1 << 20  # a block's order is held in memory, and made anew after a resume: half a second
_CHUNK: Final = 256  # rows: small blocks are made together up to so many, and of large ones so many counted again

Int64s = npt.NDArray[np.int64]


def exact_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as integers of the same proportions, without a common factor; 0.7 is seven tenths, as it is written.

    Raises:
        UserError: one of them is no positive number.
    """
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"the weight {weight} is no positive number; leave out sources that are not wanted")
    fractions = [Fraction(weight) if isinstance(weight, int) else Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * scale) for fraction in fractions]
    return tuple(number // math.gcd(*whole) for number in whole)


def apportion(weights: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Divide `rows` by largest remainder; of equal remainders, the first ones are rounded up."""
    total = sum(weights)
    shares = [divmod(weight * rows, total) for weight in weights]
    left = rows - sum(whole for whole, _ in shares)
    rounded_up = set(sorted(range(len(shares)), key=lambda number: -shares[number][1])[:left])
    return tuple(whole + (number in rounded_up) for number, (whole, _) in enumerate(shares))


@dataclass(frozen=True)
class Shares:
    """Which source every row of an endless mixture comes from."""

    weights: tuple[int, ...]  # of the sources, see exact_weights
    block_rows: int  # every source has a share of at least one row in it, so that no block would need less than none
    seed: int  # of the order within blocks

    def before(self, rows: Sequence[int]) -> list[list[int]]:
        """How many of the rows before each of `rows` come from each source: a list of counts per source.

        Args:
            rows: all of one block, or its end.
        """
        begin, order, before = _blocks(self, rows[0] // self._cached_rows)
        return _count(order, before, np.array(rows) - begin).tolist()

    def rows_until(self, source: int, count: int) -> int:
        """The least number of rows of the mixture that have `count` rows of a source, 1 <= count."""
        most_blocks = -(-(count + 1) * sum(self.weights) // (self.weights[source] * self.block_rows))
        borders = range(0, (most_blocks + 1) * self.block_rows, self.block_rows)
        block = bisect_left(borders, count, key=lambda rows: apportion(self.weights, rows)[source]) - 1
        begin, order, before = _blocks(self, borders[block] // self._cached_rows)
        places = np.flatnonzero(order == source)
        return begin + int(places[count - int(before[0, source]) - 1]) + 1

    @property
    def _cached_rows(self) -> int:
        """Rows of as many blocks as are worth making together."""
        return max(1, _CHUNK // self.block_rows) * self.block_rows


@lru_cache(maxsize=4)  # steps read one block after another
def _blocks(shares: Shares, number: int) -> tuple[int, npt.NDArray[np.int16], Int64s]:
    """The `number`-th group of blocks: its first row; the source of every row, int16[rows]; and how many rows of each
    source come before every _CHUNK-th row of them, int64[chunks, sources].
    """
    begin = number * shares._cached_rows
    rows = range(begin, begin + shares._cached_rows + 1, shares.block_rows)
    borders = np.array([apportion(shares.weights, row) for row in rows])
    return begin, *_mix(borders, begin // shares.block_rows, round_keys("mixture", shares.seed))


@njit(cache=True, nogil=True)
def _mix(borders: Int64s, first_block: int, keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int16], Int64s]:
    """The order and the counts of `_blocks`, from how many rows of each source come before every block."""
    blocks, sources = borders.shape[0] - 1, borders.shape[1]
    block_rows = (borders[1] - borders[0]).sum()
    order = np.empty(blocks * block_rows, np.int16)
    before = np.empty((order.size // _CHUNK + 1, sources), np.int64)
    counts = borders[0].copy()
    block_keys = np.empty_like(keys)
    for block in range(blocks):
        for number in range(keys.size):
            block_keys[number] = keyed_number(first_block + block, number, keys)
        sorted_sources = np.repeat(np.arange(sources), borders[block + 1] - borders[block])
        for place in range(block_rows):
            row = block * block_rows + place
            if row % _CHUNK == 0:
                before[row // _CHUNK] = counts
            order[row] = sorted_sources[permute(place, block_rows, block_keys)]
            counts[order[row]] += 1
    if order.size % _CHUNK == 0:
        before[-1] = counts
    return order, before


@njit(cache=True, nogil=True)
def _count(order: npt.NDArray[np.int16], before: Int64s, rows: Int64s) -> Int64s:
    """Rows of each source before each of `rows`, which count from the begin of `order`: int64[sources, rows.size]."""
    counts = np.empty((before.shape[1], rows.size), np.int64)
    for place in range(rows.size):
        chunk = rows[place] // _CHUNK
        counts[:, place] = before[chunk]
        for row in range(chunk * _CHUNK, rows[place]):
            counts[order[row], place] += 1
    return counts
