"""The bytes that every id of a tokenizer stands for, of whatever kind it is."""

import numpy as np

from seqmill.errors import UserError
from seqmill.tokenizers_ext.encoder import Encoder, list_array, offsets_and_bytes
from seqmill.tokenizers_ext.subword import SubwordEncoder

TokenBytes = tuple[np.ndarray, np.ndarray]
MOST_KNOWN = 4
_known: dict[str, TokenBytes] = {}  # fingerprint -> bytes of the tokenizers asked last


def bytes_of_ids(encoder: Encoder) -> TokenBytes:
    """Offsets int64[vocab_size + 1] into the bytes uint8[...] of all ids; special ids have none.

    Raises:
        UserError: the documents of this tokenizer are not the bytes of their ids one after the other.
    """
    if encoder.fingerprint not in _known:
        while len(_known) >= MOST_KNOWN:
            _known.pop(next(iter(_known)), None)
        _known[encoder.fingerprint] = _asked(encoder)
    return _known[encoder.fingerprint]


def _asked(encoder: Encoder) -> TokenBytes:
    if isinstance(encoder, SubwordEncoder):
        if encoder.pieces is None:
            raise UserError(
                "the tokens of this tokenizer do not add up to its text (its decoder joins them by other rules); use a "
                "byte-level or sentencepiece vocabulary"
            )
        return encoder.pieces.offsets, encoder.pieces.data
    ids = np.arange(encoder.vocab_size)
    alone = list_array(np.arange(encoder.vocab_size + 1), ids, encoder.vocab_size)
    return offsets_and_bytes(encoder.decode(alone))
