"""Equal-info windows and what they rest on: models in integers, dictionaries, measures of compression, bytes as DNA."""

from seqmill.compress.integer_transformer import IntegerTransformer
from seqmill.compress.metrics import CodeLength, bits_per_byte, code_lengths, unigram_entropy
from seqmill.compress.window_coder import WindowCoder

__all__ = ["CodeLength", "IntegerTransformer", "WindowCoder", "bits_per_byte", "code_lengths", "unigram_entropy"]
