import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.filters.c4 import CITATIONS, LINE_REASONS, clean_lines, cut_citations
from seqmill.pipeline.filters.config import C4Rules

from . import oracle

OUTCOMES = ["kept", "lorem ipsum", "curly bracket"]
LINE = st.lists(
    st.sampled_from(["a", "Two words.", "We USE Cookies here.", "JavaScript", "javascrip", "Lorem Ipsum x.", "{", "...",
                     '"', "?", "日本語。", "é", "\u3000", "e.g. b", "End!) Next", "terms of us", "x" * 1001]),
    max_size=5,
).map(" ".join)  # fmt: skip


@given(st.lists(st.lists(LINE, max_size=6).map("\n".join), min_size=1, max_size=4))
def test_lines_and_outcomes_equal_the_oracle(texts: list[str]) -> None:
    cleaned, outcome, sentences, dropped = clean_lines(pa.array(texts, pa.large_string()), C4Rules(enabled=True))
    cleaned.validate(full=True)
    for k, text in enumerate(texts):
        kept, why, count, bytes_ = oracle.c4(text)
        assert (cleaned[k].as_py(), OUTCOMES[outcome[k]], sentences[k]) == (kept, why, count)
        assert dict(zip(LINE_REASONS, dropped[k].tolist(), strict=True)) == {r: bytes_.get(r, 0) for r in LINE_REASONS}


@pytest.mark.parametrize(
    ("switch", "line"),
    [
        ({"terminal_marks": ""}, "a line of a list"),
        ({"min_line_words": 0}, "Short."),
        ({"max_word_length": 0}, f"a word {'x' * 1001}."),
        ({"javascript": False}, "Please enable javascript now."),
        ({"policy": False}, "Read our terms of use."),
        ({"lorem_ipsum": False}, "Lorem ipsum dolor sit."),
        ({"curly_bracket": False}, "Code has {braces} in it."),
    ],
)
def test_each_line_rule_can_be_switched_off(switch: dict[str, object], line: str) -> None:
    text = pa.array([line], pa.large_string())
    with_rule, outcome, *_ = clean_lines(text, C4Rules(enabled=True))
    assert with_rule[0].as_py() == ""
    without, outcome, *_ = clean_lines(text, C4Rules(enabled=True, **switch))  # type: ignore[arg-type]
    assert (without[0].as_py(), outcome[0]) == (line, 0)


@given(st.text(st.sampled_from("[]12 edit"), max_size=30))
def test_citation_marks_are_cut_as_python_does(text: str) -> None:
    text += "[edit] [citation needed]"
    expected = re.sub(CITATIONS, "", text, flags=re.ASCII)
    assert cut_citations(pa.array([text, "none"], pa.large_string())).to_pylist() == [expected, "none"]
