import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.filters import words
from seqmill.pipeline.filters.rules import count_words

from . import oracle

STOP = ("the", "of", "don")
ALPHABET = st.text(st.sampled_from("aT1_ \n\t.#-•…?!é\u0301\u00a0\u3000日本ไ한ह🦆\u200d{"), max_size=60)
SENTENCES = st.lists(st.sampled_from(["the", "The", "OF", "don't", "...", "…", "- x", "# 1", "\n", " \n"]), max_size=20)
TEXTS = st.lists(st.one_of(ALPHABET, st.text(max_size=40), SENTENCES.map(" ".join)), min_size=1, max_size=5)


@given(TEXTS)
def test_counts_equal_the_oracle(texts: list[str]) -> None:
    counts = count_words(pa.array(texts, pa.large_string()), STOP)
    for text, row in zip(texts, counts, strict=True):
        found = {name: int(row[getattr(words, name)]) for name in oracle.quality("", STOP)}
        assert found == oracle.quality(text, STOP)


def test_the_example_of_the_module_is_true() -> None:
    found = oracle.quality("Wait... #no-1\n- x", STOP)
    assert [found[k] for k in ("WORDS", "PIECES", "SYMBOLS", "HASHES", "ELLIPSES", "LINES", "BULLET_LINES")] == [
        4, 4, 4, 1, 1, 2, 1,
    ]  # fmt: skip


def test_slices_of_a_column_count_as_their_own_rows() -> None:
    column = pa.array(["one two", "the # of", "三 four", ""], pa.large_string())
    assert count_words(column.slice(1, 2), STOP).tolist() == count_words(column, STOP)[1:3].tolist()
