import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqmill.compress import window_coder
from seqmill.compress.byte_model import ByteModel, quantise
from seqmill.compress.ngram_model import ngram_model
from seqmill.compress.texts import Texts
from seqmill.compress.tree_model import TreeModel
from seqmill.compress.window_coder import WindowCoder
from seqmill.errors import UserError

HARD = [
    b"",
    b"\x00",
    bytes(range(256)) * 3,
    bytes(700),
    b"\xff" * 300,
    "naïve 日本語 русский עברית 🏳️‍🌈 e\u0301".encode(),
    "кириллица".encode()[1:] + b"\xc3\xe2\x82" + b"\xed\xa0\x80" + b"\xf8\x88",
    random.Random(1).randbytes(300),
]


@dataclass(frozen=True)
class Fixed:
    """A model of the same probabilities everywhere."""

    weights: tuple[tuple[int, float], ...]  # (byte, probability)
    precision: int = 9
    fingerprint: str = "fixed"

    def frequencies(self, contexts: Sequence[bytes]) -> np.ndarray:
        row = np.zeros((1, 256))
        for byte, weight in self.weights:
            row[0, byte] = weight
        return np.repeat(quantise(row, self.precision), len(contexts), axis=0)


ABC = Fixed(((ord("a"), 0.5), (ord("b"), 0.25), (ord("c"), 0.25)))


def plain_numbers(model: ByteModel, whole: int, text: bytes, resets: bool = True) -> list[int]:
    """The stop-cell code byte by byte, in Python's integers."""

    @cache
    def cumulative(context: bytes) -> list[int]:
        return [0, *itertools.accumulate(model.frequencies([context])[0].tolist())]

    numbers: list[int] = []
    start, left, begin, at = 0, whole, 0, 0
    while at < len(text):
        at_root = at == begin
        m, b = (whole, 0) if at_root else (left - 1, start + 1)
        c = cumulative(text[begin:at] if resets else text[max(at - 64, 0) : at])
        low, high = m * c[text[at]] >> model.precision, m * c[text[at] + 1] >> model.precision
        if high > low:
            start, left, at = b + low, high - low, at + 1
        else:
            numbers.append(start)
            begin = at
    return numbers + [start] * (begin < at)


@pytest.fixture(scope="module")
def small(texts: Texts) -> TreeModel:
    return ngram_model(texts, order=2, nodes=20_000, precision=10)


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("window", [10, 16, 24, 37, 48, 64, 128])
def test_windows_are_those_of_the_plain_code_and_come_back(
    window: int, resets: bool, small: TreeModel, documents: list[bytes]
) -> None:
    coder = WindowCoder(small, window, view=None if window <= 64 else 256, resets_model=resets)
    size = 400 if resets else 100  # a model that goes on is asked about one context at a time
    for text in [text[:size] for text in (*HARD, documents[0], documents[-1])]:
        ids = coder.encode(text)
        numbers = plain_numbers(small, coder.numbers, text, resets)
        if window <= 64:
            assert ids.tolist() == numbers
        else:
            assert ids.astype(np.uint8).tobytes() == b"".join(number.to_bytes(16) for number in numbers)
        assert coder.decode(ids) == text


@pytest.mark.parametrize("window", [12, 16, 40, 48])
def test_both_ways_of_computing_give_the_same(window: int, small: TreeModel, documents: list[bytes]) -> None:
    fast, exact = WindowCoder(small, window), WindowCoder(small, window, exact=True)
    assert fast.compiled
    assert not exact.compiled
    for text in [*HARD, documents[3][:500]]:
        ids = fast.encode(text)
        assert np.array_equal(ids, exact.encode(text))
        assert exact.decode(ids) == fast.decode(ids) == text


def test_64_bits_are_used_only_where_they_hold_every_product(texts: Texts) -> None:
    model = ngram_model(texts, order=1, nodes=500, precision=16)
    assert WindowCoder(model, 48, specials=1).compiled
    assert not WindowCoder(model, 48).compiled  # 2**48 << 16 is one too many
    text = b"\xff\xfe\xff" + bytes(100) + b"\xff" * 50
    coder = WindowCoder(model, 48)
    assert coder.encode(text).tolist() == plain_numbers(model, 1 << 48, text)
    coder = WindowCoder(model, 48, specials=1)
    assert coder.encode(text).tolist() == plain_numbers(model, (1 << 48) - 1, text)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=200), st.sampled_from([10, 16, 24, 64, 128]), st.sampled_from([None, 256]))
@example(b"\x00" * 500, 16, None)
def test_any_bytes_come_back(small: TreeModel, text: bytes, window: int, view: int | None) -> None:
    coder = coder_of(small, window, view)
    ids = coder.encode(text)
    assert coder.decode(ids) == text
    assert coder.decode(ids.tolist()) == text


@cache
def coder_of(model: TreeModel, window: int, view: int | None) -> WindowCoder:
    return WindowCoder(model, window, view=view)


def test_all_strings_of_one_and_two_bytes_come_back_and_have_ids_of_their_own(small: TreeModel) -> None:
    strings = [bytes([a]) for a in range(256)] + [bytes(pair) for pair in itertools.product(range(256), repeat=2)]
    texts = Texts.of(strings)
    for window in (16, 32):
        coder = WindowCoder(small, window)
        ids, ends = coder.encode_batch(texts.data, texts.offsets)
        data, offsets = coder.decode_batch(ids, ends)
        assert np.array_equal(data, texts.data)
        assert np.array_equal(offsets, texts.offsets)
        assert len({tuple(ids[a:b].tolist()) for a, b in itertools.pairwise(ends.tolist())}) == len(strings)
        assert ids.max() < coder.numbers


def test_a_long_run_and_random_bytes_come_back(model: TreeModel) -> None:
    for text in (bytes(1_000_000), random.Random(2).randbytes(50_000)):
        coder = WindowCoder(model)
        ids = coder.encode(text)
        assert len(ids) <= len(text)
        assert coder.decode(ids) == text


@pytest.mark.parametrize("view", [None, 256, 65_536])
@pytest.mark.parametrize("window", [16, 24])
def test_a_batch_is_coded_as_its_documents_alone(
    window: int, view: int | None, model: TreeModel, documents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_coder, "BLOCK_BYTES", 300)
    monkeypatch.setattr(window_coder, "TOGETHER", 5)
    parts = [b"", *(document[:100] for document in documents[::4]), b"", *(text[:50] for text in HARD)]
    texts = Texts.of([b"before", *parts])
    coder = WindowCoder(model, window, view=view)
    ids, ends = coder.encode_batch(texts.data, texts.offsets[1:])
    alone = [WindowCoder(model, window, view=view).encode(part) for part in parts]
    assert np.diff(ends).tolist() == [len(found) for found in alone]
    assert np.array_equal(ids, np.concatenate(alone))
    data, offsets = coder.decode_batch(ids, ends)
    assert data.tobytes() == b"".join(parts)
    assert np.array_equal(offsets, texts.offsets[1:] - 6)


def test_contexts_that_are_not_remembered_change_nothing(
    model: TreeModel, documents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = documents[0][:1500]
    expected = WindowCoder(model, 32).encode(text)
    monkeypatch.setattr(window_coder, "KNOWN_CONTEXTS", 3)
    forgetful = WindowCoder(model, 32)
    texts = Texts.of([text, text[7:], text])
    ids, ends = forgetful.encode_batch(texts.data, texts.offsets)
    assert np.array_equal(ids[: ends[1]], expected)
    assert forgetful.decode_batch(ids, ends)[0].tobytes() == texts.data.tobytes()


@pytest.mark.parametrize("window", [16, 32])
def test_after_a_window_the_code_is_that_of_the_rest_alone(
    window: int, model: TreeModel, documents: list[bytes]
) -> None:
    text = documents[2][:400]
    coder = WindowCoder(model, window)
    ids = coder.encode(text)
    for windows in range(len(ids)):
        rest = text[len(coder.decode(ids[:windows])) :]
        assert np.array_equal(coder.encode(rest), ids[windows:])


def test_every_number_of_a_window_is_the_code_of_its_own_text(small: TreeModel) -> None:
    coder = WindowCoder(small, 12)
    numbers = np.arange(coder.numbers)
    texts = coder.decode_batch(numbers, np.arange(len(numbers) + 1))
    ids, ends = coder.encode_batch(*texts)
    assert np.array_equal(ids, numbers)
    assert np.array_equal(ends, np.arange(len(numbers) + 1))


def test_windows_of_eight_bits_and_a_model_of_eight_are_the_bytes_themselves() -> None:
    coder = WindowCoder(Fixed(((65, 1.0),), precision=8), 8)
    for text in HARD:
        assert coder.encode(text).tolist() == list(text)


def test_wider_windows_take_fewer_bits_a_byte_and_never_fewer_than_the_model_needs(
    model: TreeModel, documents: list[bytes]
) -> None:
    texts = Texts.of([document[:700] for document in documents[:15]])
    bits = [
        len(WindowCoder(model, window, view=256).encode_batch(texts.data, texts.offsets)[0]) * 8 / len(texts.data)
        for window in (16, 24, 32, 64, 128)
    ]
    assert bits == sorted(bits, reverse=True)
    never = WindowCoder(model, 128, view=256, resets_model=False)
    text = texts.data.tobytes()[:1000]
    rows = model.frequencies([text[max(at - 64, 0) : at] for at in range(len(text))])
    needed = (model.precision - np.log2(rows[np.arange(len(text)), list(text)])).sum()
    found = 8 * len(never.encode(text))
    assert needed < found < 1.05 * needed + 128


def test_how_far_an_edit_of_one_byte_reaches(model: TreeModel, documents: list[bytes]) -> None:
    coder = WindowCoder(model)
    text = documents[1][:4000]
    reach = []
    for at in range(50, 2000, 150):
        edited = text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
        ends = [{len(text) - e for e in boundaries(coder, t)} for t in (text, edited)]  # counted from the end
        together = max(e for e in ends[0] & ends[1] if e <= len(text) - at)
        reach.append(len(text) - at - together)
    assert np.median(reach) < 60  # bytes until both have a window beginning at the same place, and so to the end
    assert max(reach) < 500


def boundaries(coder: WindowCoder, text: bytes) -> list[int]:
    ids = coder.encode(text)
    data, ends = coder.decode_batch(ids, np.arange(len(ids) + 1))
    assert data.tobytes() == text
    return ends.tolist()


def published(probability: dict[str, Fraction], bits: int, text: str) -> list[str]:
    """Equal-info windows as the paper words them (Lester et al. 2024, section 3.3), for any small alphabet.

    A window takes bytes until no cell of `bits` bits fits into the next interval; its label is the shortest dyadic
    interval that fits the last one, filled up with zeros.
    """

    def cell(low: Fraction, size: Fraction) -> str | None:
        for width in range(bits + 1):
            number = -(-low * 2**width // 1)
            if (number + 1) * Fraction(1, 2**width) <= low + size:
                return (f"{int(number):0{width}b}" if width else "").ljust(bits, "0")
        return None

    labels: list[str] = []
    low, size, label = Fraction(0), Fraction(1), None
    for symbol in text:
        for _ in range(2):
            below = sum((p for other, p in probability.items() if other < symbol), Fraction(0))
            narrowed = (low + size * below, size * probability[symbol])
            if cell(*narrowed) is not None:
                (low, size), label = narrowed, cell(*narrowed)
                break
            assert label is not None
            labels.append(label)
            low, size = Fraction(0), Fraction(1)
    return labels + ([label] if label is not None and text else [])


def test_the_published_rule_gives_one_code_to_two_texts() -> None:
    half, quarter = Fraction(1, 2), Fraction(1, 4)
    probability = {"a": half, "b": quarter, "c": quarter}
    assert published(probability, 2, "ac") == ["00", "11"]
    assert published(probability, 2, "aac") == ["00", "11"]


@pytest.mark.parametrize("window", [9, 10, 12])
def test_no_two_texts_have_one_code_here(window: int) -> None:
    coder = WindowCoder(ABC, window)
    strings = [bytes(s) for size in range(8) for s in itertools.product(b"abc", repeat=size)]
    texts = Texts.of(strings)
    ids, ends = coder.encode_batch(texts.data, texts.offsets)
    codes = {tuple(ids[a:b].tolist()) for a, b in itertools.pairwise(ends.tolist())}
    assert len(codes) == len(strings)
    assert coder.encode(b"ac").tolist() != coder.encode(b"aac").tolist()


GOLDEN_IDS = {
    16: "2cf4f11b2e5537fde5083c96fa7da7f7976b3a25e757dd72311bc0d684ea7e74",
    32: "68340b797e6188c99142e5f4d2a7c3fce9015b311c8deee1dccada44713f0a75",
    128: "2cfd0d09246dce0275f5bf37775196d53bd0e1ea3b5b8572bb045b1845376d28",
}


@pytest.mark.parametrize("window", [16, 32, 128])
def test_ids_are_the_same_everywhere(window: int) -> None:
    sample = Texts.of([b"a rose is a rose is a rose " * 20, bytes(range(256))])
    coder = WindowCoder(ngram_model(sample, 4), window, view=65_536)
    ids = coder.encode(b"is a rose a rose? it is a rose.\n" * 10 + bytes(range(256)))
    assert hashlib.sha256(ids.astype("<u2").tobytes()).hexdigest() == GOLDEN_IDS[window]


def test_bad_input_is_refused_with_its_reason(model: TreeModel) -> None:
    coder = WindowCoder(model)
    with pytest.raises(UserError, match=r"a window's number is 65535, but only those below 65472"):
        coder.decode([1, 65_535])
    with pytest.raises(UserError, match=r"does not fit the 16 bits"):
        coder.decode([70_000])
    with pytest.raises(UserError, match=r"id -1: integers from 0"):
        coder.decode([-1])
    with pytest.raises(UserError, match=r"integers of 0 or more"):
        coder.decode(np.array([0.5]))
    with pytest.raises(UserError, match=r"3 ids of 8 bits are no whole number of windows of 16 bits"):
        WindowCoder(model, view=256).decode([1, 2, 3])
    for window in (7, 129):
        with pytest.raises(UserError, match=f"window = {window} bits: choose from 8 to 128"):
            WindowCoder(model, window)
    with pytest.raises(UserError, match="specials = 65281"):
        WindowCoder(model, 16, specials=65_281)
    with pytest.raises(UserError, match=r"a model of 14 bits with 4096 numbers"):
        WindowCoder(model, 12)
    with pytest.raises(UserError, match="view = 1000"):
        WindowCoder(model, view=1000)


def test_a_model_that_gives_a_byte_no_frequency_is_refused() -> None:
    class Broken(Fixed):
        def frequencies(self, contexts: Sequence[bytes]) -> np.ndarray:
            rows = super().frequencies(contexts)
            rows[:, 7] -= 1
            rows[:, 8] += 1
            return rows

    with pytest.raises(UserError, match="byte 7 a frequency of 0"):
        WindowCoder(Broken(ABC.weights)).encode(b"a")
