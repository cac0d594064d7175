"""NCD and nearest neighbours beside the formula written out text by text."""

import gzip
import math
import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.compress import distance
from seqmill.compress.distance import Scores, classify, distances, nearest_classes, score_classes, split_by_group
from seqmill.errors import UserError
from seqmill.tokenizers_ext.byte_level import ByteEncoder

texts = st.lists(st.binary(max_size=40), max_size=6)
labels = st.lists(st.sampled_from("abc"), min_size=1, max_size=8)


def slow_distance(x: bytes, y: bytes, separator: bytes) -> float:
    def length(text: bytes) -> int:
        return len(gzip.compress(text, 6))

    return (length(x + separator + y) - min(length(x), length(y))) / max(length(x), length(y))


@settings(deadline=None)
@given(texts, texts, st.sampled_from([b"", b" ", b"\n"]), st.integers(1, 3))
def test_distances_are_the_formula(x: list[bytes], y: list[bytes], separator: bytes, threads: int) -> None:
    found = distances(x, y, distance.COMPRESSORS["gzip:6"](), separator, threads)
    assert found.shape == (len(x), len(y))
    assert found.tolist() == [[slow_distance(a, b, separator) for b in y] for a in x]


@pytest.mark.parametrize("name", distance.COMPRESSORS)
def test_what_repeats_is_nearer_than_what_does_not_for_every_compressor(name: str) -> None:
    rng = np.random.default_rng(1)
    text, other = rng.bytes(400), rng.bytes(400)
    same, different = distances([text], [text, other], distance.COMPRESSORS[name]())[0]
    assert same < 0.4 < 0.8 < different


def test_every_text_is_compressed_alone_once_and_every_pair_once() -> None:
    seen: Counter[bytes] = Counter()

    def lengths(texts: Sequence[bytes]) -> np.ndarray:
        seen.update(texts)
        return np.array([len(text) for text in texts], np.float64)

    x, y = [b"a%d" % k for k in range(70)], [b"b%d" % k for k in range(80)]
    distances(x, y, lengths, threads=2)
    assert seen == Counter([*x, *y, *(a + b" " + b for a in x for b in y)])


def test_counts_of_ids_are_those_of_the_tokenizer_and_entropies_are_of_the_ids_of_each_text() -> None:
    encode = ByteEncoder().encode
    several = [b"ACGTACGT", b"", b"A", b"AAAA", b"NNACGN"]
    ids = encode(pa.array(several, pa.large_binary())).to_pylist()
    assert distance.id_counts(encode)(several).tolist() == [8, 0, 1, 4, 6]
    expected = [-sum(n * math.log2(n / len(own)) for n in Counter(own).values()) for own in ids]
    assert distance.id_entropies(encode)(several) == pytest.approx(expected)


def test_counting_ids_of_a_tokenizer_that_learns_nothing_tells_nothing() -> None:
    found = distances([b"abc", b"xyz"], [b"abc", b"xyz"], distance.id_counts(ByteEncoder().encode), b"")
    assert found.tolist() == [[1, 1], [1, 1]]


def test_entropies_of_ids_tell_what_two_texts_share() -> None:
    found = distances([b"abab", b"xyxy"], [b"abab", b"xyxy"], distance.id_entropies(ByteEncoder().encode), b"")
    assert found.tolist() == [[1, 3], [3, 1]]  # four ids at 1 bit; eight at 1 bit together, or eight at 2 bits


def test_texts_without_any_length_are_at_distance_zero() -> None:
    assert distances([b"", b"a"], [b""], distance.id_counts(ByteEncoder().encode), b"").tolist() == [[0], [1]]


@given(st.data(), labels)
def test_neighbours_vote_as_written_out(draw: st.DataObject, known: list[str]) -> None:
    row = draw.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(known), max_size=len(known)))
    k = draw.draw(st.integers(1, len(known)))
    nearest = sorted(range(len(known)), key=lambda index: (row[index], index))[:k]
    votes = Counter(known[index] for index in nearest)
    leaders = {label for label in votes if votes[label] == max(votes.values())}
    expected = next(known[index] for index in nearest if known[index] in leaders)
    assert nearest_classes(np.array([row]), known, k) == [expected]


def test_ties_are_broken_by_the_nearest_neighbour_then_by_the_order_of_training_texts() -> None:
    assert nearest_classes(np.array([[0.3, 0.1, 0.2, 0.4]]), ["a", "b", "a", "b"], 4) == ["b"]
    assert nearest_classes(np.array([[0.5, 0.5]]), ["b", "a"], 1) == ["b"]
    assert nearest_classes(np.array([[0.5, 0.5]]), ["b", "a"], 2) == ["b"]


@pytest.mark.parametrize("k", [0, 3])
def test_more_neighbours_than_there_are_texts_are_refused(k: int) -> None:
    with pytest.raises(UserError, match=f"k = {k}: choose from 1 to the number of training texts, 2"):
        nearest_classes(np.zeros((1, 2)), ["a", "b"], k)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=40), st.floats(0.05, 0.95))
def test_a_split_has_every_class_on_both_sides_and_divides_no_group(rows: list[tuple[str, int]], share: float) -> None:
    rows += [(label, group) for label in "abc" for group in (6, 7)]
    labels, groups = [label for label, _ in rows], [f"{label}{group}" for label, group in rows]
    split = split_by_group(labels, groups, share, seed=3)
    train, test = split.train.tolist(), split.test.tolist()
    assert sorted(train + test) == list(range(len(rows)))
    assert train == sorted(train)
    assert test == sorted(test)
    assert not {groups[i] for i in train} & {groups[i] for i in test}
    for label in "abc":
        own = {group for group in groups if group[0] == label}
        held = {groups[i] for i in test if labels[i] == label}
        assert len(held) == min(max(1, round(share * len(own))), len(own) - 1)


def test_a_split_depends_on_its_seed_and_not_on_the_order_of_texts() -> None:
    labels, groups = ["a"] * 50, [f"g{k:02}" for k in range(50)]

    def held(seed: int, order: int) -> set[str]:
        return {groups[::order][i] for i in split_by_group(labels, groups[::order], 0.3, seed).test}

    assert held(1, 1) == held(1, -1)
    assert held(1, 1) != held(2, 1)


@pytest.mark.parametrize(
    ("labels", "groups", "share", "told"),
    [
        ("aa", "xx", 0.5, "class 'a' has 1 group"),
        ("ab", "xx", 0.5, "group 'x' lies in classes"),
        ("aa", "xy", 0.0, "test_share = 0.0"),
        ("aa", "xy", 1.0, "test_share = 1.0"),
    ],
)
def test_a_split_that_cannot_be_is_refused(labels: str, groups: str, share: float, told: str) -> None:
    with pytest.raises(UserError, match=told):
        split_by_group(labels, groups, share, 1)


def test_scores_worked_by_hand() -> None:
    assert score_classes("aab", "aab") == Scores(1.0, 1.0)
    # a: 1 right, 1 missed; b: 1 right, 1 wrongly; c: never there, guessed once
    found = score_classes(["a", "a", "b", "b"], ["a", "b", "b", "c"])
    assert found == Scores(0.5, pytest.approx((2 / 3 + 1 / 2 + 0) / 3))
    with pytest.raises(UserError, match="no text to score"):
        score_classes([], [])


def test_texts_are_told_apart_by_what_they_repeat() -> None:
    rng = np.random.default_rng(2)
    families = [rng.bytes(200) for _ in range(3)]
    texts, labels = [], []
    for k in range(60):
        mutated = bytearray(families[k % 3])
        mutated[rng.integers(200)] = 0
        texts.append(bytes(mutated))
        labels.append("abc"[k % 3])
    split = split_by_group(labels, [f"{label}{k}" for k, label in enumerate(labels)], 0.25, seed=1)
    for k, scores in classify(texts, labels, split, distance.COMPRESSORS["zstd:3"](), neighbours=(1, 5)):
        assert (k, scores) == (k, Scores(1.0, 1.0))


def test_threads_give_the_same_distances() -> None:
    rng = np.random.default_rng(4)
    several = [rng.bytes(100) for _ in range(5)]
    for name in distance.COMPRESSORS:
        lengths = distance.COMPRESSORS[name]()
        assert (distances(several, several, lengths) == distances(several, several, lengths, threads=3)).all(), name


def test_rows_are_compressed_side_by_side() -> None:
    """Each of two rows waits for the other: one after the other would break the barrier."""
    both = threading.Barrier(2, timeout=20)

    def lengths(texts: Sequence[bytes]) -> np.ndarray:
        if b" " in texts[0]:
            both.wait()
        return np.ones(len(texts))

    assert distances([b"a", b"b"], [b"c"], lengths, threads=2).tolist() == [[0], [0]]
