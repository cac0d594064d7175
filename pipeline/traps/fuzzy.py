"""Fuzzy copies of a trap, each with other tokens in a few places: they are no duplicates of each other, and a model
remembers them nearly as well (Shilov et al. 2024, arXiv 2405.15523). The paper takes the new tokens from a masked
language model; here they are drawn evenly from the vocabulary, so that no model is needed."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from seqmill.errors import UserError
from seqmill.pipeline.traps.spans import decode_ids, encode_texts
from seqmill.tokenizers_ext import Encoder
from seqmill.tokenizers_ext.encoder import id_type

TRIES = 200  # draws for one copy


def vary(encoder: Encoder, text: str, replaced: int, copies: int, seed: Sequence[int]) -> list[str]:
    """`copies` variants of a text of n tokens with `replaced` tokens each, at places of their own, drawn anew.

    A variant decodes to text and encodes to the same n tokens again. Its first and last token are the trap's own, so
    that it begins and ends without white space.

    Raises:
        UserError: the trap has no `replaced` tokens between its ends, or `TRIES` draws gave no variant.
    """
    ids = encode_texts(encoder, [text])[0]
    if replaced > len(ids) - 2:
        raise UserError(
            f"--fuzzy {replaced}: a trap of {len(ids)} tokens has {len(ids) - 2} between its first and last"
        )
    words = _ordinary_ids(encoder)
    variants = []
    for copy in range(copies):
        random = np.random.default_rng([*seed, copy])
        for _ in range(TRIES):
            varied = ids.copy()
            places = 1 + random.choice(len(ids) - 2, replaced, replace=False)
            varied[places] = random.choice(words, replaced)
            found = decode_ids(encoder, varied).decode(errors="replace")
            if (varied != ids).sum() == replaced and np.array_equal(encode_texts(encoder, [found])[0], varied):
                variants.append(found)
                break
        else:
            raise UserError(
                f"--fuzzy {replaced}: {TRIES} draws gave no variant of {text!r} that keeps its {len(ids)} tokens; "
                "lower --fuzzy, or leave it out"
            )
    return variants


def _ordinary_ids(encoder: Encoder) -> np.ndarray:
    """Ids of a space and letters; of letters where the vocabulary has none such (bytes)."""
    count = encoder.vocab_size
    ids = pa.array(np.arange(count), id_type(count))
    alone = pa.ListArray.from_arrays(pa.array(np.arange(count + 1), pa.int32()), ids)
    pieces = [piece.decode(errors="replace") for piece in encoder.decode(alone).to_pylist()]
    words = [id_ for id_, piece in enumerate(pieces) if piece[:1] == " " and piece[1:].isalpha()]
    letters = words or [id_ for id_, piece in enumerate(pieces) if piece.isalpha()]
    return np.array(letters, ids.type.to_pandas_dtype())
