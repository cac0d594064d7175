import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.pipeline.dedup.characters import character_tables
from seqmill.pipeline.dedup.config import PRESETS
from seqmill.pipeline.dedup.minhash import band_keys, candidate_probability, hash_family, signatures
from seqmill.pipeline.documents import utf8_buffers

from . import oracle


def signatures_of(texts: list[str], ngram: int, permutations: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    return signatures(data, offsets, *character_tables(), ngram, *hash_family(permutations, seed))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab 日é🦆\n"), max_size=30), min_size=1, max_size=4), st.integers(1, 5))
def test_signatures_equal_the_oracle(texts: list[str], ngram: int) -> None:
    minima, counts = signatures_of(texts, ngram, 7)
    multipliers, addends = (array.tolist() for array in hash_family(7, 1))
    assert minima.tolist() == [oracle.signature(text, ngram, multipliers, addends) for text in texts]
    assert counts.tolist() == [len(oracle.shingles(text, ngram)) for text in texts]


def pair_with_similarity(shared: int, own: int, tag: int) -> tuple[str, str, float]:
    """Two documents of single-word shingles with exactly shared / (shared + 2 own) in common."""
    common = [f"s{tag}x{k}" for k in range(shared)]
    a = [*common, *(f"a{tag}x{k}" for k in range(own))]
    b = [*common, *(f"b{tag}x{k}" for k in range(own))]
    return " ".join(a), " ".join(b), shared / (shared + 2 * own)


@pytest.mark.parametrize(("shared", "own"), [(70, 15), (80, 10), (90, 5)])
def test_pairs_become_candidates_as_often_as_the_s_curve_says(shared: int, own: int) -> None:
    preset = PRESETS["fineweb"]
    pairs = [pair_with_similarity(shared, own, tag) for tag in range(1500)]
    similarity = pairs[0][2]
    minima, _ = signatures_of([text for a, b, _ in pairs for text in (a, b)], 1, preset.bands * preset.rows)
    agree = (minima[0::2] == minima[1::2]).reshape(len(pairs), preset.bands, preset.rows)
    assert agree.mean() == pytest.approx(similarity, abs=0.01)
    measured = agree.all(axis=2).any(axis=1).mean()
    expected = candidate_probability(similarity, preset.bands, preset.rows)
    deviation = (expected * (1 - expected) / len(pairs)) ** 0.5
    assert measured == pytest.approx(expected, abs=4 * deviation + 1e-9)


def test_the_default_preset_has_the_published_s_curve() -> None:
    preset = PRESETS["fineweb"]  # published: 56, 77, 92 and 98.8 % at 0.7, 0.75, 0.8 and 0.85
    assert [round(preset.recall(s), 3) for s in (0.7, 0.75, 0.8, 0.85)] == [0.565, 0.772, 0.924, 0.988]


def test_band_keys_agree_exactly_where_the_band_and_the_salt_agree() -> None:
    minima = np.array([[1, 2, 3, 4], [9, 2, 3, 4], [1, 2, 9, 9], [1, 2, 3, 4]], np.uint32)
    salts = np.array([0, 0, 0, 5], np.uint64)
    first, second = band_keys(minima, 0, 2, salts), band_keys(minima, 2, 2, salts)
    assert first[0] == first[2] != first[1]
    assert second[0] == second[1] != second[2]
    assert first[3] != first[0]
    assert not set(first) & set(second)
