"""The dictionary that the window coder amounts to: one string for every number of a window."""

from collections.abc import Sequence

import numpy as np

from seqmill.compress.builders.topn import topn
from seqmill.compress.byte_model import BYTE_VALUES, ByteModel, check_frequencies
from seqmill.compress.code_range import strings_of_table
from seqmill.compress.dictionary import LONGEST_STRING, Dictionary

TOGETHER = 2048  # contexts a call of the model


def stopcell(model: ByteModel, window: int = 16, specials: int | None = None) -> Dictionary:
    """The strings that `WindowCoder(model, window, specials)` emits; ids are its numbers.

    The one exception: no string has more than 255 bytes. If the model would go on beyond, the numbers that this leaves
    go to the most probable strings that have none yet, and ids are no longer the coder's.

    Args:
        model: is asked once for every string whose window can go on.
        window: bits, 8 to 20.
        specials: numbers of a window kept for special ids; default: as `code_range`.
    """
    size = strings_of_table(window, specials)
    found: list[bytes] = []
    level, left = [b""], np.array([size])
    for _ in range(LONGEST_STRING):
        longer: list[bytes] = []
        shares: list[np.ndarray] = [np.zeros(0, np.int64)]
        for first in range(0, len(level), TOGETHER):
            contexts, numbers = level[first : first + TOGETHER], left[first : first + TOGETHER]
            share = _shares(model, contexts, numbers)
            parent, byte = np.nonzero(share)
            longer += [contexts[p] + bytes([b]) for p, b in zip(parent.tolist(), byte.tolist(), strict=True)]
            shares.append(share[parent, byte])
        found += longer
        share = np.concatenate(shares)
        going_on = np.flatnonzero(share > 1)
        level, left = [longer[k] for k in going_on.tolist()], share[going_on] - 1  # one says that the window ends
        if not level:
            break
    return Dictionary.from_strings(_completed(found, model, window, specials, size))


def _shares(model: ByteModel, contexts: Sequence[bytes], numbers: np.ndarray) -> np.ndarray:
    """int64[contexts, 256]: how many of each context's numbers every next byte gets."""
    frequencies = model.frequencies(contexts)
    check_frequencies(frequencies, model.precision)
    cumulative = np.zeros((len(contexts), BYTE_VALUES + 1), np.int64)
    np.cumsum(frequencies, axis=1, out=cumulative[:, 1:])
    return np.diff(numbers[:, None] * cumulative >> model.precision, axis=1)


def _completed(strings: list[bytes], model: ByteModel, window: int, specials: int | None, size: int) -> list[bytes]:
    if len(strings) == size:
        return strings
    known = set(strings)
    likely = [string for string in topn(model, window, specials).strings() if string not in known]
    likely.sort(key=len)  # what a string begins with comes before it
    return strings + likely[: size - len(strings)]
