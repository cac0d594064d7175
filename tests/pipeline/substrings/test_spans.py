from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.substrings.spans import marked_spans, without_spans

from .corpus import joined


def spans_of(texts: list[str], copies: list[tuple[int, int, int, int]], min_bytes: int) -> list[list[int]]:
    data, positions = joined(texts)
    return marked_spans(data, positions, np.array(copies, np.int64).reshape(-1, 4), min_bytes).tolist()


def test_windows_on_one_diagonal_are_one_span_with_the_fewest_occurrences() -> None:
    assert spans_of(["x" * 40], [(6, 3, 1006, 5), (9, 2, 1009, 3)], 8) == [[0, 6, 18, 1006, 3]]


def test_a_run_from_two_places_is_two_adjacent_spans() -> None:
    assert spans_of(["x" * 40], [(6, 3, 1006, 5), (12, 1, 2012, 2)], 8) == [[0, 6, 16, 1006, 5], [0, 16, 20, 2016, 2]]


def test_a_run_from_two_neighbouring_documents_is_two_spans_at_their_border() -> None:
    assert spans_of(["x" * 40], [(6, 1, 106, 2), (14, 1, 114, 2)], 8) == [[0, 6, 14, 106, 2], [0, 14, 22, 114, 2]]


def test_spans_of_different_documents_stay_apart() -> None:
    assert spans_of(["x" * 8, "", "x" * 8], [(4, 1, 0, 2), (12, 1, 8, 2)], 8) == [[0, 4, 12, 0, 2], [2, 12, 20, 8, 2]]


def test_ends_inside_a_character_move_inward() -> None:
    # 4 + "a" + 漢 at 5..8 + 8 letters at 8..16 + 漢 at 16..19: bytes 6 to 18 are marked, both characters only in part
    assert spans_of(["a漢bbbbbbbb漢"], [(6, 5, 106, 2)], 8) == [[0, 8, 16, 108, 2]]


def test_a_run_that_is_too_short_on_whole_characters_is_not_marked() -> None:
    assert spans_of(["a漢bbbbbbb漢"], [(6, 2, 106, 2)], 8) == []


def test_the_last_span_may_vanish_when_its_end_moves() -> None:
    # 😀 at 12..16: the second span is its first byte
    assert spans_of(["x" * 8 + "😀"], [(4, 1, 104, 2), (5, 1, 205, 2)], 8) == [[0, 4, 12, 104, 2]]


@given(st.lists(st.lists(st.tuples(st.text("abc", max_size=5), st.booleans()), max_size=5), min_size=1, max_size=5))
def test_texts_without_spans_are_what_python_slices_give(pieces: list[list[tuple[str, bool]]]) -> None:
    data, positions = joined(["".join(text for text, _ in one) for one in pieces])
    spans = []
    for document, one in enumerate(pieces):
        at = int(positions[document])
        for text, marked in one:
            if marked and text:
                spans.append((document, at, at + len(text), 0, 0))
            at += len(text)
    offsets, kept = without_spans(data, positions, np.array(spans, np.int64).reshape(-1, 5))
    found = [kept[a:b].tobytes().decode() for a, b in pairwise(offsets)]
    assert found == ["".join(text for text, marked in one if not marked) for one in pieces]
