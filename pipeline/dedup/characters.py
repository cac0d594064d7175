"""Tables that say what a character is to the shingler: part of a word, a word by itself, white space, or nothing."""

import sys
import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np

# OTHER ends a word; SKIP vanishes without ending one; DIGIT and POINT fold a whole number into one digit.
OTHER, WORD, ALONE, SPACE, SKIP, DIGIT, POINT = range(7)
ZERO = ord("0")
LAST_WITH_A_NAME = 0x32400  # above it lie only unassigned characters, variation selectors and private ones

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

UNITS = ("word", "run", "character")


@dataclass(frozen=True)
class Normaliser:
    """What of a text counts when documents are compared. Texts are put into NFC before."""

    unit: str = "word"  # "word": letters, marks, numbers; "run": anything between white space; "character"
    fold_case: bool = True
    fold_accents: bool = False  # é and e are the same
    fold_numbers: bool = False  # every number is 0: "3,141.59" and "7"
    fold_underscore: bool = False  # an underscore ends a word instead of being part of it


@cache
def character_tables(normaliser: Normaliser = Normaliser()) -> tuple[np.ndarray, np.ndarray]:
    """Kind uint8[0x110000] and folded form int32[0x110000] of every code point.

    With unit "word", letters, marks, numbers and the underscore make words (marks too, so that Hindi words stay
    whole). Folding maps one code point to one: the final sigma to the ordinary one, the dotted capital I to i.
    """
    kind = np.zeros(sys.maxunicode + 1, np.uint8)
    folded = np.arange(sys.maxunicode + 1, dtype=np.int32)
    if normaliser.unit != "word":
        kind[:] = WORD if normaliser.unit == "run" else ALONE
    for code in (*range(LAST_WITH_A_NAME), *range(0xE0100, 0xE01F0)):
        character = chr(code)
        if character.isspace():
            kind[code] = SPACE
            continue
        if normaliser.unit == "word":
            is_word = character == "_" or unicodedata.category(character)[0] in "LMN"
            kind[code] = WORD if is_word else OTHER
        elif normaliser.unit == "character" and code < 0x80 and not character.isalnum() and character.isprintable():
            kind[code] = SKIP  # ASCII punctuation
        if kind[code] in (WORD, ALONE):
            folded[code] = _fold(character, normaliser)
    folded[ord("ς")] = folded[ord("σ")] if normaliser.fold_case else ord("ς")
    if normaliser.unit == "word":
        _mark_words(kind, normaliser)
    return kind, folded


def _fold(character: str, normaliser: Normaliser) -> int:
    if normaliser.fold_accents:
        bases = [one for one in unicodedata.normalize("NFD", character) if unicodedata.category(one) != "Mn"]
        character = bases[0] if len(bases) == 1 else character
    return ord(character.lower()[0]) if normaliser.fold_case else ord(character)


def _mark_words(kind: np.ndarray, normaliser: Normaliser) -> None:
    """The kinds that only words have: characters that stand alone, numbers, and what folding makes vanish."""
    for first, last in UNSPACED_BLOCKS:
        block = kind[first : last + 1]
        block[block == WORD] = ALONE
    if normaliser.fold_underscore:
        kind[ord("_")] = OTHER
    for code in (*range(LAST_WITH_A_NAME), *range(0xE0100, 0xE01F0)):
        category = unicodedata.category(chr(code))
        if normaliser.fold_accents and category == "Mn" and kind[code] == WORD:
            kind[code] = SKIP
        if normaliser.fold_numbers and category == "Nd" and kind[code] == WORD:
            kind[code] = DIGIT
    if normaliser.fold_numbers:
        kind[[ord("."), ord(",")]] = POINT
