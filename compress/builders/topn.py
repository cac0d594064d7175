"""The dictionary of the strings that are most probable where a window begins.

The mean length of a window is the sum, over all strings, of how probable it is that the text begins with one. So for
given probabilities of text at a window's start, no dictionary that holds its strings' beginnings has longer windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqmill.compress.byte_model import BYTE_VALUES, ByteModel, check_frequencies
from seqmill.compress.code_range import strings_of_table
from seqmill.compress.dictionary import LONGEST_STRING, Dictionary

TOGETHER = 2048  # contexts a call of the model
BIT = 1 << 20  # costs are integers, in units of 2**-20 bit
UNLIMITED = 1 << 62


def topn(model: ByteModel, window: int = 16, specials: int | None = None) -> Dictionary:
    """The single bytes and the most probable longer strings; of equally probable ones the first in order of bytes.

    Strings are extended by rising cost, -log2 of their probability, a bit at a time. One that costs more than the last
    of the best that are known cannot be among the best, nor can what begins with it.

    Args:
        model: is asked about hardly more contexts than the dictionary has strings.
        window: bits, 8 to 20.
        specials: numbers of a window kept for special ids; default: as `code_range`.
    """
    wanted = strings_of_table(window, specials) - BYTE_VALUES
    bits = bits_of_frequencies(model.precision)
    singles = bits[_frequencies(model, [b""])[0]]
    known = _Known([b""], np.zeros(BYTE_VALUES, np.int64), np.arange(BYTE_VALUES), singles, np.ones(BYTE_VALUES, bool))
    reach = int(singles.min())
    while True:
        limit = known.limit(wanted)
        chosen = np.flatnonzero(known.is_open & (known.cost <= min(reach, limit)))
        if not len(chosen):
            if reach >= limit:
                return Dictionary.from_strings(known.cheapest(wanted))
            reach += BIT
            continue
        for first in range(0, len(chosen), TOGETHER):
            part = chosen[first : first + TOGETHER]
            contexts = known.strings(part)
            known = known.extended(part, contexts, bits[_frequencies(model, contexts)], known.limit(wanted))
        known = known.without_dear(known.limit(wanted))


def bits_of_frequencies(precision: int) -> np.ndarray:
    """int64[2**precision + 1]: -log2(frequency / 2**precision) in units of 2**-20 bit; of 0 as of 1.

    By repeated squaring, so that no machine's logarithm decides on an order: a number from 1 up to 2, squared, is 2 or
    more exactly when the next bit of its logarithm is 1.
    """
    frequency = np.maximum(np.arange((1 << precision) + 1), 1).astype(np.uint64)
    whole = np.frexp(frequency.astype(np.float64))[1] - 1  # exact: the frequency's bits less one
    mantissa = frequency << (31 - whole).astype(np.uint64)
    log = whole.astype(np.int64)
    for _ in range(20):
        mantissa = mantissa * mantissa >> np.uint64(31)
        doubled = mantissa >> np.uint64(32)
        log = 2 * log + doubled.astype(np.int64)
        mantissa >>= doubled
    return precision * BIT - log


@dataclass(frozen=True, eq=False)
class _Known:
    """Strings that may be among the best: what each goes on from, its last byte, and its cost."""

    asked: list[bytes]  # strings that the model was asked about, in that order
    parent: np.ndarray  # int64[strings]: which of those each goes on from
    byte: np.ndarray  # int64[strings]
    cost: np.ndarray  # int64[strings]
    is_open: np.ndarray  # bool[strings]: the model can still be asked about it

    def strings(self, which: np.ndarray) -> list[bytes]:
        pairs = zip(self.parent[which].tolist(), self.byte[which].tolist(), strict=True)
        return [self.asked[parent] + bytes([byte]) for parent, byte in pairs]

    def limit(self, wanted: int) -> int:
        """The cost of the last of the best strings of two bytes or more; more than that is too dear."""
        costs = self.cost[self.parent > 0]
        if len(costs) < wanted:
            return UNLIMITED
        return int(np.partition(costs, wanted - 1)[wanted - 1]) if wanted else -1

    def extended(self, part: np.ndarray, contexts: list[bytes], added: np.ndarray, limit: int) -> "_Known":
        """With every string of one byte more than `contexts` that is not too dear."""
        costs = self.cost[part, None] + added
        context, byte = np.nonzero(costs <= limit)
        lengths = np.fromiter(map(len, contexts), np.int64, len(contexts)) + 1
        is_open = self.is_open.copy()
        is_open[part] = False
        return _Known(
            self.asked + contexts,
            np.concatenate([self.parent, len(self.asked) + context]),
            np.concatenate([self.byte, byte]),
            np.concatenate([self.cost, costs[context, byte]]),
            np.concatenate([is_open, lengths[context] < LONGEST_STRING]),
        )

    def without_dear(self, limit: int) -> "_Known":
        keep = (self.cost <= limit) | (self.parent == 0)
        return _Known(self.asked, self.parent[keep], self.byte[keep], self.cost[keep], self.is_open[keep])

    def cheapest(self, wanted: int) -> list[bytes]:
        """All single bytes and the best longer strings."""
        limit = self.limit(wanted)
        singles, best = self.parent == 0, (self.parent > 0) & (self.cost < limit)
        last = sorted(self.strings(np.flatnonzero((self.parent > 0) & (self.cost == limit))))
        sure = self.strings(np.flatnonzero(singles)) + self.strings(np.flatnonzero(best))
        return sure + last[: wanted + BYTE_VALUES - len(sure)]


def _frequencies(model: ByteModel, contexts: Sequence[bytes]) -> np.ndarray:
    frequencies = model.frequencies(contexts)
    check_frequencies(frequencies, model.precision)
    return frequencies
