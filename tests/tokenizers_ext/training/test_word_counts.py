from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from seqmill.errors import UserError
from seqmill.tokenizers_ext.training.word_counts import LONGEST_WORD, WordCounts

PLENTY = 1 << 30


def counted(texts: list[str]) -> Counter[bytes]:
    """Words by the pre-tokenizer of `tokenizers`."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Counter(text[start:stop].encode() for text in texts for _, (start, stop) in splitter.pre_tokenize_str(text))


def held(words: WordCounts) -> dict[bytes, int]:
    found = [row for batch in words.batches() for row in batch.to_pylist()]
    assert len({row["word"] for row in found}) == len(found) == len(words)
    return {row["word"]: row["count"] for row in found}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab é日1.'\n", max_size=40), max_size=6))
def test_words_are_counted_as_by_the_pre_tokenizer(texts: list[str]) -> None:
    words = WordCounts(PLENTY)
    words.add_texts(pa.array(texts, pa.large_string()), "gpt2")
    assert held(words) == counted(texts)


def test_many_words_grow_the_table_and_none_is_lost() -> None:
    rng = np.random.default_rng(3)
    texts = [" ".join(f"{a:x}" for a in rng.integers(0, 30_000, 3_000)) for _ in range(20)]
    texts.append("x" * 3_000 + " " + "y" * LONGEST_WORD)
    words = WordCounts(PLENTY)
    for text in texts:
        words.add_texts(pa.array([text]), "gpt2")
    expected = counted(texts)
    too_long = [word for word in expected if len(word) > LONGEST_WORD]
    assert words.too_long == len(too_long) == 1
    assert held(words) == {word: n for word, n in expected.items() if word not in too_long}
    assert words.forgotten == words.floor == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab c", max_size=30), max_size=6), st.integers(0, 6))
def test_counts_of_parts_add_up_to_those_of_the_whole(texts: list[str], cut: int) -> None:
    parts = []
    for part in (texts[:cut], texts[cut:]):
        words = WordCounts(PLENTY)
        words.add_texts(pa.array(part, pa.large_string()), "gpt2")
        parts.append(words)
    merged = WordCounts(PLENTY)
    for words in parts:
        for batch in words.batches():
            merged.add_counts(batch.column("word"), batch.column("count"))
    assert held(merged) == counted(texts)


def test_over_the_budget_the_rarest_words_are_forgotten_and_their_occurrences_counted() -> None:
    texts = [
        " ".join(f"rare{number} often often" for number in range(first, first + 500)) for first in range(0, 20_000, 500)
    ]
    words = WordCounts(150_000)
    for text in texts:
        words.add_texts(pa.array([text]), "gpt2")
    expected, found = counted(texts), held(words)
    assert words.nbytes <= 150_000 + 500 * 50
    assert found[b" often"] == expected[b" often"] == 40_000 - 0
    assert all(count <= expected[word] for word, count in found.items())
    assert sum(found.values()) + words.forgotten == sum(expected.values())
    assert words.floor == 1


def test_counts_beyond_64_bits_are_refused_instead_of_wrapping() -> None:
    words = WordCounts(PLENTY)
    most = pa.array([2**64 - 1], pa.uint64())
    words.add_counts(pa.array([b"a"], pa.large_binary()), most)
    assert held(words) == {b"a": 2**64 - 1}
    with pytest.raises(UserError, match="train on a sample"):
        words.add_counts(pa.array([b"a"], pa.large_binary()), pa.array([1], pa.uint64()))
