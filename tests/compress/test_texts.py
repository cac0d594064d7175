import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.compress.texts import PIECE, Texts, sample_texts
from seqmill.errors import UserError


def documents_of(texts: Texts) -> list[bytes]:
    return [texts.data[a:b].tobytes() for a, b in zip(texts.offsets[:-1], texts.offsets[1:], strict=True)]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=30))
def test_a_sample_with_room_for_all_holds_all_in_order(documents: list[bytes]) -> None:
    assert documents_of(sample_texts(documents, 10_000)) == documents


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=20), max_size=40), st.integers(20, 200), st.integers(1, 7))
def test_a_sample_is_within_its_budget_and_the_same_for_any_cutting_into_arrays(
    documents: list[bytes], budget: int, step: int
) -> None:
    sample = sample_texts(documents, budget)
    assert len(sample.data) <= budget
    columns = [pa.array(documents[k : k + step], pa.binary()) for k in range(0, len(documents), step)]
    assert sample_texts(columns, budget).fingerprint == sample.fingerprint
    chunked = [pa.chunked_array([pa.array(documents, pa.large_binary())])]
    assert sample_texts(chunked, budget).fingerprint == sample.fingerprint


def test_a_sample_does_not_prefer_the_first_documents() -> None:
    documents = [b"%06d" % k for k in range(20_000)]
    kept = [int(document) for document in documents_of(sample_texts(documents, 6 * 2_000))]
    assert len(kept) == 2_000
    assert kept == sorted(kept)
    assert np.histogram(kept, 4, (0, 20_000))[0].min() > 400  # 500 expected, standard deviation 19


def test_a_long_document_is_sampled_by_pieces() -> None:
    sample = sample_texts([bytes(5 * PIECE), b"short"], 2 * PIECE)
    assert np.diff(sample.offsets).max() == PIECE


def test_what_cannot_be_sampled_is_refused() -> None:
    with pytest.raises(UserError, match="a sample of 0 bytes"):
        sample_texts([], 0)
    with pytest.raises(UserError, match="1 null documents"):
        sample_texts([pa.array([b"a", None])])
    with pytest.raises(UserError, match="type int64"):
        sample_texts([pa.array([1])])
