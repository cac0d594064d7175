import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.sampling import drawn, source_shares

SIZES = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10_000), max_size=6)


def sampled(sizes: dict[str, int], shares: dict[str, float]) -> dict[str, float]:
    return {source: sizes[source] * share for source, share in shares.items()}


@given(SIZES, st.integers(1, 30_000), st.floats(0, 1))
def test_the_sample_has_the_bytes_asked_for_or_all_there_are(sizes: dict[str, int], wanted: int, alpha: float) -> None:
    shares = source_shares(sizes, wanted, alpha)
    assert set(shares) == set(sizes)
    assert all(0 <= share <= 1 for share in shares.values())
    assert sum(sampled(sizes, shares).values()) == pytest.approx(min(wanted, sum(sizes.values())), rel=1e-6)


def test_alpha_one_keeps_the_proportions_and_alpha_zero_gives_all_sources_the_same() -> None:
    sizes = {"en": 900, "de": 90, "ka": 10}
    assert sampled(sizes, source_shares(sizes, 100, 1.0)) == pytest.approx({"en": 90, "de": 9, "ka": 1})
    assert sampled(sizes, source_shares(sizes, 30, 0.0)) == pytest.approx({"en": 10, "de": 10, "ka": 10})
    assert sampled(sizes, source_shares(sizes, 300, 0.0)) == pytest.approx({"en": 200, "de": 90, "ka": 10})


def test_documents_are_drawn_by_their_ids_alone() -> None:
    ids = np.arange(100_000, dtype=np.uint64) << np.uint64(40)
    whole = drawn(ids, 0.3, seed=1)
    assert whole.mean() == pytest.approx(0.3, abs=0.01)
    assert (drawn(ids[5000:], 0.3, seed=1) == whole[5000:]).all()
    assert (drawn(ids, 0.3, seed=2) != whole).any()
    assert (whole <= drawn(ids, 0.5, seed=1)).all()  # a larger sample holds the smaller one
    assert drawn(ids, np.linspace(0, 1, len(ids)), seed=1)[-1000:].mean() > 0.98
