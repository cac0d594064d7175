"""That no thread changes a plan; what is in one is tested in test_pack_plan and test_best_fit."""

import hashlib

import numpy as np
import pytest

from seqmill.packing import plan, whole_corpus
from seqmill.packing.permutation import permute, permute_range, round_keys

GOLDEN = {"split": "70a2012d859cc1ba", "truncate": "643c3589334f4b6d", "drop": "c5552aff80ed4395"}


@pytest.mark.parametrize("capacity", [5, 128, 3000])
@pytest.mark.parametrize("overflow", ["split", "truncate", "drop"])
def test_any_number_of_threads_gives_the_same_plan(
    capacity: int, overflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1.5, 5000).astype(np.int64)
    one = plan(lengths, capacity, overflow, seed=3, threads=1)
    monkeypatch.setattr(whole_corpus, "_CHUNK", 100)
    for threads in (1, 2, 3, 7):
        other = plan(lengths, capacity, overflow, seed=3, threads=threads)
        for name in ("row_offsets", "item", "start", "stop"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), (threads, name)


def test_chunks_cover_everything_once() -> None:
    for count in (0, 1, 99, 100, 101, 12345):
        chunks = whole_corpus._chunks(count, 100, 7)
        assert [i for chunk in chunks for i in range(count)[chunk]] == list(range(count))
        assert len(chunks) <= 7


def test_the_plan_of_a_corpus_is_that_of_the_first_version() -> None:
    """Golden: long rows of short documents, groups of many sizes, and pieces with and without tails."""
    lengths = np.minimum(np.random.default_rng(7).lognormal(6.0, 1.5, 100_000).astype(np.int64), 200_000)
    digests = {}
    for overflow in ("split", "truncate", "drop"):
        packed = plan(lengths, 2048, overflow, seed=5)
        arrays = (packed.row_offsets, packed.item, packed.start, packed.stop)
        digests[overflow] = hashlib.sha256(b"".join(array.astype("<i8").tobytes() for array in arrays)).hexdigest()[:16]
    assert digests == GOLDEN


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 1024, 1025])
def test_a_part_of_a_permutation_is_permuted_alike(count: int) -> None:
    keys = round_keys("part", count)
    for first, size in ((0, count), (count // 3, count - count // 3), (count, 0)):
        part = np.empty(size, np.int32)
        permute_range(first, count, keys, part)
        assert part.tolist() == [permute(index, count, keys) for index in range(first, first + size)]
