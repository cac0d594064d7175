from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import offsets_and_bytes
from seqmill.tokenizers_ext.splitting import CODE_POINTS, LAST_ASSIGNED, LONG_S, PATTERNS, pre_token_ends

EXAMPLES = Path(__file__).parents[2] / "examples" / "corpus"
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000"]
WORDS = ["a", "Don", "é", "e\u0301", "日本", "7", "12345", "½", "٣", "ǅ", "ʰ"]
CONTRACTIONS = ["'", "'s", "'LL", "'Ve", "'" + LONG_S, "'re"]
SIGNS = ["!", "...", "$", "_", "/", "👩\u200d👧", "\x00", "\u200b"]
PIECES = st.sampled_from([*SPACES, *WORDS, *CONTRACTIONS, *SIGNS])


def cut(texts: list[str], rule: str) -> list[list[str]]:
    """Pre-tokens of every document, as the kernel cuts them."""
    offsets, data = offsets_and_bytes(pa.array(["before", *texts], pa.large_binary())[1:])
    ends, per_document = pre_token_ends(offsets, data, rule)
    found = []
    for d in range(len(texts)):
        borders = [offsets[d], *ends[per_document[d] : per_document[d + 1]]]
        assert borders[-1] == offsets[d + 1]
        found.append([data[a:b].tobytes().decode() for a, b in pairwise(borders)])
    return found


def by_regular_expression(text: str, rule: str) -> list[str]:
    """Pre-tokens as the regular expressions of `tokenizers` find them."""
    splitter = pre_tokenizers.Split(Regex(PATTERNS[rule]), "isolated")
    return [piece for piece, _ in splitter.pre_tokenize_str(text)]


@pytest.mark.parametrize("rule", PATTERNS)
@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.lists(PIECES | st.characters(exclude_categories=["Cs"]), max_size=12).map("".join), max_size=3)
)
@example(
    texts=["", " ", "  a", "a  ", " \n a", "\n\n  b", "x 's 'S", "it's IT'S it'" + LONG_S, "1234567", "a b c. d e"]
)
def test_pre_tokens_are_those_of_the_regular_expressions(rule: str, texts: list[str]) -> None:
    assert cut(texts, rule) == [by_regular_expression(text, rule) for text in texts]


@pytest.mark.parametrize("rule", PATTERNS)
def test_real_text_in_thirty_languages_is_cut_as_by_the_regular_expressions(rule: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted((EXAMPLES / "udhr").glob("*.txt"))]
    assert cut(texts, rule) == [by_regular_expression(text, rule) for text in texts]


def test_the_gpt2_rule_is_that_of_the_byte_level_pre_tokenizer() -> None:
    text = "Don't  stop\tnow\r\n\n\nplease!!  naïve 3.14 x'll"
    found = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert cut([text], "gpt2") == [[text[start:stop] for _, (start, stop) in found]]


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_are_cut_without_loss(data: bytes) -> None:
    offsets, values = offsets_and_bytes(pa.array([data], pa.large_binary()))
    for rule in PATTERNS:
        ends, per_document = pre_token_ends(offsets, values, rule)
        assert list(ends) == sorted(set(ends))
        assert len(ends) == per_document[1]
        assert (ends[-1] if data else 0) == len(data)


def test_a_rule_that_does_not_exist_is_refused_with_those_that_do() -> None:
    offsets, data = offsets_and_bytes(pa.array(["a"], pa.large_binary()))
    with pytest.raises(UserError, match="choose one of gpt2, cl100k"):
        pre_token_ends(offsets, data, "gpt-7")


def test_no_letter_number_or_space_lies_beyond_the_planes_that_are_asked() -> None:
    for first in range(LAST_ASSIGNED, CODE_POINTS, 0x10000):
        text = "".join(map(chr, range(first, first + 0x10000)))
        for outside in (r"\P{L}+", r"\P{N}+", r"\S+"):
            assert pre_tokenizers.Split(Regex(outside), "removed").pre_tokenize_str(text) == []
