from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmill.pipeline.substrings.anchors import BASE, FIRST, KEY, LAST, PLACE, gram_bytes, least_grams
from seqmill.pipeline.substrings.copies import find_copies

from .corpus import joined, repetitive_texts


def copies_among(texts: Sequence[str], min_bytes: int, one_group: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The bytes, and the copies among all their anchors: by key, or all in one group, as if all keys were equal."""
    data, positions = joined(texts)
    rows = least_grams(data, positions, min_bytes, gram_bytes(min_bytes))
    keys = np.zeros(len(rows), np.int64) if one_group else rows[:, KEY]
    order = np.argsort(keys, kind="stable")
    rows, keys = rows[order], keys[order]
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(keys)) + 1, [len(rows)]]) if len(rows) else np.zeros(1, int)
    addresses = (rows[:, PLACE] + data.ctypes.data).astype(np.uint64)
    nearest = (rows[:, PLACE] - rows[:, LAST]).astype(np.uint16)
    farthest = (rows[:, PLACE] - rows[:, FIRST]).astype(np.uint16)
    places = np.ascontiguousarray(rows[:, PLACE])
    return data, find_copies(bounds, addresses, places, nearest, farthest, min_bytes)


def copied_windows(copies: np.ndarray) -> dict[int, int]:
    """Window -> the earlier place it equals."""
    found = {int(start) + k: int(source) + k for start, windows, source, _ in copies for k in range(windows)}
    assert len(found) == copies[:, 1].sum()
    return found


@pytest.mark.parametrize("one_group", [False, True])
@given(texts=repetitive_texts(), min_bytes=st.integers(8, 17))
def test_a_window_is_a_copy_if_and_only_if_it_occurs_before(one_group: bool, texts: list[str], min_bytes: int) -> None:
    data, copies = copies_among(texts, min_bytes, one_group)
    found = copied_windows(copies)
    _, positions = joined(texts)
    met: set[bytes] = set()
    for begin, end in zip(positions[:-1].tolist(), positions[1:].tolist(), strict=True):
        for start in range(begin, end - min_bytes + 1):
            window = data[start : start + min_bytes].tobytes()
            assert (start in found) == (window in met)
            if start in found:
                assert found[start] < start
                assert data[found[start] : found[start] + min_bytes].tobytes() == window
            met.add(window)


def test_occurrences_count_the_first_and_its_copies() -> None:
    phrase = "the quick brown fox jumps over the lazy dog"
    _, copies = copies_among([f"{k}{phrase}{k}" for k in range(10, 17)], 40)
    assert set(copies[:, 3].tolist()) == {7}


def thue_morse(length: int) -> str:
    return "".join("ab"[bin(k).count("1") % 2] for k in range(length))


def polynomial(text: str) -> int:
    return sum(byte * pow(int(BASE), k, 2**64) for k, byte in enumerate(text.encode())) % 2**64


def test_texts_of_equal_hash_are_no_copies_of_each_other() -> None:
    # the known weakness of polynomial hashes modulo 2**64: a Thue-Morse word and its complement collide for any base
    word = thue_morse(2048)
    complement = word.translate(str.maketrans("ab", "ba"))
    assert polynomial(word) == polynomial(complement)
    assert word != complement
    before, behind = "0123456789" * 60, "9876543210" * 60
    texts = [before + one + behind for one in (word, complement, complement)]
    _, copies = copies_among(texts, 3000)
    _, positions = joined(texts)
    third = positions[2]
    assert copies[:, 0].min() == third  # no window with the word is a copy in the second text, all are in the third
    assert copies[:, 1].sum() == len(texts[2]) - 3000 + 1
    assert (third - copies[:, 2]).max() <= len(texts[1])
