"""What predicts the next byte of a window: integer frequencies, so that encoder and decoder agree bit for bit.

A window coder forgets everything at a window's start. So a model is asked about one thing only: the bytes since there.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from seqmill.errors import UserError

BYTE_VALUES = 256
LEAST_PRECISION, MOST_PRECISION = 8, 16  # bits: below 8 not every byte could have a frequency of 1


class ByteModel(Protocol):
    """Frequencies of the next byte, by the bytes since the window's start."""

    @property
    def precision(self) -> int:
        """P: the frequencies after every context add up to 2**P exactly; from 8 to 16."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the frequencies depend on."""

    def frequencies(self, contexts: Sequence[bytes]) -> np.ndarray:
        """uint32[contexts, 256]: the frequency of every next byte after each context, all 1 or more.

        Args:
            contexts: the bytes since the start of a window, b"" at the start itself.
        """


def quantise(probabilities: np.ndarray, precision: int) -> np.ndarray:
    """Probabilities as integers of 1 or more that add up to 2**precision (row by row).

    1 + floor(p * (2**precision - 256)); what is left goes to the most probable byte, the lowest of equal ones.

        two symbols of 256 with p = 1/2, precision 9:  256 are shared, 128 each: 129, 129, and 1 for all others

    Args:
        probabilities: float64[rows, 256], non-negative; each row is scaled to add up to 1.

    Raises:
        UserError: a row has a negative or non-finite number, or nothing but zeros.
    """
    rows = np.asarray(probabilities, np.float64)
    totals = rows.sum(axis=1, keepdims=True)
    bad = ~(np.isfinite(totals[:, 0]) & (totals[:, 0] > 0) & (rows.min(axis=1, initial=0) >= 0))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"row {row} of the model's probabilities adds up to {totals[row, 0]} or has a negative one: a byte without "
            "a probability could not be coded; give every context non-negative numbers that are not all zero"
        )
    total = 1 << precision
    shares = 1 + np.floor(rows / totals * (total - BYTE_VALUES)).astype(np.int64)
    shares[np.arange(len(rows)), rows.argmax(axis=1)] += total - shares.sum(axis=1)
    return shares.astype(np.uint32)


def check_frequencies(frequencies: np.ndarray, precision: int) -> None:
    """Raise UserError unless every byte after every context has a frequency and they add up to 2**precision."""
    if not LEAST_PRECISION <= precision <= MOST_PRECISION:
        raise UserError(f"precision = {precision} bits: choose between {LEAST_PRECISION} and {MOST_PRECISION}")
    if frequencies.ndim != 2 or frequencies.shape[1] != BYTE_VALUES:
        raise UserError(f"a model gave frequencies of shape {frequencies.shape}: (contexts, 256) is needed")
    without = np.argwhere(frequencies < 1)
    if len(without):
        row, byte = without[0]
        raise UserError(
            f"a model gives byte {byte} a frequency of {frequencies[row, byte]} after context {row}: a byte without a "
            "frequency could not be coded; quantise() gives each at least 1"
        )
    totals = frequencies.sum(axis=1, dtype=np.int64)
    if (totals != 1 << precision).any():
        row = int(np.flatnonzero(totals != 1 << precision)[0])
        raise UserError(f"a model's frequencies after context {row} add up to {totals[row]}, not 2**{precision}")
