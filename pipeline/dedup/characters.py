"""Tables that say what a character is to the shingler: part of a word, a word by itself, white space, or neither."""

import sys
import unicodedata
from functools import cache

import numpy as np

OTHER, WORD, ALONE, SPACE = 0, 1, 2, 3

# Scripts written without spaces between words: each character counts as a word, as in most MinHash recipes.
UNSPACED_BLOCKS = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x19E0, 0x19FF),  # Khmer symbols
    (0x3005, 0x3007),  # Han iteration mark, zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),  # Myanmar extensions
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),  # Han compatibility
    (0xFF66, 0xFF9F),  # half-width Katakana
    (0x20000, 0x323AF),  # Han extensions
)


@cache
def character_tables() -> tuple[np.ndarray, np.ndarray]:
    """Kind uint8[0x110000] and simple lower case int32[0x110000] of every code point.

    Letters, marks, numbers and the underscore make words (marks too, so that Hindi words stay whole). Lower case is
    one code point for one: the final sigma folds to the ordinary one, the dotted capital I to i.
    """
    kind = np.zeros(sys.maxunicode + 1, np.uint8)
    lower = np.arange(sys.maxunicode + 1, dtype=np.int32)
    for code in (*range(0x32400), *range(0xE0100, 0xE01F0)):  # above the Han extensions only variation selectors
        character = chr(code)
        if character.isspace():
            kind[code] = SPACE
        elif character == "_" or unicodedata.category(character)[0] in "LMN":
            kind[code] = WORD
            lower[code] = ord(character.lower()[0])
    lower[ord("ς")] = ord("σ")
    for first, last in UNSPACED_BLOCKS:
        block = kind[first : last + 1]
        block[block == WORD] = ALONE
    return kind, lower
