import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.documents import utf8_buffers
from seqmill.pipeline.filters.characters import code_points, flag_table
from seqmill.pipeline.filters.repetition import measure_lines, measure_ngrams

from . import oracle

LINES = st.lists(st.sampled_from(["a", " a", "b.", "", " ", "\u3000日。\t", "a long line é"]), max_size=14).map(
    "\n".join
)
FEW_WORDS = st.lists(st.sampled_from(["a", "bb", "c,", "日", "dd-a"]), max_size=60).map(" ".join)


@given(st.lists(st.one_of(LINES, st.text(max_size=20)), min_size=1, max_size=5))
def test_line_measures_equal_the_oracle(texts: list[str]) -> None:
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    found = measure_lines(data, offsets, flag_table(), code_points(".。"), 4)
    assert found.tolist() == [oracle.line_measures(text, ".。", 4) for text in texts]


@given(st.lists(st.one_of(FEW_WORDS, st.text(max_size=20)), min_size=1, max_size=5))
def test_ngram_measures_equal_the_oracle(texts: list[str]) -> None:
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    assert measure_ngrams(data, offsets, flag_table()).tolist() == [oracle.ngrams(text) for text in texts]


def test_long_repetitive_documents_equal_the_oracle() -> None:
    period = [f"w{k}" for k in range(13)]
    texts = [" ".join(period * 60), " ".join(f"w{k * k % 41}" for k in range(900)), "x " * 500]
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    found = measure_ngrams(data, offsets, flag_table())
    assert found.tolist() == [oracle.ngrams(text) for text in texts]
    assert (found[0] > 0).all()
