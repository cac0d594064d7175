import random
from itertools import pairwise
from string import ascii_letters

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.substrings.anchors import FIRST, KEY, LAST, PLACE, gram_bytes, least_grams, take_repeats

from .corpus import joined, repetitive_texts


@given(repetitive_texts(), st.integers(8, 17))
def test_equal_windows_have_equal_grams_at_equal_distances_as_anchors(texts: list[str], min_bytes: int) -> None:
    data, positions = joined(texts)
    gram = gram_bytes(min_bytes)
    rows = least_grams(data, positions, min_bytes, gram)
    anchor_of = {window: row for row in rows for window in range(row[FIRST], row[LAST] + 1)}
    assert sum(row[LAST] - row[FIRST] + 1 for row in rows) == len(anchor_of)
    windows = [start for begin, end in pairwise(positions.tolist()) for start in range(begin, end - min_bytes + 1)]
    assert sorted(anchor_of) == windows
    met: dict[bytes, tuple[int, int]] = {}
    for start in windows:
        row = anchor_of[start]
        assert start <= row[PLACE] <= start + min_bytes - gram
        identity = (row[PLACE] - start, row[KEY])
        assert met.setdefault(data[start : start + min_bytes].tobytes(), identity) == identity


@given(repetitive_texts(), st.integers(8, 17))
def test_keys_tell_grams_apart(texts: list[str], min_bytes: int) -> None:
    data, positions = joined(texts)
    gram = gram_bytes(min_bytes)
    rows = least_grams(data, positions, min_bytes, gram)
    grams = [data[row[PLACE] : row[PLACE] + gram].tobytes() for row in rows]
    assert (
        len(set(grams)) == len(set(rows[:, KEY].tolist())) == len(set(zip(grams, rows[:, KEY].tolist(), strict=True)))
    )


def test_ordinary_text_has_one_anchor_for_about_a_quarter_of_a_window() -> None:
    data, positions = joined(["".join(random.Random(1).choices("abcdefgh ", k=100_000))])
    count = len(least_grams(data, positions, 200, 100))
    assert 0.8 < count / (100_000 * 2 / 102) < 1.2  # Schleimer et al. 2003, theorem 1: 2 / (grams in a window + 1)


def test_text_of_a_short_period_needs_no_more_anchors_the_longer_it_is() -> None:
    for unit in ("a", "ab", "xyz", ascii_letters):
        texts = [f"begin {unit * (20_000 // len(unit))} end"]
        data, positions = joined(texts)
        rows = least_grams(data, positions, 200, 100)
        needed, repeats = take_repeats(data, rows, 200)
        assert needed.sum() < 20
        assert len(repeats) == 1
        first, windows, earlier = repeats[0]
        assert windows > 19_000
        length = windows + 199
        assert np.array_equal(data[first : first + length], data[earlier : earlier + length])
        assert first - earlier == len(unit)
