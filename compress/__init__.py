"""Information content of token streams: entropies and bits per byte."""

from seqmill.compress.metrics import bits_per_byte, unigram_entropy

__all__ = ["bits_per_byte", "unigram_entropy"]
