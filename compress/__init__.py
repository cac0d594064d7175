"""Information content of token streams: entropies and bits per byte; compressors as measures; bytes as DNA."""

from seqmill.compress.metrics import CodeLength, bits_per_byte, code_lengths, unigram_entropy

__all__ = ["CodeLength", "bits_per_byte", "code_lengths", "unigram_entropy"]
