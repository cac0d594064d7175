from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqmill.errors import UserError
from seqmill.packing import PackPlan, decompose, load_plan, plan, save_plan
from seqmill.packing.buckets import LEFTOVERS, OVERLONG

Piece = tuple[int, int, int]  # document, first token, one past the last


def cut_by_digits(length: int, longest: int) -> list[int]:
    """The pieces of one document, longest first, by the definition: the binary digits of its pairs."""
    pairs, pieces = max(length - 1, 0), []
    while pairs >= 2 * longest:
        pieces.append(longest)
        pairs -= longest
    digits = bin(pairs)[2:]
    return pieces + [2 ** (len(digits) - 1 - place) for place, digit in enumerate(digits) if digit == "1"]


def expected_pieces(lengths: list[int], shortest: int, longest: int) -> tuple[dict[int, list[Piece]], list[Piece]]:
    """Bucket length -> its pieces in the order of the documents, and the leftovers; overlong ones cut by "longest"."""
    size = shortest
    buckets: dict[int, list[Piece]] = {}
    while size <= longest:
        buckets[size] = []
        size *= 2
    leftovers = []
    for document, length in enumerate(lengths):
        place = 0
        for piece in cut_by_digits(length, longest):
            if piece < shortest:
                leftovers.append((document, place, length - 1))
                break
            buckets[piece].append((document, place, place + piece))
            place += piece
    return buckets, leftovers


def rows_of(packed: PackPlan) -> list[list[Piece]]:
    fragments = list(zip(packed.item.tolist(), packed.start.tolist(), packed.stop.tolist(), strict=True))
    bounds = packed.row_offsets.tolist()
    return [fragments[a:b] for a, b in pairwise(bounds)]


def pieces_by_document(packed: PackPlan) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = {}
    for item, start, stop in zip(packed.item.tolist(), packed.start.tolist(), packed.stop.tolist(), strict=True):
        found.setdefault(item, []).append((start, stop))
    return {item: sorted(pieces) for item, pieces in found.items()}


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[int], int, int]:
    low = draw(st.integers(0, 4))
    high = draw(st.integers(low, 7))
    powers = st.integers(0, high + 3).map(lambda k: 2**k)
    edges = st.tuples(powers, st.integers(-1, 2)).map(sum) | st.sampled_from(
        [0, 1, 2, 2 ** (high + 1) - 1, 2 ** (high + 1), 2 ** (high + 1) + 1, 2 ** (high + 1) + 2, 100 * 2**high]
    )
    return draw(st.lists(edges | st.integers(0, 5 * 2**high), max_size=40)), 2**low, 2**high


@settings(max_examples=120, deadline=None)
@given(instances(), st.sampled_from(LEFTOVERS))
def test_pieces_are_the_binary_digits_of_the_pairs(instance: tuple[list[int], int, int], leftovers: str) -> None:
    lengths, shortest, longest = instance
    packed = decompose(np.array(lengths, np.int64), shortest, longest, "longest", leftovers)
    expected, tails = expected_pieces(lengths, shortest, longest)
    buckets, rows = packed.buckets, rows_of(packed)
    assert buckets
    assert buckets.lengths.tolist() == list(expected)
    for number, (first, last) in enumerate(zip(buckets.bounds[:-1], buckets.bounds[1:], strict=True)):
        full = rows[first : last - (buckets.leftover_rows if number == 0 else 0)]
        assert full == [[piece] for piece in expected[int(buckets.lengths[number])]]
    shared = rows[buckets.rows[0] - buckets.leftover_rows : buckets.rows[0]]
    assert sorted(piece for row in shared for piece in row) == (tails if leftovers != "drop" else [])
    if leftovers == "pad":
        assert shared == [[tail] for tail in tails]
    assert all(0 < sum(stop - start for _, start, stop in row) <= shortest for row in shared)
    if leftovers == "carry_to_packer":
        assert len(shared) == plan([stop - start for _, start, stop in tails], shortest).rows
    assert buckets.leftover_tokens == sum(stop - start for row in shared for _, start, stop in row)


@settings(max_examples=120, deadline=None)
@given(instances(), st.sampled_from(OVERLONG), st.sampled_from(LEFTOVERS), st.integers(0, 3))
def test_every_token_is_an_input_once_or_a_last_target_or_dropped(
    instance: tuple[list[int], int, int], overlong: str, leftovers: str, seed: int
) -> None:
    lengths, shortest, longest = instance
    packed = decompose(np.array(lengths, np.int64), shortest, longest, overlong, leftovers, seed)
    assert packed.buckets
    found, dropped, single, truncated = pieces_by_document(packed), 0, 0, 0
    for document, length in enumerate(lengths):
        pieces = found.pop(document, [])
        kept = max(length - 1, 0)
        if leftovers == "drop":
            kept = kept // shortest * shortest
        place = 0
        for start, stop in pieces:  # they tile the document from its first token
            assert start == place
            place = stop
        assert place == kept
        dropped += length - (kept + 1 if kept else 0)
        single += bool(length) and not kept
        truncated += 0 < kept < length - 1
    assert not found
    assert packed.dropped_tokens == dropped
    assert (packed.dropped_documents, packed.truncated_documents) == (single, truncated)
    assert packed.tokens + packed.target_only_tokens + packed.dropped_tokens == sum(lengths)
    assert packed.buckets.tokens == packed.tokens == int((packed.stop - packed.start).sum())
    assert packed.efficiency == pytest.approx(packed.tokens / packed.buckets.places if packed.rows else 1.0)
    assert packed.lower_bound <= packed.rows == sum(packed.buckets.rows)
    assert packed.split_documents == sum(len(pieces) > 1 for pieces in pieces_by_document(packed).values())
    assert packed.empty_documents == lengths.count(0)


@pytest.mark.parametrize("overlong", OVERLONG)
def test_what_is_left_of_an_overlong_document_is_cut_by_digits(overlong: str) -> None:
    """Whatever lengths are chosen before, the last 2 * longest - 1 pairs or fewer follow the definition."""
    lengths = np.random.default_rng(0).integers(0, 600, 400)
    packed = decompose(lengths, 4, 32, overlong, seed=7)
    for document, pieces in pieces_by_document(packed).items():
        end = int(lengths[document]) - 1
        tail = next(number for number, (start, _) in enumerate(pieces) if end - start < 64)
        sizes = [stop - start for start, stop in pieces[tail:] if stop - start >= 4]
        assert sizes == [size for size in cut_by_digits(end - pieces[tail][0] + 1, 32) if size >= 4]
        assert {stop - start for start, stop in pieces[:tail]} <= {4, 8, 16, 32}


def test_equal_tokens_gives_each_bucket_the_same_of_overlong_documents() -> None:
    lengths = [64 * 100 + 1] * 50  # what remains after the draws is less than two longest pieces
    packed = decompose(lengths, 8, 64, "equal_tokens")
    given = dict.fromkeys((8, 16, 32, 64), 0)
    for pieces in pieces_by_document(packed).values():
        for start, stop in pieces:
            if 6400 - start >= 128:
                given[stop - start] += stop - start
    assert sum(given.values()) > 250_000
    assert max(given.values()) - min(given.values()) <= 64


def test_random_pieces_of_overlong_documents_have_odds_of_one_over_their_length() -> None:
    packed = decompose([4_000_001], 8, 64, "seeded_random", seed=3)
    sizes = (packed.stop - packed.start)[packed.start < 3_999_800]
    counts = {size: int((sizes == size).sum()) for size in (8, 16, 32, 64)}
    assert sum(counts.values()) == len(sizes) > 200_000
    for size, count in counts.items():
        assert abs(size * count / 1_000_000 - 1) < 0.02, counts
    again = decompose([4_000_001], 8, 64, "seeded_random", seed=3)
    other = decompose([4_000_001], 8, 64, "seeded_random", seed=4)
    assert np.array_equal(packed.start, again.start)
    assert not np.array_equal(packed.start, other.start)


def test_documents_do_not_share_their_random_cuts() -> None:
    cuts = pieces_by_document(decompose([3000] * 20, 8, 64, "seeded_random"))
    assert len({tuple(pieces) for pieces in cuts.values()}) == 20


def test_a_decomposition_of_an_earlier_version_is_kept() -> None:
    """Golden values: a change here changes the bytes of every packed dataset with buckets."""
    packed = decompose([14, 0, 1, 20, 80], 2, 8, "seeded_random", seed=1)
    assert packed.buckets
    assert (packed.buckets.rows, packed.buckets.leftover_rows) == ((14, 9, 6), 2)
    assert packed.start[:16].tolist() == [16, 12, 14, 16, 22, 24, 26, 28, 30, 48, 58, 60, 18, 12, 78, 8]
    assert packed.start[16:].tolist() == [0, 12, 0, 18, 32, 36, 62, 74, 0, 4, 4, 40, 50, 66]


@pytest.mark.parametrize("lengths", [[], [0, 0], [1, 1, 0]])
@pytest.mark.parametrize("leftovers", LEFTOVERS)
def test_documents_without_a_pair_give_no_rows(lengths: list[int], leftovers: str) -> None:
    packed = decompose(np.array(lengths, np.int64), 4, 16, leftovers=leftovers)
    assert packed.buckets
    assert (packed.rows, packed.tokens, packed.lower_bound, packed.efficiency) == (0, 0, 0, 1.0)
    assert packed.buckets.rows == (0, 0, 0)
    assert (packed.dropped_documents, packed.dropped_tokens) == (lengths.count(1), lengths.count(1))


def test_one_bucket_of_one_token_has_no_leftovers() -> None:
    packed = decompose([5, 2], 1, 1)
    assert rows_of(packed) == [[(0, 0, 1)], [(0, 1, 2)], [(0, 2, 3)], [(0, 3, 4)], [(1, 0, 1)]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], 3, 8), "a shortest bucket of 3 tokens: rows of buckets are powers of two"),
        (([1], 4, 12), "a longest bucket of 12 tokens"),
        (([1], 0, 8), "a shortest bucket of 0 tokens"),
        (([1], 4, 1 << 25), "a longest bucket of 33554432 tokens"),
        (([1], 16, 8), "the shortest bucket of 16 tokens exceeds the longest of 8"),
        (([1], 4, 8, "shortest"), "policy 'shortest' for overlong documents; choose one of longest, equal_tokens"),
        (([1], 4, 8, "longest", "keep"), "policy 'keep' for leftovers; choose one of carry_to_packer, drop, pad"),
        (([1, -2], 4, 8), "document 1 has length -2"),
    ],
)
def test_impossible_arguments_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        decompose(*arguments)


def test_a_saved_decomposition_is_read_back_whole(tmp_path: Path) -> None:
    packed = decompose(np.random.default_rng(5).integers(0, 50, 300), 4, 16, "seeded_random", "pad", seed=9)
    save_plan(tmp_path / "plan.arrow", packed)
    loaded = load_plan(tmp_path / "plan.arrow")
    assert loaded.buckets == packed.buckets
    for name, value in asdict(packed).items():
        if name != "buckets":
            assert np.array_equal(getattr(loaded, name), value), name
    assert [packed.room(0), packed.room(packed.rows - 1)] == [4, 16]
