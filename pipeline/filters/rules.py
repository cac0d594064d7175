"""Rules as data: what was measured of every document, and the limits it has to keep."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from seqmill.pipeline.documents import utf8_buffers
from seqmill.pipeline.filters import repetition, words
from seqmill.pipeline.filters.characters import code_points, flag_table
from seqmill.pipeline.filters.config import FineWebRules, GopherQuality, GopherRepetition, LengthRules


@dataclass(frozen=True)
class Rule:
    """A measure and one limit of it. A document goes when it lies beyond the limit, not when it meets it."""

    reason: str
    values: np.ndarray  # [documents]
    limit: float | None  # None: the rule does not run
    is_minimum: bool = False
    fired: np.ndarray | None = None  # bool[documents]: decided already, for rules that are no comparison

    def fires(self) -> np.ndarray:
        """bool[documents]."""
        if self.fired is not None:
            return self.fired
        if self.limit is None:
            return np.zeros(len(self.values), bool)
        return self.values < self.limit if self.is_minimum else self.values > self.limit


@dataclass(frozen=True)
class Verdict:
    """The first rule that fired on each document."""

    reasons: tuple[str, ...]
    which: np.ndarray  # int64[documents], index into reasons; -1 where the document stays
    value: np.ndarray  # float64[documents], what that rule measured
    limit: np.ndarray  # float64[documents]


def judge(rules: Sequence[Rule], documents: int) -> Verdict:
    """The verdict of `rules`, in their order."""
    which = np.full(documents, -1)
    value, limit = np.full(documents, np.nan), np.full(documents, np.nan)
    for index, rule in enumerate(rules):
        mine = rule.fires() & (which < 0)
        which[mine] = index
        value[mine] = rule.values[mine]
        limit[mine] = np.nan if rule.limit is None else rule.limit
    return Verdict(tuple(rule.reason for rule in rules), which, value, limit)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """float64: part / whole, and 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def count_words(text: pa.Array, stop_words: Sequence[str] = ()) -> np.ndarray:
    """int64[documents, words.MEASURES]."""
    offsets, data = utf8_buffers(text)
    return words.measure_words(data, offsets, flag_table(), *words.stop_word_hashes(stop_words))


def length_rules(text: pa.Array, limits: LengthRules, counts: np.ndarray) -> Iterator[Rule]:
    """The rules of `[filter.length]`; `counts` are those of `count_words`."""
    offsets, _ = utf8_buffers(text)
    measures = (
        ("bytes", np.diff(offsets)),
        ("characters", counts[:, words.CHARACTERS]),
        ("words", counts[:, words.WORDS]),
    )
    for unit, values in measures:
        yield Rule(f"length: few {unit}", values, getattr(limits, f"min_{unit}"), is_minimum=True)
        yield Rule(f"length: many {unit}", values, getattr(limits, f"max_{unit}"))


def gopher_quality_rules(limits: GopherQuality, counts: np.ndarray) -> Iterator[Rule]:
    """The rules of `[filter.gopher_quality]`, in the order of the paper."""
    number, lines = counts[:, words.WORDS], counts[:, words.LINES]
    alphabetic = ratio(counts[:, words.ALPHABETIC_PIECES], counts[:, words.PIECES])
    if limits.symbols_are_words:
        alphabetic = ratio(counts[:, words.ALPHABETIC_WORDS], number + counts[:, words.SYMBOLS])
    length = ratio(counts[:, words.WORD_CHARACTERS], number)
    bullets = ratio(counts[:, words.BULLET_LINES], lines)
    ellipses = ratio(counts[:, words.ELLIPSIS_LINES], lines)
    yield Rule("gopher: few words", number, limits.min_words, is_minimum=True)
    yield Rule("gopher: many words", number, limits.max_words)
    yield Rule("gopher: short words", length, limits.min_mean_word_length, is_minimum=True)
    yield Rule("gopher: long words", length, limits.max_mean_word_length)
    yield Rule("gopher: hashes", ratio(counts[:, words.HASHES], number), limits.max_hash_ratio)
    yield Rule("gopher: ellipses", ratio(counts[:, words.ELLIPSES], number), limits.max_ellipsis_ratio)
    yield Rule("gopher: bullet lines", bullets, limits.max_bullet_lines)
    yield Rule("gopher: ellipsis lines", ellipses, limits.max_ellipsis_lines)
    yield Rule("gopher: few alphabetic words", alphabetic, limits.min_alphabetic_words, is_minimum=True)
    yield Rule("gopher: few stop words", counts[:, words.STOP_WORDS], limits.min_stop_words, is_minimum=True)


def gopher_repetition_rules(text: pa.Array, limits: GopherRepetition, counts: np.ndarray) -> Iterator[Rule]:
    """The rules of `[filter.gopher_repetition]`, in the order of table A1."""
    offsets, data = utf8_buffers(text)
    lines = repetition.measure_lines(data, offsets, flag_table(), code_points(""), 0)
    ngrams = repetition.measure_ngrams(data, offsets, flag_table())
    characters = counts[:, words.CHARACTERS]
    measures = [
        ratio(lines[:, repetition.DUPLICATE_LINES], lines[:, repetition.LINES]),
        ratio(lines[:, repetition.DUPLICATE_PARAGRAPHS], lines[:, repetition.PARAGRAPHS]),
        ratio(lines[:, repetition.DUPLICATE_LINE_CHARACTERS], characters),
        ratio(lines[:, repetition.DUPLICATE_PARAGRAPH_CHARACTERS], characters),
        *(ratio(column, characters) for column in ngrams.T),
    ]
    names = [field.name for field in fields(limits) if field.name != "enabled"]
    for name, values in zip(names, measures, strict=True):
        yield Rule(f"gopher: {name.replace('_', ' ')}", values, getattr(limits, name))


def fineweb_rules(text: pa.Array, limits: FineWebRules) -> Iterator[Rule]:
    """The rules of `[filter.fineweb]`."""
    offsets, data = utf8_buffers(text)
    marks = code_points(limits.sentence_marks)
    lines = repetition.measure_lines(data, offsets, flag_table(), marks, limits.short_line)
    counts = count_words(text)
    number, line_ends = lines[:, repetition.LINES], lines[:, repetition.LINE_ENDS]
    punctuated = ratio(lines[:, repetition.PUNCTUATED_LINES], number)
    duplicate = ratio(lines[:, repetition.DUPLICATE_LINE_CHARACTERS], counts[:, words.CHARACTERS] - line_ends)
    per_word = ratio(line_ends, counts[:, words.WORDS])
    yield Rule("fineweb: few punctuated lines", punctuated, limits.min_punctuated_lines, is_minimum=True)
    yield Rule("fineweb: short lines", ratio(lines[:, repetition.SHORT_LINES], number), limits.max_short_lines)
    yield Rule("fineweb: duplicate characters", duplicate, limits.max_duplicate_characters)
    yield Rule("fineweb: many line ends", per_word, limits.max_line_ends_per_word)
