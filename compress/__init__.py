"""Equal-info windows, arithmetic coding, and how much information token streams carry."""

from seqmill.compress.metrics import bits_per_byte, unigram_entropy
from seqmill.compress.window_coder import WindowCoder

__all__ = ["WindowCoder", "bits_per_byte", "unigram_entropy"]
