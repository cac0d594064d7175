"""A Unigram vocabulary from counted words (Kudo 2018, "Subword Regularization: Improving Neural Network Translation
Models with Multiple Subword Candidates", section 3.2); the result is a `tokenizer.json` that `tokenizers` and
`transformers` load.

Many frequent substrings are the first pieces. Their probabilities are fitted to the words by expectation maximisation,
the pieces that the words need least are dropped, and both are repeated until as few as wanted are left.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import AddedToken, Tokenizer, decoders, models

from seqmill.errors import UserError
from seqmill.tokenizers_ext.byte_alphabet import printable
from seqmill.tokenizers_ext.encoder import offsets_and_bytes
from seqmill.tokenizers_ext.splitting import rule_number
from seqmill.tokenizers_ext.subword import END_OF_TEXT
from seqmill.tokenizers_ext.training.bpe import BASE_TOKENS, check_vocab_size, pre_tokenizer_of
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
from seqmill.tokenizers_ext.training.word_counts import LONGEST_WORD, WordCounts

SEEDS_PER_TOKEN = 8
LEAST_EXPECTED = 0.5  # occurrences; rarer pieces go, and the bytes, which stay, count as this often
ROUGHLY = 1.1  # of the size wanted: so many pieces are fitted together before the last ones go
NEVER = -10_000.0  # nats; the score of the end-of-text token: text that spells it is cut into other pieces
EXACT_COUNTS = 2**53  # expected counts are float64


@dataclass(frozen=True)
class UnigramConfig:
    """`[tokenizer.unigram]`: how a Unigram vocabulary is learned."""

    split: str = "gpt2"  # how text is cut into pre-tokens: gpt2, cl100k, qwen2 or word
    seed_size: int | None = None  # substrings to choose from; by default 8 times as many as ids are wanted
    shrink: float = 0.75  # share of the pieces that is kept when some are dropped
    em_steps: int = 2  # fits of the probabilities before pieces are dropped
    longest_token: int = 32  # bytes
    min_count: int = 2  # a substring that occurs less often is not chosen

    def __post_init__(self) -> None:
        rule_number(self.split)
        if self.seed_size is not None and self.seed_size < 0:
            raise UserError(f"tokenizer.unigram.seed_size = {self.seed_size}: 0 or more is needed")
        if not 0 < self.shrink < 1:
            raise UserError(f"tokenizer.unigram.shrink = {self.shrink}: choose between 0 and 1, without these")
        if self.em_steps < 1:
            raise UserError(f"tokenizer.unigram.em_steps = {self.em_steps}: 1 or more is needed")
        if not 2 <= self.longest_token <= LONGEST_WORD:
            raise UserError(
                f"tokenizer.unigram.longest_token = {self.longest_token}: choose between 2 (single bytes are always "
                f"there) and {LONGEST_WORD} bytes (no word is longer)"
            )
        if self.min_count < 1:
            raise UserError(f"tokenizer.unigram.min_count = {self.min_count}: 1 or more is needed")


def train_unigram(words: WordCounts, vocab_size: int, config: UnigramConfig) -> bytes:
    """Learn a vocabulary; returns the contents of a `tokenizer.json`.

    All 256 bytes are in the vocabulary, so every text can be encoded and the result is lossless; longer tokens are
    whole characters. It depends on nothing but the multiset of words. Id 0 is the end-of-text token, 1 to 256 are the
    bytes as in `bpe_from_counts`, and the likeliest of the other tokens come first.

    Args:
        vocab_size: ids wanted, the end-of-text token included; few words may support fewer.

    Raises:
        UserError: `vocab_size` is below 257, or the words are too many for exact counts.
    """
    check_vocab_size(vocab_size)
    wanted = vocab_size - BASE_TOKENS
    lattice, scores = _seeds(sorted_words(words), vocab_size, config)
    lattice, scores = _fit(lattice, scores, wanted, config.em_steps)
    while len(scores) - BYTE_PIECES > ROUGHLY * wanted:
        keep = max(int(ROUGHLY * wanted), int(config.shrink * (len(scores) - BYTE_PIECES)))
        lattice, scores = _fit(*_pruned(lattice, scores, keep), wanted, config.em_steps)
    lattice, scores = _fit(*_pruned(lattice, scores, wanted), wanted, config.em_steps)
    return tokenizer_json(_spellings(lattice), scores, config.split)


def sorted_words(words: WordCounts) -> Words:
    """The words in the order that everything else is summed in.

    Raises:
        UserError: they have 2**53 bytes or more in all.
    """
    offsets, data, counts = words.arrays()
    total = int((counts * np.diff(offsets).astype(np.float64)).sum())
    if total >= EXACT_COUNTS:
        raise UserError(f"the text has {total} bytes, counts are exact below {EXACT_COUNTS}: train on a sample")
    column = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(words), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    order = pc.sort_indices(column)
    sorted_offsets, sorted_data = offsets_and_bytes(column.take(order))
    return Words(sorted_data, sorted_offsets, counts[order.to_numpy()].astype(np.int64))


def _seeds(words: Words, vocab_size: int, config: UnigramConfig) -> tuple[Lattice, np.ndarray]:
    """The first pieces, with scores in proportion to the bytes that they cover."""
    most = SEEDS_PER_TOKEN * vocab_size if config.seed_size is None else config.seed_size
    suffixes = sorted_suffixes(words, config.longest_token)
    found = frequent_substrings(words, suffixes, config.longest_token, config.min_count, most)
    lattice = lattice_of(words, suffixes, found)
    bytes_ = np.bincount(words.data, np.repeat(words.counts, np.diff(words.offsets)), BYTE_PIECES)
    covered = np.concatenate([np.maximum(bytes_, LEAST_EXPECTED), found.counts * found.lengths.astype(np.float64)])
    return lattice, np.log(covered) - np.log(covered.sum())


def _fit(lattice: Lattice, scores: np.ndarray, wanted: int, steps: int) -> tuple[Lattice, np.ndarray]:
    """Expectation maximisation; pieces that are hardly expected to occur go while there are more than `wanted`."""
    for _ in range(steps):
        expected, _ = expected_counts(lattice, scores)
        kept = _most(expected, max(wanted, int((expected[BYTE_PIECES:] >= LEAST_EXPECTED).sum())))
        lattice, scores = without(lattice, kept), scores_of(expected[kept])
    return lattice, scores


def _pruned(lattice: Lattice, scores: np.ndarray, keep: int) -> tuple[Lattice, np.ndarray]:
    """Only the bytes and the `keep` pieces that would be missed most."""
    kept = _most(losses(lattice, scores, best_cut_counts(lattice, scores)), keep)
    return without(lattice, kept), scores[kept]


def _most(values: np.ndarray, keep: int) -> np.ndarray:
    """bool[pieces]: the bytes and the `keep` other pieces of the highest values; among equals, the first."""
    kept = np.zeros(len(values), bool)
    kept[:BYTE_PIECES] = True
    kept[BYTE_PIECES + np.argsort(-values[BYTE_PIECES:], kind="stable")[:keep]] = True
    return kept


def scores_of(expected: np.ndarray) -> np.ndarray:
    """The M step: log-probabilities from expected counts, float64[pieces].

    exp(digamma(count)) instead of the count: the mean of the log-probability under a Dirichlet posterior with a prior
    that prefers few pieces, which takes about half an occurrence from each (Liang et al. 2007, "The Infinite PCFG
    using Hierarchical Dirichlet Processes", section 3.2).
    """
    counts = np.maximum(expected, LEAST_EXPECTED)
    return digamma(counts) - digamma(counts.sum(keepdims=True))


def digamma(x: np.ndarray) -> np.ndarray:
    """The derivative of ln gamma(x) for x > 0, by its expansion at x + 8 (Abramowitz and Stegun 1964, "Handbook of
    Mathematical Functions", 6.3.18) and the recurrence 6.3.6."""
    far = x + 8
    square = 1 / far**2
    series = square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square / 132))))
    return np.log(far) - 0.5 / far - series - sum(1 / (x + k) for k in range(8))


def _spellings(lattice: Lattice) -> list[bytes]:
    data, pieces = lattice.words.data.tobytes(), lattice.pieces
    longer = zip(pieces.places[BYTE_PIECES:].tolist(), pieces.lengths[BYTE_PIECES:].tolist(), strict=True)
    return [bytes([byte]) for byte in range(BYTE_PIECES)] + [data[place : place + length] for place, length in longer]


def tokenizer_json(pieces: list[bytes], scores: np.ndarray, split: str) -> bytes:
    """The Hugging Face description of a Unigram model over bytes.

    Args:
        pieces: the bytes first.
        scores: float64[pieces], log-probabilities in nats.
    """
    tokens = [printable(piece) for piece in pieces]
    bytes_ = sorted(range(BYTE_PIECES), key=tokens.__getitem__)
    longer = sorted(range(BYTE_PIECES, len(pieces)), key=lambda piece: (-scores[piece], pieces[piece]))
    vocab = [(END_OF_TEXT, NEVER), *((tokens[piece], float(scores[piece])) for piece in bytes_ + longer)]
    assert len(dict(vocab)) == len(vocab), "two pieces are spelt alike"
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=None, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizer_of(split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer.to_str().encode()
