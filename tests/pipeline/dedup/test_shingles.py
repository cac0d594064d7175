import random
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.dedup.characters import UNITS, UNSETTLED, Normaliser, character_tables, combining_classes
from seqmill.pipeline.dedup.shingles import collapse_white_space, may_be_space, may_not_be_nfc, shingle_sets
from seqmill.pipeline.dedup.sketch import nfc
from seqmill.pipeline.documents import utf8_buffers

from . import oracle

MIXED = st.text(st.sampled_from("aAbB_0 \n\t,.'ςΣσİéE\u0301\u00a0\u3000日本ไท한글हिन्दी🦆\u200d"), max_size=40)
TEXTS = st.lists(st.one_of(MIXED, st.text(max_size=30)), min_size=1, max_size=6)


def sets_of(texts: list[str], ngram: int) -> list[set[int]]:
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    ends, hashes = shingle_sets(data, offsets, *character_tables(), False, ngram)
    found = [hashes[ends[d] : ends[d + 1]] for d in range(len(texts))]
    assert all(np.all(np.diff(one.astype(object)) > 0) for one in found)  # sorted and distinct
    return [{int(h) for h in one} for one in found]


@given(TEXTS, st.integers(1, 6))
def test_shingle_hashes_equal_the_oracle(texts: list[str], ngram: int) -> None:
    expected = [set(oracle.shingle_hashes(text, ngram)) for text in texts]
    assert sets_of(texts, ngram) == expected


def test_words_are_folded_and_unspaced_scripts_go_by_character() -> None:
    assert oracle.words("The CAT_9's Σίσυφος, 日本 हिन्दी e\u0301") == [
        "the", "cat_9", "s", "σίσυφοσ", "日", "本", "हिन्दी", "e\u0301",
    ]  # fmt: skip
    assert sets_of(["ΣΊΣΥΦΟΣ one"], 2) == sets_of(["σίσυφος, ONE!"], 2)


def test_a_document_of_few_words_goes_by_its_characters() -> None:
    short, same, other, symbols, none = sets_of(["just two", "Just  two", "just", "🎉🎊?!", " \n"], 5)
    assert short == same
    assert len(short) == 3  # justt, usttw, sttwo
    assert len(other) == len(symbols) == 1  # fewer characters than a shingle: one of all of them
    assert none == set()


def normalised(texts: list[str], normaliser: Normaliser, ngram: int = 2) -> list[set[int]]:
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    spaced = normaliser.unit == "character"
    ends, hashes = shingle_sets(data, offsets, *character_tables(normaliser), spaced, ngram)
    return [{int(h) for h in hashes[ends[d] : ends[d + 1]]} for d in range(len(texts))]


@pytest.mark.parametrize(
    ("normaliser", "a", "b"),
    [
        (Normaliser(fold_numbers=True), "costs 3.14 or 2,000 in 2024", "costs 0 or 7 in 1"),
        (Normaliser(fold_accents=True), "café naïve Ärger", "cafe nai\u0308ve arger"),
        (Normaliser(fold_underscore=True), "one_two three", "one two three"),
        (Normaliser(unit="run"), "A-b,  c d", "a-b, c d"),
        (Normaliser(unit="character"), "Don't  stop - now", "dont stop now"),
    ],
)
def test_a_normaliser_makes_texts_equal_that_the_plain_one_tells_apart(normaliser: Normaliser, a: str, b: str) -> None:
    left, right = normalised([a, b], normaliser)
    assert left == right
    if normaliser.unit == "word":
        left, right = normalised([a, b], Normaliser())
        assert left != right


def test_numbers_are_folded_up_to_one_decimal_point_as_words_of_their_own_or_within() -> None:
    fold = Normaliser(fold_numbers=True)
    one, two, three = normalised(["v1.2.3 x y z", "v0 9 x y z", "v0.0 x y z"], fold)
    assert one == two != three
    runs, letters = normalised(["a1b22 c", "a0b0 c"], fold)
    assert runs == letters


def test_case_and_punctuation_count_between_white_space_when_nothing_is_folded() -> None:
    a, b, c = normalised(["A b", "a b", "A, b"], Normaliser(unit="run", fold_case=False))
    assert len({frozenset(one) for one in (a, b, c)}) == 3


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("length", [4094, 4095, 4096, 4097, 4099, 4100, 4101, 12_305])
def test_a_document_longer_than_the_buffer_has_the_shingles_of_its_parts(unit: str, length: int) -> None:
    draw = random.Random(length)
    units = [chr(draw.randrange(97, 123)) for _ in range(length)]
    text = "".join(units) if unit == "character" else "  ".join(units)
    (whole,) = normalised([text], Normaliser(unit=unit), 5)
    joined = "" if unit == "character" else " "
    pieces = [joined.join(units[k : k + 5]) for k in range(length - 4)]
    assert whole == set().union(*normalised(pieces, Normaliser(unit=unit), 5))


def test_white_space_counts_between_characters_wherever_the_buffer_ends() -> None:
    draw = random.Random(5)
    text = "".join(draw.choice("ab é日 ") for _ in range(20_000))
    collapsed = " ".join(text.split())
    (whole,) = normalised([text], Normaliser(unit="character"), 3)
    pieces = {collapsed[k : k + 3] for k in range(len(collapsed) - 2)}
    inner = [piece for piece in pieces if piece == piece.strip()]
    assert set().union(*normalised(inner, Normaliser(unit="character"), 3)) <= whole
    assert len(whole) == len(pieces)


@given(TEXTS)
def test_white_space_is_collapsed_as_split_and_join_do(texts: list[str]) -> None:
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    ends, collapsed = collapse_white_space(data, offsets, character_tables()[0], may_be_space())
    found = [collapsed[ends[d] : ends[d + 1]].tobytes().decode() for d in range(len(texts))]
    assert found == [" ".join(text.split()) for text in texts]


MARKED = st.text(st.sampled_from("ab é語한각กिं़्\u0301\u0323\u0345\u05b0\u05bc\u0e38\u0e48\u0f71\u0f72"))


@given(st.lists(st.text() | MARKED, min_size=1, max_size=5))
def test_texts_are_put_into_nfc_as_unicodedata_does(texts: list[str]) -> None:
    offsets, data = nfc(pa.array(texts, pa.large_string()))
    found = [data[offsets[d] : offsets[d + 1]].tobytes().decode() for d in range(len(texts))]
    assert found == [unicodedata.normalize("NFC", text) for text in texts]


def test_marks_out_of_order_are_doubtful_and_settled_ones_in_order_are_not() -> None:
    ordered, swapped = "\u05d0\u05b0\u0591", "\u05d0\u0591\u05b0"  # marks of the classes 10 and 220; none composes
    assert [unicodedata.is_normalized("NFC", text) for text in (ordered, swapped)] == [True, False]
    texts = [ordered, swapped, "a" * 16 + swapped, "हिन्दी", "a" * 40, "a" * 20 + "\u0301"]
    offsets, data = utf8_buffers(pa.array(texts, pa.large_string()))
    assert may_not_be_nfc(data, offsets, combining_classes()).tolist() == [False, True, True, False, False, True]


def test_no_character_that_nfc_changes_is_taken_for_settled() -> None:
    settled = np.flatnonzero(combining_classes() != UNSETTLED).tolist()
    characters = [chr(code) for code in settled if not 0xD800 <= code < 0xE000]
    assert all(unicodedata.is_normalized("NFC", character) for character in characters)
    for before in ("a", "\u1100", "\uac00", "\u0b47"):  # letters that take marks, jamo and vowel signs
        assert all(unicodedata.is_normalized("NFC", before + character) for character in characters)
