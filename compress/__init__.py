"""Equal-info windows and what they rest on: models in integers, dictionaries, and measures of compression."""

from seqmill.compress.integer_transformer import IntegerTransformer
from seqmill.compress.metrics import bits_per_byte, unigram_entropy
from seqmill.compress.window_coder import WindowCoder

__all__ = ["IntegerTransformer", "WindowCoder", "bits_per_byte", "unigram_entropy"]
