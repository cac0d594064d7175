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
    return signatures(data, offsets, *character_tables(), False, ngram, *hash_family(permutations, seed))


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


@pytest.mark.parametrize(
    ("name", "recalls"),
    [  # at 0.7, 0.8 and 0.9, to three places, as the formula gives them for the published bands and rows
        ("slimpajama", (0.084, 0.399, 0.929)),
        ("lee", (0.302, 0.995, 1.0)),
        ("dclm", (0.358, 0.964, 1.0)),
        ("data-juicer", (0.850, 0.997, 1.0)),
    ],
)
def test_every_preset_has_the_s_curve_of_its_bands(name: str, recalls: tuple[float, ...]) -> None:
    assert tuple(round(PRESETS[name].recall(s), 3) for s in (0.7, 0.8, 0.9)) == pytest.approx(recalls, abs=0.0011)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab c"), max_size=12), min_size=2, max_size=6))
def test_band_keys_agree_exactly_where_the_rows_of_a_band_agree(texts: list[str]) -> None:
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    keys, counts = band_keys(data, offsets, *character_tables(), False, 1, *hash_family(12, 1), 4)
    minima, same_counts = signatures_of(texts, 1, 12)
    assert counts.tolist() == same_counts.tolist()
    for a in range(len(texts)):
        for b in range(len(texts)):
            rows = (minima[a] == minima[b]).reshape(4, 3).all(axis=1)
            assert (keys[a] == keys[b]).tolist() == rows.tolist()
    assert len(set(keys.ravel().tolist())) == sum(len(set(keys[:, band].tolist())) for band in range(4))
