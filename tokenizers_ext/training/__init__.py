"""Learning vocabularies: words are counted part by part, and a vocabulary is made from the counts."""

from seqmill.tokenizers_ext.training.bpe import BASE_TOKENS, BpeConfig, bpe_from_counts, train_bpe
from seqmill.tokenizers_ext.training.superwords import add_superwords
from seqmill.tokenizers_ext.training.unigram import UnigramConfig, train_unigram
from seqmill.tokenizers_ext.training.word_counts import WordCounts

__all__ = [
    "BASE_TOKENS",
    "BpeConfig",
    "UnigramConfig",
    "WordCounts",
    "add_superwords",
    "bpe_from_counts",
    "train_bpe",
    "train_unigram",
]
