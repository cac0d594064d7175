"""Prompts that end within a window: the last id is taken back, and the next one has to begin with its bytes.

A text that goes on is cut otherwise at the place where the prompt ended: "the ca" ends with [ca], "the cat" with [cat].
A model that has learned from whole texts has never seen [ca] before "t", so it would rather not write it. Ids are the
ranks of strings, so the strings that begin with the bytes taken back are one range of ids:

    prompt [the ][ca]    kept [the ]    next: any id of ca, cab, ..., cat, ..., cazzz
"""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from seqmill.compress.dictionary import Dictionary


@dataclass(frozen=True)
class HealedPrompt:
    """A prompt whose end is left to the model."""

    ids: np.ndarray  # what is kept
    prefix: bytes  # the bytes that were taken back
    next_ids: range  # what the next id is one of


def heal(dictionary: Dictionary, ids: np.ndarray) -> HealedPrompt:
    """Take back the last id of a prompt and say which ids can stand in its place.

    The one that was taken back is always among them. A prompt of no ids may go on with any.
    """
    if not len(ids):
        return HealedPrompt(ids, b"", range(len(dictionary)))
    prefix = dictionary.string(int(ids[-1]))
    return HealedPrompt(ids[:-1], prefix, range_of(dictionary, prefix))


def range_of(dictionary: Dictionary, prefix: bytes) -> range:
    """The ids of the strings that begin with some bytes."""
    strings = dictionary.strings()
    beyond = prefix.rstrip(b"\xff")  # the first string that sorts behind all with this prefix
    first = bisect_left(strings, prefix)
    if not beyond:
        return range(first, len(strings))
    return range(first, bisect_left(strings, beyond[:-1] + bytes([beyond[-1] + 1])))
