"""Information content of token streams, and what codes bytes into windows: models in integers."""

from seqmill.compress.integer_transformer import IntegerTransformer
from seqmill.compress.metrics import bits_per_byte, unigram_entropy

__all__ = ["IntegerTransformer", "bits_per_byte", "unigram_entropy"]
