"""From wishes to whole documents, in exact arithmetic.

A source of n documents gets `base` copies of every document, and one more of the `extra` documents whose hash is
smallest. Example: 10 documents at 2.3 epochs -> base 2, extra 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Copies:
    """How many copies the documents of a source get."""

    base: int  # of every document
    extra: int  # documents that get one more; fewer than there are, or none

    @property
    def most(self) -> int:
        """The copies of a document that gets the most."""
        return self.base + (self.extra > 0)


def exact(number: float) -> Fraction:
    """The decimal number that was written, not its nearest binary one: 0.7 is 7/10."""
    return Fraction(str(number))


def largest_remainder(total: int, weights: Sequence[Fraction]) -> list[int]:
    """Whole numbers that sum to `total`, each within 1 of its exact share (Hamilton's method; ties to the first).

    Example: 10 by weights 1, 1, 1 -> 4, 3, 3. Weights that are all 0 get 0 each.
    """
    whole = sum(weights)
    if not whole:
        return [0] * len(weights)
    shares = [total * weight / whole for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda k: (counts[k] - shares[k], k))
    for k in by_remainder[: total - sum(counts)]:
        counts[k] += 1
    return counts


def copies_of_epochs(epochs: Fraction, documents: int) -> Copies:
    """floor(epochs) copies of each document, and round(fraction * documents) extra ones (a half goes to the even)."""
    base = int(epochs)
    extra = round((epochs - base) * documents)
    return Copies(base + 1, 0) if documents and extra == documents else Copies(base, extra)


def copies_of_documents(wanted: int, documents: int) -> Copies:
    """Exactly `wanted` document copies."""
    return Copies(*divmod(wanted, documents))


def copies_of_size(wanted: int, sizes: npt.NDArray[np.int64], at_most: bool) -> Copies:
    """As close to `wanted` bytes or tokens as whole documents taken in order come; of two equally close, the fewer.

    Args:
        sizes: int64[documents], in the order in which documents get an extra copy; they do not sum to 0.
        at_most: never exceed `wanted`.
    """
    total = int(sizes.sum())
    base, rest = divmod(wanted, total)
    reached = np.concatenate([[0], np.cumsum(sizes)])
    extra = int(np.searchsorted(reached, rest, "right")) - 1  # the most documents that do not exceed
    extra = int(np.searchsorted(reached, reached[extra], "left"))  # documents of size 0 change nothing: leave them out
    if not at_most and reached[extra] < rest:
        further = int(np.searchsorted(reached, rest, "right"))
        if reached[further] - rest < rest - reached[extra]:
            extra = further
    return Copies(base + 1, 0) if extra == len(sizes) else Copies(base, extra)
