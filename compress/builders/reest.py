"""Rebuilding a dictionary from where its own windows begin.

Windows do not begin at typical places: behind a long string stands what ends it. So strings are counted anew where the
windows of the last dictionary begin, and the next one is built from those (Uemura et al. 2010, "Training parse trees
for efficient VF coding"; FSST's rounds).
"""

from collections.abc import Callable

import numba
import numpy as np

from seqmill.compress.dictionary import Dictionary
from seqmill.compress.matching import longest_matches
from seqmill.compress.texts import Texts
from seqmill.compress.trie import Trie

FIRST_STRIDE = 5  # bytes

Parse = Callable[[Dictionary, Texts], tuple[np.ndarray, np.ndarray]]  # ids of all documents, and where each one's end
Build = Callable[[Texts, np.ndarray | None], Dictionary]  # from a sample and the places where windows begin


def cut_longest(dictionary: Dictionary, texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """The parse of a dictionary's own code: at every place its longest string."""
    return longest_matches(Trie.of(dictionary), texts.data, texts.offsets)


def window_starts(dictionary: Dictionary, texts: Texts, parse: Parse) -> np.ndarray:
    """int32[windows]: the places of the sample where windows begin, ascending."""
    ids, _ = parse(dictionary, texts)
    starts = np.empty(len(ids), np.int32)
    _starts(ids, dictionary.lengths.astype(np.uint8), texts.offsets[0], starts)
    return starts


@numba.njit(nogil=True, cache=True)
def _starts(ids: np.ndarray, lengths: np.ndarray, place: int, starts: np.ndarray) -> None:
    """Windows of all documents lie end to end, as documents do."""
    for window in range(len(ids)):
        starts[window] = place
        place += lengths[ids[window]]


def reest(texts: Texts, build: Build, rounds: int, parse: Parse = cut_longest) -> Dictionary:
    """The builder's dictionary after `rounds` re-estimations; 3 to 5 are usual, 0: of counts at every place.

    What comes before the first round only has to begin it, so it is built from every fifth place: a number that is no
    multiple of the bytes that characters have.
    """
    if not rounds:
        return build(texts, None)
    dictionary = build(texts, np.arange(texts.offsets[0], texts.offsets[-1], FIRST_STRIDE, dtype=np.int32))
    for _ in range(rounds):
        dictionary = build(texts, window_starts(dictionary, texts, parse))
    return dictionary
