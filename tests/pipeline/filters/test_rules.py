from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest

from seqmill.pipeline.filters.config import FineWebRules, GopherQuality, GopherRepetition
from seqmill.pipeline.filters.rules import (
    Rule,
    count_words,
    fineweb_rules,
    gopher_quality_rules,
    gopher_repetition_rules,
    judge,
)


def reason(text: str, settings: GopherQuality | GopherRepetition | FineWebRules) -> str | None:
    column = pa.array([text], pa.large_string())
    if isinstance(settings, FineWebRules):
        rules = list(fineweb_rules(column, settings))
    elif isinstance(settings, GopherRepetition):
        rules = list(gopher_repetition_rules(column, settings, count_words(column)))
    else:
        rules = list(gopher_quality_rules(settings, count_words(column, settings.stop_words)))
    verdict = judge(rules, 1)
    return verdict.reasons[verdict.which[0]] if verdict.which[0] >= 0 else None


PROSE = "the cat sat with a friend of mine and said that they have to be home by nine " * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROSE, None),
        ("the cat and " * 16 + "the", "few words"),  # 49
        ("the cat and " * 16 + "the dog", None),  # 50
        ("a b of the " * 20, "short words"),
        ("incomprehensibilities antidisestablishment of " * 20, "long words"),
        (PROSE + "# " * 8, "hashes"),  # of 72 words
        (PROSE + "#" * 7, None),
        (PROSE + "... " * 8, "ellipses"),
        ("• " + PROSE.replace(" the", "\n- the"), "bullet lines"),
        ("a line of words that ends so...\n" * 4 + PROSE.replace("nine ", "nine\n") + "\n" * 9, "ellipsis lines"),
        (PROSE + "12 " * 19, "few alphabetic words"),  # 72 of 91 is less than 0.8
        (PROSE + "12 " * 18, None),  # 72 of 90
        ("die Katze sass bei einem Freund " * 10, "few stop words"),
        ("THE Katze sass bei einem Freund " * 10 + "Of", None),
    ],
)
def test_gopher_quality_at_its_limits(text: str, expected: str | None) -> None:
    found = reason(text, GopherQuality(enabled=True, max_ellipsis_ratio=0.1))
    assert found == (expected and f"gopher: {expected}")


def test_punctuation_counts_as_words_on_request() -> None:
    text = PROSE + "| " + ", . " * 10
    assert reason(text, GopherQuality(enabled=True)) in (None, "gopher: few alphabetic words")
    spaced = PROSE.replace(" ", ",. ", 20)
    assert reason(spaced, GopherQuality(enabled=True)) is None
    assert reason(spaced, GopherQuality(enabled=True, symbols_are_words=True)) == "gopher: few alphabetic words"


def distinct(count: int, tag: str = "w") -> str:
    return " ".join(f"{tag}{k:04d}" for k in range(count))


def numbered(count: int) -> list[str]:
    return [f"line number {k}" for k in range(count)]


@pytest.mark.parametrize(
    ("rule", "text", "fires"),
    [
        ("duplicate_lines", "\n".join([*numbered(6), "x", "x", "x", "x"]), False),  # 3 of 10
        ("duplicate_lines", "\n\n".join([*numbered(5), "x", " x", "x ", "x"]), True),  # 3 of 9
        ("duplicate_paragraphs", "\n\n".join(["x\ny", " x\ny", "x\ny ", *numbered(4)]), False),  # 2 of 7
        ("duplicate_paragraphs", "\n \n".join(["x\ny", " x\ny", "x\ny ", *numbered(3)]), True),  # 2 of 6
        ("duplicate_line_characters", "twenty characters ok\n" * 2 + distinct(9), True),  # 20 of 95
        ("duplicate_line_characters", "twenty characters ok\n" * 2 + distinct(10), False),  # 20 of 101
        ("duplicate_paragraph_characters", "ten\nwords.\n\n" * 2 + distinct(3), True),
        ("top_2_gram", "ab cd " * 4 + distinct(12), True),  # 20 of 95
        ("top_2_gram", "one two", False),  # a pair that occurs once is no repetition
        ("top_3_gram", "ab cd ef " + distinct(14) + " ab cd ef", False),
        ("top_4_gram", "ab cd ef gh " + distinct(8) + " ab cd ef gh", True),
        ("duplicate_5_gram", f"{distinct(5)} {distinct(9, 'x')} {distinct(5)}", True),
        ("duplicate_6_gram", f"{distinct(5)} {distinct(9, 'x')} {distinct(5)}", False),
        ("duplicate_10_gram", f"{distinct(10)} {distinct(10, 'x')} {distinct(10)}", True),
        ("duplicate_10_gram", "", False),
    ],
)
def test_gopher_repetition_rule_by_rule(rule: str, text: str, fires: bool) -> None:
    names = [entry.name for entry in fields(GopherRepetition) if entry.name not in ("enabled", rule)]
    alone = GopherRepetition(enabled=True, **dict.fromkeys(names))  # type: ignore[arg-type]
    assert reason(text, alone) == (f"gopher: {rule.replace('_', ' ')}" if fires else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A line that is long enough, and ends.\nAnother one with forty characters or so.", None),
        ("A line that is long enough, with no end\nAnother one with forty characters", "few punctuated lines"),
        ("Short.\nVery short.", "short lines"),
        ("The very same long line that comes twice.\n" * 2, "duplicate characters"),
        ("这是一个足够长的句子，它的长度超过了三十个字符，因此它不是一个很短的行，对吧？", None),
        ("Pneumonoultramicroscopicsilicovolcanoconiosis.\n\n\n", "many line ends"),
    ],
)  # fmt: skip
def test_fineweb_rules(text: str, expected: str | None) -> None:
    assert reason(text, FineWebRules(enabled=True)) == (expected and f"fineweb: {expected}")


def test_the_first_rule_that_fires_is_the_reason_and_its_measure_the_value() -> None:
    values = np.array([1.0, 5.0, 9.0, 5.0])
    rules = [
        Rule("low", values, 2, is_minimum=True),
        Rule("off", values, None),
        Rule("high", values, 5),
        Rule("any", values * 10, 0),
    ]
    verdict = judge(rules, 4)
    assert [verdict.reasons[k] for k in verdict.which] == ["low", "any", "high", "any"]
    assert verdict.value.tolist() == [1, 50, 9, 50]
    assert verdict.limit.tolist() == [2, 0, 5, 0]
