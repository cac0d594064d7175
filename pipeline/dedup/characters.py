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
    codes, category, space = _named_characters()
    major = category.astype("U1")
    kind = np.full(sys.maxunicode + 1, {"word": OTHER, "run": WORD, "character": ALONE}[normaliser.unit], np.uint8)
    if normaliser.unit == "word":
        kind[codes[np.isin(major, ["L", "M", "N"])]] = WORD
        _mark_words(kind, codes, category, normaliser)
    elif normaliser.unit == "character":
        kind[codes[(codes < 0x80) & np.isin(major, ["P", "S"])]] = SKIP  # ASCII punctuation
    kind[codes[space]] = SPACE
    folded = np.arange(sys.maxunicode + 1, dtype=np.int32)
    cased = codes[np.isin(major, ["L", "M", "N", "S"])]  # S: circled letters
    if normaliser.fold_accents:
        folded[cased] = [_without_accent(code) for code in cased.tolist()]
    if normaliser.fold_case:
        folded[cased] = [ord(chr(code).lower()[0]) for code in folded[cased].tolist()]
        folded[ord("ς")] = ord("σ")
    return kind, folded


UNSETTLED = 255  # NFC may change the character or join it with the one before


@cache
def combining_classes() -> np.ndarray:
    """uint8[0x110000]: the canonical combining class of every code point, or UNSETTLED: the tables of the quick check
    for NFC, its "no" and "maybe" taken together (Unicode Standard Annex 15, section 9)."""
    codes, category, _ = _named_characters()
    table = np.zeros(sys.maxunicode + 1, np.uint8)
    marks = codes[category.astype("U1") == "M"]
    table[marks] = [unicodedata.combining(chr(code)) for code in marks.tolist()]
    table[0x1100:0x1200] = UNSETTLED  # Hangul jamo
    for code in codes.tolist():
        if decomposed := unicodedata.decomposition(chr(code)):
            if decomposed[0] == "<":
                continue
            parts = [int(part, 16) for part in decomposed.split()]
            table[parts[1:]] = UNSETTLED
            if unicodedata.normalize("NFC", chr(code)) != chr(code):
                table[code] = UNSETTLED
    return table


@cache
def _named_characters() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Code points int64[n] that may have a name, their general categories U2[n], and bool[n] whether white space."""
    codes = np.array([*range(LAST_WITH_A_NAME), *range(0xE0100, 0xE01F0)])
    characters = [chr(code) for code in codes.tolist()]
    category = np.array([unicodedata.category(character) for character in characters])
    return codes, category, np.array([character.isspace() for character in characters])


def _without_accent(code: int) -> int:
    """`code` without its non-spacing marks, if one code point is left then: é -> e."""
    bases = [one for one in unicodedata.normalize("NFD", chr(code)) if unicodedata.category(one) != "Mn"]
    return ord(bases[0]) if len(bases) == 1 else code


def _mark_words(kind: np.ndarray, codes: np.ndarray, category: np.ndarray, normaliser: Normaliser) -> None:
    """The kinds that only words have: characters that stand alone, numbers, and what folding makes vanish."""
    kind[ord("_")] = OTHER if normaliser.fold_underscore else WORD
    for first, last in UNSPACED_BLOCKS:
        block = kind[first : last + 1]
        block[block == WORD] = ALONE
    words = kind[codes] == WORD
    if normaliser.fold_accents:
        kind[codes[words & (category == "Mn")]] = SKIP
    if normaliser.fold_numbers:
        kind[codes[words & (category == "Nd")]] = DIGIT
        kind[[ord("."), ord(",")]] = POINT
