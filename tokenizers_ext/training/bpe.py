"""Byte-level BPE from counted words; the result is a `tokenizer.json` that `tokenizers` and `transformers` load.

With objective "frequency" the result is that of `tokenizers`' BpeTrainer on the same words, byte for byte: id 0 is the
end-of-text token, 1 to 256 are the bytes in the order of their stand-in characters, and merges follow.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from seqmill.errors import UserError
from seqmill.tokenizers_ext.byte_alphabet import BYTE_OF_CHARACTER
from seqmill.tokenizers_ext.merging.engine import OBJECTIVES, learn_merges
from seqmill.tokenizers_ext.merging.text import text_of
from seqmill.tokenizers_ext.splitting import PATTERNS, rule_number
from seqmill.tokenizers_ext.subword import END_OF_TEXT
from seqmill.tokenizers_ext.training.word_counts import WordCounts

BASE_TOKENS = 257  # the end-of-text token and 256 bytes
TRAINING_BYTES = 40  # memory that one byte of a word takes in training: slots, pairs, positions; or ranks of suffixes
UNBOUNDED = 2**62


@dataclass(frozen=True)
class BpeConfig:
    """`[tokenizer.bpe]`: how a byte-level BPE is learned."""

    split: str = "gpt2"  # how text is cut into pre-tokens: gpt2, cl100k, qwen2 or word
    objective: str = (
        "frequency"  # merge the most frequent pair, or ("likelihood") the one that makes the text likeliest
    )
    min_count: int = 1  # a pair that occurs less often is not merged
    longest_token: int | None = None  # bytes; unlimited by default
    superwords_from: int | None = None  # from this vocabulary size on, tokens may span several words (SuperBPE)

    def __post_init__(self) -> None:
        rule_number(self.split)
        if self.objective not in OBJECTIVES:
            raise UserError(f"tokenizer.bpe.objective = {self.objective!r}: choose one of {', '.join(OBJECTIVES)}")
        if self.min_count < 1:
            raise UserError(f"tokenizer.bpe.min_count = {self.min_count}: 1 or more is needed")
        if self.longest_token is not None and self.longest_token < 2:
            raise UserError(f"tokenizer.bpe.longest_token = {self.longest_token}: a merge makes 2 bytes or more")
        if self.superwords_from is not None and self.superwords_from < BASE_TOKENS:
            raise UserError(
                f"tokenizer.bpe.superwords_from = {self.superwords_from}: words are learned first, {BASE_TOKENS} ids "
                "or more"
            )
        if self.superwords_from is not None and self.split != "gpt2":
            raise UserError(
                f"tokenizer.bpe.split = {self.split!r}: super-words are words of the gpt2 rule joined by spaces; set "
                "split = 'gpt2' or leave superwords_from out"
            )


def check_vocab_size(vocab_size: int) -> None:
    """Raises:
    UserError: the bytes alone would not fit.
    """
    if vocab_size < BASE_TOKENS:
        raise UserError(
            f"tokenizer.vocab_size = {vocab_size}: a byte-level vocabulary has at least {BASE_TOKENS} ids (256 bytes "
            "and the end-of-text id); for bytes alone use kind = 'byte'"
        )


def train_bpe(batches: Iterable[pa.Array | list[str]], vocab_size: int, config: BpeConfig | None = None) -> bytes:
    """Learn a vocabulary from documents in memory; see `bpe_from_counts`.

    Args:
        batches: documents, as Arrow text columns or lists of strings of any size.
        vocab_size: ids wanted.
    """
    config = config or BpeConfig()
    words = WordCounts(UNBOUNDED)
    for batch in batches:
        words.add_texts(batch if isinstance(batch, pa.Array) else pa.array(batch, pa.large_string()), config.split)
    return bpe_from_counts(words, vocab_size, config)


def bpe_from_counts(words: WordCounts, vocab_size: int, config: BpeConfig) -> bytes:
    """Learn a vocabulary; returns the contents of a `tokenizer.json`.

    All 256 bytes are in the vocabulary, so every text can be encoded and the result is lossless. It depends on nothing
    but the multiset of words.

    Args:
        vocab_size: ids wanted, the end-of-text token (id 0) included; few words may support fewer.

    Raises:
        UserError: `vocab_size` is below 257, or the words are too many for exact counts.
    """
    check_vocab_size(vocab_size)
    offsets, data, counts = words.arrays()
    segments = np.repeat(np.arange(len(words), dtype=np.int32), np.diff(offsets))
    text = text_of(_ids_of_bytes()[data], segments, counts.astype(np.int64))
    merges = learn_merges(
        text, BASE_TOKENS, vocab_size - BASE_TOKENS, config.objective, config.min_count, config.longest_token
    )
    tokens = [END_OF_TEXT, *_stand_ins()]
    pairs = grow(tokens, merges.left, merges.right)
    return tokenizer_json(tokens, pairs, config.split)


def grow(tokens: list[str], left: np.ndarray, right: np.ndarray) -> list[tuple[str, str]]:
    """Append the token of every merge to `tokens`; returns the merges as pairs of tokens."""
    pairs = []
    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        pairs.append((tokens[a], tokens[b]))
        tokens.append(tokens[a] + tokens[b])
    return pairs


def tokenizer_json(tokens: list[str], pairs: list[tuple[str, str]], split: str) -> bytes:
    """The Hugging Face description of a byte-level BPE.

    Args:
        tokens: all tokens by id, the end-of-text token first.
        pairs: the merges in their order.
    """
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    assert len(vocab) == len(tokens), "two merges made the same token"
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizer_of(split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return tokenizer.to_str().encode()


def pre_tokenizer_of(split: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of `tokenizers` for a rule of `splitting.PATTERNS`, and its bytes as stand-in characters."""
    if split == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    by_pattern = pre_tokenizers.Split(Regex(PATTERNS[split]), "isolated")
    return pre_tokenizers.Sequence([by_pattern, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _stand_ins() -> list[str]:
    """The characters that stand for the bytes, in the order of their ids."""
    return sorted(BYTE_OF_CHARACTER)


def _ids_of_bytes() -> np.ndarray:
    """int32[256]: byte -> id."""
    ids = np.empty(256, np.int32)
    ids[[BYTE_OF_CHARACTER[character] for character in _stand_ins()]] = 1 + np.arange(256)
    return ids
