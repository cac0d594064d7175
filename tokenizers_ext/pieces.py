"""The bytes that every id of a tokenizer stands for, asked through the protocol that all tokenizers share."""

import numpy as np

from seqmill.tokenizers_ext.encoder import Encoder, list_array, offsets_and_bytes

Pieces = tuple[np.ndarray, np.ndarray]
MOST_KNOWN = 4
_known: dict[str, Pieces] = {}  # fingerprint -> pieces of the tokenizers asked last


def pieces_of(encoder: Encoder) -> Pieces:
    """Offsets int64[vocab_size + 1] into the bytes uint8[...] of all tokens; special ids have none."""
    if encoder.fingerprint not in _known:
        ids = np.arange(encoder.vocab_size)
        alone = list_array(np.arange(encoder.vocab_size + 1), ids, encoder.vocab_size)
        while len(_known) >= MOST_KNOWN:
            _known.pop(next(iter(_known)), None)
        _known[encoder.fingerprint] = offsets_and_bytes(encoder.decode(alone))
    return _known[encoder.fingerprint]
