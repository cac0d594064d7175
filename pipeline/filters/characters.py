"""What a character is to the filters: the kinds of the shingler, and whether it is a letter."""

from functools import cache

import numpy as np

from seqmill.pipeline.dedup.characters import character_tables

KIND = 7  # mask of the kind: OTHER, WORD, ALONE or SPACE of dedup.characters
LETTER = 8


@cache
def flag_table() -> np.ndarray:
    """uint8[0x110000]: kind | LETTER of every code point."""
    flags = character_tables()[0].copy()
    for code in np.flatnonzero(flags):
        if chr(code).isalpha():
            flags[code] |= LETTER
    return flags


def code_points(characters: str) -> np.ndarray:
    """int64[n], sorted: what kernels search."""
    return np.array(sorted({ord(character) for character in characters}), np.int64)
