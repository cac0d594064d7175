"""The dictionary of the most frequent strings of a sample: no model, one count."""

import itertools

import numpy as np

from seqmill.compress.byte_model import BYTE_VALUES
from seqmill.compress.code_range import strings_of_table
from seqmill.compress.dictionary import LONGEST_STRING, Dictionary
from seqmill.compress.substring_counts import count_substrings
from seqmill.compress.texts import Texts


def counts(texts: Texts, window: int = 16, specials: int | None = None, starts: np.ndarray | None = None) -> Dictionary:
    """The single bytes and the most frequent longer strings, every string's beginnings among them.

    The mean length of a window is the sum, over all strings, of how probable it is that a window's text begins with
    one: so the most frequent ones are the best, for the places at which they were counted.

    Args:
        texts: the sample; where it has too few strings, the first ones in order of length and bytes are added.
        window: bits of a window, 8 to 20.
        specials: numbers of a window kept for special ids; default: as `code_range`.
        starts: int64[places], ascending: where windows begin; everywhere if None.
    """
    size = strings_of_table(window, specials)
    found = count_substrings(texts, size - BYTE_VALUES, LONGEST_STRING, starts)
    return Dictionary.from_strings(filled(found.strings()[1:], size))


def filled(strings: list[bytes], size: int) -> list[bytes]:
    """The strings, and the shortest others until there are `size`; of equally short ones the first."""
    missing = size - len(strings)
    known = set(strings)
    every = (bytes(string) for length in itertools.count(1) for string in itertools.product(range(256), repeat=length))
    return strings + list(itertools.islice((string for string in every if string not in known), missing))
