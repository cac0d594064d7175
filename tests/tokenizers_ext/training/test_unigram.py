import json
import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from seqmill.errors import UserError
from seqmill.tokenizers_ext.byte_alphabet import unprintable
from seqmill.tokenizers_ext.subword import END_OF_TEXT, SubwordEncoder
from seqmill.tokenizers_ext.training import UnigramConfig, WordCounts, train_unigram
from seqmill.tokenizers_ext.training.lattice import (
    BYTE_PIECES,
    Lattice,
    best_cut_counts,
    expected_counts,
    lattice_of,
    losses,
    without,
)
from seqmill.tokenizers_ext.training.substrings import Words, frequent_substrings, sorted_suffixes
from seqmill.tokenizers_ext.training.unigram import digamma, sorted_words

EXAMPLES = Path(__file__).parents[3] / "examples" / "corpus"
PLENTY = 1 << 40

# Words that share and repeat much, with whole, single and broken characters.
WORDS = st.dictionaries(
    st.one_of(st.text("abé日", max_size=7).map(str.encode), st.binary(max_size=6)).filter(len),
    st.integers(1, 50),
    max_size=8,
)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """The declaration of human rights in thirty languages, and a glossary."""
    rights = [path.read_text(encoding="utf-8") for path in sorted((EXAMPLES / "udhr").glob("*.txt"))]
    with (EXAMPLES / "jargon.jsonl").open(encoding="utf-8") as lines:
        return rights + [json.loads(line)["text"] for line in lines][:400]


@pytest.fixture(scope="module")
def learned(texts: list[str]) -> bytes:
    return train_unigram(counted(texts), 2_000, UnigramConfig())


@pytest.fixture(scope="module")
def encoder(learned: bytes) -> SubwordEncoder:
    return SubwordEncoder(learned)


def counted(texts: list[str], split: str = "gpt2") -> WordCounts:
    words = WordCounts(PLENTY)
    words.add_texts(pa.array(texts, pa.large_string()), split)
    return words


def counts_of(words: dict[bytes, int]) -> WordCounts:
    found = WordCounts(PLENTY)
    found.add_counts(pa.array(list(words), pa.large_binary()), pa.array(list(words.values()), pa.uint64()))
    return found


def arrays_of(words: dict[bytes, int]) -> Words:
    return sorted_words(counts_of(words))


def lattice_and_spellings(
    words: dict[bytes, int], longest: int = 6, min_count: int = 1, most: int = 1000
) -> tuple[Lattice, list[bytes]]:
    arrays = arrays_of(words)
    suffixes = sorted_suffixes(arrays, longest)
    lattice = lattice_of(arrays, suffixes, frequent_substrings(arrays, suffixes, longest, min_count, most))
    return lattice, spelt(lattice)


def spelt(lattice: Lattice) -> list[bytes]:
    data, pieces = lattice.words.data.tobytes(), lattice.pieces
    places = zip(pieces.places[BYTE_PIECES:], pieces.lengths[BYTE_PIECES:], strict=True)
    return [bytes([byte]) for byte in range(BYTE_PIECES)] + [data[a : a + length] for a, length in places]


def some_scores(size: int) -> np.ndarray:
    weights = np.random.default_rng(size).random(size) + 0.01
    return np.log(weights / weights.sum())


def cuts(word: bytes, pieces: set[bytes]) -> Iterator[list[bytes]]:
    """All ways to cut a word into pieces."""
    if not word:
        yield []
    for size in range(1, len(word) + 1):
        if word[:size] in pieces:
            yield from ([word[:size], *rest] for rest in cuts(word[size:], pieces))


def substrings_by_hand(words: dict[bytes, int], longest: int, min_count: int) -> dict[bytes, int]:
    """All substrings of whole characters that no longer one of the same occurrences continues by one character."""

    def begins(byte: int) -> bool:
        return byte & 0xC0 != 0x80

    count: Counter[bytes] = Counter()
    before: dict[bytes, set[object]] = {}
    for word, n in words.items():
        edges = [at for at in range(len(word)) if begins(word[at])] + [len(word)]
        for k, a in enumerate(edges[:-1]):
            for b in edges[k + 1 :]:
                if b - a <= longest:
                    count[word[a:b]] += n
                    start = max((e for e in [0, *edges] if e < a), default=None)
                    before.setdefault(word[a:b], set()).add((word, a) if start is None else word[start:a])
    found = {}
    for piece, n in count.items():
        followed = any(longer != piece and longer.startswith(piece) and count[longer] == n for longer in count)
        preceded = len(before[piece]) == 1 and isinstance(next(iter(before[piece])), bytes)
        if len(piece) > 1 and n >= min_count and not followed and not preceded:
            found[piece] = n
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("ab\0é日", min_size=1, max_size=12).map(str.encode), st.integers(1, 50), max_size=8),
    st.integers(2, 20),
    st.integers(1, 60),
)
@example({b"a" * 300: 2, b"a" * 299 + b"b": 1}, 16, 2)
def test_seeds_are_the_frequent_substrings_that_no_longer_one_replaces(
    words: dict[bytes, int], longest: int, min_count: int
) -> None:
    arrays = arrays_of(words)
    suffixes = sorted_suffixes(arrays, longest)
    found = frequent_substrings(arrays, suffixes, longest, min_count, PLENTY)
    data = arrays.data.tobytes()
    spellings = [data[suffixes[a] :][:length] for a, length in zip(found.first, found.lengths, strict=True)]
    assert spellings == sorted(spellings)
    assert dict(zip(spellings, found.counts.tolist(), strict=True)) == substrings_by_hand(words, longest, min_count)


def test_of_too_many_substrings_those_that_cover_most_bytes_are_chosen() -> None:
    words = {b"abcdef": 10, b"abcx": 5, b"yz": 26}
    assert set(lattice_and_spellings(words, most=2)[1][BYTE_PIECES:]) == {b"abcdef", b"yz"}


@settings(max_examples=60, deadline=None)
@given(WORDS)
@example({b"\x80": 1, b"a\x80\x80": 2, b"\xe6\x97": 3})
def test_every_piece_is_found_wherever_it_occurs(words: dict[bytes, int]) -> None:
    lattice, spellings = lattice_and_spellings(words)
    assert len(set(spellings)) == len(spellings)
    assert spellings[BYTE_PIECES:] == sorted(spellings[BYTE_PIECES:])
    kept = np.arange(len(spellings)) % 3 != 1
    kept[:BYTE_PIECES] = True
    assert_pieces_are_linked(lattice)
    assert_pieces_are_linked(without(lattice, kept))


def assert_pieces_are_linked(lattice: Lattice) -> None:
    words, longest, pieces = lattice
    spellings = spelt(lattice)
    data = words.data.tobytes()
    for begin, end in pairwise(words.offsets):
        for at in range(begin, end):
            begins = {piece for piece in spellings if data[at:end].startswith(piece)}
            found, piece = set(), longest[at]
            while piece >= 0:
                found.add(spellings[piece])
                piece = pieces.parents[piece]
            assert found == ({data[at : at + 1]} if data[at] & 0xC0 == 0x80 else begins)


@settings(max_examples=60, deadline=None)
@given(WORDS)
def test_expected_counts_are_those_over_all_cuts(words: dict[bytes, int]) -> None:
    lattice, spellings = lattice_and_spellings(words)
    scores = some_scores(len(spellings))
    score_of = dict(zip(spellings, scores.tolist(), strict=True))
    expected, likelihood = dict.fromkeys(spellings, 0.0), 0.0
    for word, n in words.items():
        each = [(math.exp(sum(score_of[p] for p in cut)), cut) for cut in lattice_cuts(word, set(spellings))]
        whole = sum(probability for probability, _ in each)
        likelihood += n * math.log(whole)
        for probability, cut in each:
            for piece in cut:
                expected[piece] += n * probability / whole
    found, found_likelihood = expected_counts(lattice, scores)
    assert found == pytest.approx(np.array([expected[piece] for piece in spellings]), rel=1e-9, abs=1e-9)
    assert found_likelihood == pytest.approx(likelihood, rel=1e-9, abs=1e-9)


def lattice_cuts(word: bytes, pieces: set[bytes]) -> Iterator[list[bytes]]:
    """Cuts whose longer pieces begin where characters do."""
    for cut in cuts(word, pieces):
        if all(len(piece) == 1 or piece[0] & 0xC0 != 0x80 for piece in cut):
            yield cut


def test_expected_counts_of_very_long_words_stay_within_floating_point() -> None:
    words = {b"ab" * 2048: 3, b"ba" * 2000 + b"c" * 90: 1, bytes(range(97, 123)) * 150: 1}
    lattice, spellings = lattice_and_spellings(words, longest=64, min_count=2)
    scores = some_scores(len(spellings)) - 20.0 * np.array([len(piece) < 50 for piece in spellings])
    expected, likelihood = expected_counts(lattice, scores)
    lengths = np.array([len(piece) for piece in spellings])
    assert np.isfinite(likelihood)
    assert likelihood < -700  # exp() of it would be 0
    assert (expected * lengths).sum() == pytest.approx(sum(len(word) * n for word, n in words.items()), rel=1e-9)
    step = 1e-6  # the derivative of the likelihood by a score is that piece's expected count
    for piece in np.argsort(-expected)[:5]:
        up, down = scores.copy(), scores.copy()
        up[piece] += step
        down[piece] -= step
        slope = (expected_counts(lattice, up)[1] - expected_counts(lattice, down)[1]) / (2 * step)
        assert slope == pytest.approx(expected[piece], rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(WORDS.filter(len))
def test_the_likelihood_never_falls_when_scores_are_fitted_to_expected_counts(words: dict[bytes, int]) -> None:
    lattice, spellings = lattice_and_spellings(words)
    scores, before = some_scores(len(spellings)), -math.inf
    for _ in range(6):
        expected, likelihood = expected_counts(lattice, scores)
        assert likelihood >= before - 1e-9 * abs(likelihood)
        before = likelihood
        scores = np.log(np.maximum(expected, 1e-30) / expected.sum())


@settings(max_examples=60, deadline=None)
@given(WORDS)
def test_best_cuts_are_the_likeliest_of_all(words: dict[bytes, int]) -> None:
    lattice, spellings = lattice_and_spellings(words)
    scores = some_scores(len(spellings))
    score_of = dict(zip(spellings, scores.tolist(), strict=True))
    best: Counter[bytes] = Counter()
    for word, n in words.items():
        cut = max(lattice_cuts(word, set(spellings)), key=lambda cut: sum(score_of[piece] for piece in cut))
        for piece in cut:
            best[piece] += n
    assert best_cut_counts(lattice, scores).tolist() == [best[piece] for piece in spellings]


def test_what_a_piece_is_worth_is_what_its_best_replacement_costs() -> None:
    words = {b"abab": 8, b"ab": 4, b"ba": 2}
    lattice, spellings = lattice_and_spellings(words)
    assert spellings[BYTE_PIECES:] == [b"ab", b"abab", b"ba"]
    weights = np.full(len(spellings), 1e-6)
    weights[BYTE_PIECES:] = 0.4, 0.3, 0.01
    scores = np.log(weights / weights.sum())
    counts = best_cut_counts(lattice, scores)
    found = losses(lattice, scores, counts)
    assert counts[BYTE_PIECES:].tolist() == [4, 8, 2]
    assert np.isinf(found[:BYTE_PIECES]).all()
    # 8 times "abab" become twice "ab", which has 4 and 8 more; all in all 14 pieces become 22
    assert found[BYTE_PIECES + 1] == pytest.approx(8 * (math.log(8 / 14) - 2 * math.log(12 / 22)))
    # twice "ba" become "b" and "a", which occur nowhere else
    assert found[BYTE_PIECES + 2] == pytest.approx(2 * (math.log(2 / 14) - 2 * math.log(2 / 16)))


def test_digamma_is_that_of_scipy() -> None:
    x = np.concatenate([np.linspace(0.5, 20, 400), np.logspace(1, 15, 100)])
    assert digamma(x) == pytest.approx(special.digamma(x), rel=1e-12, abs=1e-12)


def test_tokenizers_cuts_words_as_training_does(texts: list[str], learned: bytes, encoder: SubwordEncoder) -> None:
    vocab = json.loads(learned)["model"]["vocab"]
    longer = {unprintable(token): score for token, score in vocab[257:]}
    arrays = sorted_words(counted(texts))
    suffixes = sorted_suffixes(arrays, 32)
    lattice = lattice_of(arrays, suffixes, frequent_substrings(arrays, suffixes, 32, 1, PLENTY))
    kept = np.array([len(piece) == 1 or piece in longer for piece in spelt(lattice)])
    lattice = without(lattice, kept)
    score_of = longer | {unprintable(token): score for token, score in vocab[1:257]}
    counts = best_cut_counts(lattice, np.array([score_of[piece] for piece in spelt(lattice)]))
    ids = encoder.encode(pa.array(texts, pa.large_string())).flatten().to_numpy()
    expected = np.bincount(ids, minlength=len(vocab))
    found = dict(zip(spelt(lattice), counts.tolist(), strict=True))
    assert [found.get(unprintable(token), 0) for token, _ in vocab[1:]] == expected[1:].tolist()
    assert len(longer) == kept.sum() - BYTE_PIECES


def test_the_vocabulary_has_the_size_asked_for_and_whole_characters_by_falling_score(learned: bytes) -> None:
    vocab = json.loads(learned)["model"]["vocab"]
    assert len(vocab) == len(dict(vocab)) == 2_000
    assert vocab[0][0] == END_OF_TEXT
    assert sorted(unprintable(token) for token, _ in vocab[1:257]) == [bytes([byte]) for byte in range(256)]
    scores = [score for _, score in vocab]
    assert all(map(math.isfinite, scores))
    assert scores[257:] == sorted(scores[257:], reverse=True)
    longer = [unprintable(token) for token, _ in vocab[257:]]
    assert all(len(piece) <= 32 and piece.decode() for piece in longer)
    assert sum(math.exp(score) for score in scores) == pytest.approx(1, abs=0.1)
    assert {b" the", " и".encode(), "的".encode()} <= set(longer)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=5))
@example([END_OF_TEXT, "a" * 5_000, "\0\x01\x7f", "👩\u200d👩\u200d👧", "日本語" * 40])
def test_any_text_comes_back(encoder: SubwordEncoder, texts: list[str]) -> None:
    ids = encoder.encode(pa.array(texts, pa.large_string()))
    assert encoder.decode(ids).to_pylist() == [text.encode() for text in texts]
    assert 0 not in ids.flatten().to_pylist()


def test_text_that_spells_the_end_of_text_never_becomes_it() -> None:
    texts = [f"a {END_OF_TEXT} b", "word by word " * 20, END_OF_TEXT]
    encoder = SubwordEncoder(train_unigram(counted(texts[1:2], "word"), 270, UnigramConfig("word")))
    ids = encoder.encode(pa.array(texts, pa.large_string()))
    assert 0 not in ids.flatten().to_pylist()
    assert encoder.decode(ids).to_pylist() == [text.encode() for text in texts]


def test_transformers_loads_the_result_and_encodes_alike(
    learned: bytes, encoder: SubwordEncoder, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(learned)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ids = encoder.encode(pa.array(texts[:4], pa.large_string()))
    assert ids.to_pylist() == [theirs.encode(text, add_special_tokens=False) for text in texts[:4]]
    assert theirs.decode(ids[0].as_py()) == texts[0]


def test_the_order_of_documents_changes_no_byte(learned: bytes, texts: list[str]) -> None:
    assert train_unigram(counted(texts[50::-1] + texts[51:]), 2_000, UnigramConfig()) == learned


def test_a_word_counted_twice_is_a_word_of_count_two(texts: list[str]) -> None:
    twice = counted(texts[:5])
    for batch in counted(texts[:5]).batches():
        twice.add_counts(batch.column("word"), batch.column("count"))
    assert train_unigram(twice, 400, UnigramConfig()) == train_unigram(counted(texts[:5] * 2), 400, UnigramConfig())


@settings(max_examples=40, deadline=None)
@given(WORDS, st.integers(257, 300), st.integers(0, 60))
@example({}, 257, 0)
@example({}, 1_000, 60)
@example({b"word": 1}, 400, 60)
@example({b"word": 2**40, b"words": 1}, 400, 60)
@example({b"a" * 4096: 1}, 400, 60)
@example({b"a" * 4096: 7, b"b": 1}, 262, 60)
def test_training_ends_with_the_size_asked_for_or_all_that_the_words_hold(
    words: dict[bytes, int], vocab_size: int, seed_size: int
) -> None:
    contents = train_unigram(counts_of(words), vocab_size, UnigramConfig(seed_size=seed_size, longest_token=6))
    vocab = json.loads(contents)["model"]["vocab"]
    seeds = len(lattice_and_spellings(words, 6, 2, seed_size)[1]) - BYTE_PIECES
    assert len(vocab) == min(vocab_size, 257 + seeds)
    assert all(math.isfinite(score) for _, score in vocab)
    reference = Tokenizer.from_str(contents.decode())
    assert reference.decode(reference.encode("any text, ünd 日").ids) == "any text, ünd 日"


def test_more_text_than_counts_hold_exactly_is_refused() -> None:
    with pytest.raises(UserError, match="train on a sample"):
        train_unigram(counts_of({b"word": 2**52}), 300, UnigramConfig())


def test_impossible_settings_name_the_way_out() -> None:
    with pytest.raises(UserError, match="at least 257"):
        train_unigram(counted(["text"]), 256, UnigramConfig())
    for settings_, message in (
        ({"split": "spaces"}, "choose one of gpt2"),
        ({"seed_size": -1}, "0 or more"),
        ({"shrink": 1.0}, "between 0 and 1"),
        ({"shrink": 0.0}, "between 0 and 1"),
        ({"em_steps": 0}, "1 or more"),
        ({"longest_token": 1}, "single bytes"),
        ({"longest_token": 4097}, "no word is longer"),
        ({"min_count": 0}, "1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            UnigramConfig(**settings_)
