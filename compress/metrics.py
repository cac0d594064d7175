"""How much information a token stream carries: entropies, and the units to compare models with other tokenizers in."""

import math

import numpy as np


def unigram_entropy(counts: np.ndarray) -> float:
    """Entropy in nats per token of the empirical distribution of ids (Shannon 1948): -sum p ln p.

    A language model that knows token frequencies and nothing else cannot have a lower loss on the same tokens.

    Args:
        counts: non-negative numbers[vocabulary], occurrences of every id; zeros are allowed.

    Returns:
        nats per token; 0 when there is no token.
    """
    present = np.asarray(counts, np.float64)
    present = present[present > 0]
    if not len(present):
        return 0.0
    shares = present / present.sum()
    return float(-(shares * np.log(shares)).sum())


def bits_per_byte(nats_per_token: float, tokens: int, num_bytes: int) -> float:
    """A loss in bits per byte of text, the unit that does not depend on the tokenizer.

    Args:
        nats_per_token: mean loss over `tokens` targets.
        tokens: target tokens, end-of-document ids included.
        num_bytes: bytes of the text that those tokens stand for.

    Raises:
        ValueError: there is no byte.
    """
    if num_bytes <= 0:
        raise ValueError(f"num_bytes = {num_bytes}: bits per byte need at least one byte of text")
    return nats_per_token * tokens / (math.log(2) * num_bytes)
